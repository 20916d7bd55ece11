//! Holds: how they are read, changed by the core's rules, and written.
//!
//! A transaction that changes a hold has locked the row of its partition, so that holds can be read, changed
//! here and written back without another one coming between.

use std::collections::{BTreeMap, BTreeSet};

use outbox_core::{
    AggregateKey,
    store::{HoldReason, Sequence, Settlement, Unhold},
};
use sqlx::{MySqlConnection, Row as _};

use crate::{
    codec::{NAME, json, micros, micros_of, partition_code, rows, time_of},
    database::Database,
};

/// An aggregate in its partition.
pub(crate) type HeldKey = (u8, AggregateKey);

/// A hold whose times are microseconds of the server's clock. Its rules are the core's.
pub(crate) type Hold = outbox_core::store::Hold<i64>;

/// Some holds, by aggregate, and what has changed since they were read.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    holds: BTreeMap<HeldKey, Hold>,
    changed: BTreeSet<HeldKey>,
    now: i64,
}

impl Holds {
    /// Reads and locks the holds of these aggregates. `now` is the server's clock.
    pub(crate) async fn read(
        database: &Database,
        connection: &mut MySqlConnection,
        keys: impl IntoIterator<Item = HeldKey>,
        now: i64,
    ) -> Result<Self, sqlx::Error> {
        let keys: BTreeSet<HeldKey> = keys.into_iter().collect();
        let mut holds = Self { now, ..Self::default() };
        if keys.is_empty() {
            return Ok(holds);
        }
        let sql = read_sql();
        let query = sqlx::query(database.tables().sql(&sql)).bind(key_rows(&keys));
        for row in query.fetch_all(connection).await? {
            let text = |index| row.try_get::<&[u8], _>(index).map(String::from_utf8_lossy);
            let reason: String = row.try_get(5)?;
            let reason = HoldReason::of(&reason);
            let hold = Hold::new(row.try_get(3)?, row.try_get(4)?, reason, row.try_get(6)?);
            holds.holds.insert((row.try_get(0)?, AggregateKey::new(&text(1)?, &text(2)?)), hold);
        }
        Ok(holds)
    }

    /// Applies what became of an event.
    pub(crate) fn settle(&mut self, settlement: &Settlement) {
        let after = |now: i64, wait| now.saturating_add(micros(wait));
        let (key, now) = ((partition_code(settlement.partition), settlement.key.clone()), self.now);
        self.change(key, |hold| Hold::settled(hold, settlement, now, after));
    }

    /// Removes a hold that holds nothing. `waits` are the events that are pending and due.
    pub(crate) fn unhold(&mut self, unhold: &Unhold, waits: &BTreeSet<Sequence>) {
        let (key, now) = ((partition_code(unhold.partition), unhold.key.clone()), self.now);
        self.change(key, |hold| hold?.unheld(unhold, now, |sequence| waits.contains(&sequence)));
    }

    /// Puts what `rule` makes of an aggregate's hold in its place.
    pub(crate) fn change(&mut self, key: HeldKey, rule: impl FnOnce(Option<Hold>) -> Option<Hold>) {
        let before = self.holds.get(&key).copied();
        let after = rule(before);
        if after == before {
            return;
        }
        match after {
            Some(hold) => _ = self.holds.insert(key.clone(), hold),
            None => _ = self.holds.remove(&key),
        }
        self.changed.insert(key);
    }

    pub(crate) fn get(&self, key: &HeldKey) -> Option<Hold> {
        self.holds.get(key).copied()
    }

    /// Writes what has changed.
    pub(crate) async fn write(
        self,
        database: &Database,
        connection: &mut MySqlConnection,
    ) -> Result<(), sqlx::Error> {
        let (kept, gone): (BTreeSet<_>, BTreeSet<_>) =
            self.changed.into_iter().partition(|key| self.holds.contains_key(key));
        if !gone.is_empty() {
            let sql = format!(
                "DELETE h FROM {} STRAIGHT_JOIN {{holds}} h FORCE INDEX (PRIMARY) \
                 ON h.part = k.part AND h.aggregate_type = k.type AND h.aggregate_id = k.id",
                rows("k", &key_columns())
            );
            let query = sqlx::query(database.tables().sql(&sql)).bind(key_rows(&gone));
            query.execute(&mut *connection).await?;
        }
        if kept.is_empty() {
            return Ok(());
        }
        let row = |key: &HeldKey| {
            let hold = self.holds.get(key)?;
            let (part, name) = (key.0, &key.1);
            let times = (hold.until, hold.paused_at);
            Some((
                part,
                name.aggregate_type().to_owned(),
                name.aggregate_id().to_owned(),
                hold.sequence,
                times.0,
                hold.reason.as_str(),
                times.1,
            ))
        };
        let written: Vec<_> = kept.iter().filter_map(row).collect();
        let sql = format!(
            "REPLACE INTO {{holds}} (part, aggregate_type, aggregate_id, sequence, until, reason, paused_at) \
             SELECT k.part, k.type, k.id, k.sequence, {}, k.reason, {} FROM {}",
            time_of("k.until"),
            time_of("k.paused_at"),
            rows(
                "k",
                &format!(
                    "{}, sequence BIGINT, until BIGINT, reason VARCHAR(16), paused_at BIGINT",
                    key_columns()
                )
            )
        );
        let query = sqlx::query(database.tables().sql(&sql)).bind(json(written));
        query.execute(connection).await.map(drop)
    }
}

/// Reads and locks the holds of the aggregates in its parameter.
pub(crate) fn read_sql() -> String {
    format!(
        "SELECT h.part, CAST(h.aggregate_type AS BINARY), CAST(h.aggregate_id AS BINARY), h.sequence, \
           {} AS until, h.reason, {} AS paused_at \
         FROM {} STRAIGHT_JOIN {{holds}} h FORCE INDEX (PRIMARY) \
         ON h.part = k.part AND h.aggregate_type = k.type AND h.aggregate_id = k.id FOR UPDATE",
        micros_of("h.until"),
        micros_of("h.paused_at"),
        rows("k", &key_columns())
    )
}

/// The columns of [`key_rows`].
fn key_columns() -> String {
    format!("part SMALLINT UNSIGNED, type {NAME}, id {NAME}")
}

fn key_rows(keys: &BTreeSet<HeldKey>) -> String {
    let row = |(part, key): &HeldKey| (*part, key.aggregate_type().to_owned(), key.aggregate_id().to_owned());
    json(keys.iter().map(row).collect::<Vec<_>>())
}
