//! Holds: the rules by which they change, and how they are read and written.
//!
//! Whoever changes a hold has locked the row of its partition, so that holds can be read, changed here and written
//! back without another coming between.

use std::collections::{BTreeMap, BTreeSet};

use outbox_core::{AggregateKey, HoldReason, Outcome, Partition, Sequence, Settlement, Successors, Unhold};
use sqlx::{MySqlConnection, Row as _};

use crate::{
    codec::{json, micros, micros_of, partition_code, rows, time_of},
    database::Database,
};

/// An aggregate in its partition.
pub(crate) type HeldKey = (u8, AggregateKey);

/// A hold as it is stored. Times are microseconds of the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) sequence: Option<Sequence>,
    /// `None` is without end.
    pub(crate) until: Option<i64>,
    pub(crate) reason: HoldReason,
    pub(crate) paused_at: Option<i64>,
}

impl Hold {
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    pub(crate) fn is_due(&self, now: i64) -> bool {
        !self.is_paused() && self.until.is_some_and(|until| until <= now)
    }

    /// The hold becomes due now, unless it is paused.
    pub(crate) fn end(&mut self, now: i64) {
        if !self.is_paused() {
            self.until = Some(now);
        }
    }

    /// Adds an event that is to wait until `until`: see `OutboxStore::settle` for the rules.
    fn add(&mut self, sequence: Sequence, until: Option<i64>, reason: HoldReason) {
        let same = self.sequence == Some(sequence);
        let later = match (until, self.until) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(new), Some(old)) => new > old,
        };
        if self.sequence.is_none() || same || later {
            self.reason = reason;
        }
        if !self.is_paused() && (same || later) {
            self.until = until;
        }
        self.sequence = Some(self.sequence.map_or(sequence, |held| held.min(sequence)));
    }
}

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
        let sql = format!(
            "SELECT h.part, h.aggregate_type, h.aggregate_id, h.sequence, {} AS until, h.reason, {} AS paused_at \
             FROM {} STRAIGHT_JOIN {{holds}} h FORCE INDEX (PRIMARY) \
             ON h.part = k.part AND h.aggregate_type = k.type AND h.aggregate_id = k.id FOR UPDATE",
            micros_of("h.until"),
            micros_of("h.paused_at"),
            rows("k", KEY_COLUMNS)
        );
        let query = sqlx::query(database.tables().sql(&sql)).bind(key_rows(&keys));
        for row in query.fetch_all(connection).await? {
            let text = |index| row.try_get::<&[u8], _>(index).map(String::from_utf8_lossy);
            let reason: String = row.try_get(5)?;
            let hold = Hold {
                sequence: row.try_get(3)?,
                until: row.try_get(4)?,
                reason: HoldReason::parse(&reason).unwrap_or(HoldReason::Paused),
                paused_at: row.try_get(6)?,
            };
            holds.holds.insert((row.try_get(0)?, AggregateKey::new(&text(1)?, &text(2)?)), hold);
        }
        Ok(holds)
    }

    /// Applies what became of an event.
    pub(crate) fn settle(&mut self, settlement: &Settlement) {
        let Settlement { sequence, partition, ref key, .. } = *settlement;
        match &settlement.outcome {
            Outcome::Sent | Outcome::Failed { successors: Successors::Release, .. } => {
                self.remove(key, partition, sequence);
            }
            Outcome::Retry { after, reason, .. } => {
                let until = self.now.saturating_add(micros(*after));
                self.add(key, partition, sequence, Some(until), *reason);
            }
            Outcome::Failed { successors: Successors::Park, .. } => {
                self.add(key, partition, sequence, None, HoldReason::Parked);
            }
        }
    }

    /// The event is done with: its hold goes, but a pause stays.
    fn remove(&mut self, key: &AggregateKey, partition: Partition, sequence: Sequence) {
        let key = (partition_code(partition), key.clone());
        let Some(hold) = self.holds.get_mut(&key) else { return };
        if hold.sequence != Some(sequence) {
            return;
        }
        if hold.is_paused() {
            (hold.sequence, hold.reason) = (None, HoldReason::Paused);
        } else {
            self.holds.remove(&key);
        }
        self.changed.insert(key);
    }

    fn add(
        &mut self,
        key: &AggregateKey,
        partition: Partition,
        sequence: Sequence,
        until: Option<i64>,
        reason: HoldReason,
    ) {
        let new = Hold { sequence: Some(sequence), until, reason, paused_at: None };
        self.change((partition_code(partition), key.clone()), |hold| match hold {
            Some(mut hold) => {
                hold.add(sequence, until, reason);
                hold
            }
            None => new,
        });
    }

    /// Puts what `change` makes of an aggregate's hold in its place.
    pub(crate) fn change(&mut self, key: HeldKey, change: impl FnOnce(Option<Hold>) -> Hold) {
        let hold = change(self.holds.remove(&key));
        self.holds.insert(key.clone(), hold);
        self.changed.insert(key);
    }

    /// Removes a hold that holds nothing: it has not changed since it was read, and `waits` is not among the events
    /// that are pending and due.
    pub(crate) fn unhold(&mut self, unhold: &Unhold, waits: &BTreeSet<Sequence>) {
        let key = (partition_code(unhold.partition), unhold.key.clone());
        let holds_nothing = self.holds.get(&key).is_some_and(|hold| {
            hold.sequence == unhold.sequence
                && hold.is_due(self.now)
                && !hold.sequence.is_some_and(|sequence| waits.contains(&sequence))
        });
        if holds_nothing {
            self.holds.remove(&key);
            self.changed.insert(key);
        }
    }

    pub(crate) fn get(&self, key: &HeldKey) -> Option<&Hold> {
        self.holds.get(key)
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
                rows("k", KEY_COLUMNS)
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
            rows("k", HOLD_COLUMNS)
        );
        let query = sqlx::query(database.tables().sql(&sql)).bind(json(written));
        query.execute(connection).await.map(drop)
    }
}

const KEY_COLUMNS: &str = "part SMALLINT UNSIGNED, type VARBINARY(1024), id VARBINARY(1024)";
const HOLD_COLUMNS: &str = "part SMALLINT UNSIGNED, type VARBINARY(1024), id VARBINARY(1024), sequence BIGINT, \
                            until BIGINT, reason VARCHAR(16), paused_at BIGINT";

fn key_rows(keys: &BTreeSet<HeldKey>) -> String {
    let row = |(part, key): &HeldKey| (*part, key.aggregate_type().to_owned(), key.aggregate_id().to_owned());
    json(keys.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outbox_core::FailureCause;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn key() -> AggregateKey {
        AggregateKey::new("order", "1")
    }

    fn holds(hold: Option<Hold>) -> Holds {
        let holds = hold.map(|hold| ((7, key()), hold)).into_iter().collect();
        Holds { holds, changed: BTreeSet::new(), now: NOW }
    }

    fn hold(sequence: Option<Sequence>, until: Option<i64>, reason: HoldReason) -> Hold {
        Hold { sequence, until, reason, paused_at: None }
    }

    fn settled(before: Option<Hold>, sequence: Sequence, outcome: Outcome) -> Option<Hold> {
        let mut holds = holds(before);
        holds.settle(&Settlement { sequence, partition: 7, key: key(), attempts: 1, outcome });
        holds.holds.remove(&(7, key()))
    }

    fn retry(micros: u64) -> Outcome {
        let after = Duration::from_micros(micros);
        Outcome::Retry { after, error: String::new(), reason: HoldReason::Backoff }
    }

    fn failed(successors: Successors) -> Outcome {
        Outcome::Failed { cause: FailureCause::Exhausted, error: String::new(), successors }
    }

    #[test]
    fn the_end_of_an_event_ends_its_own_hold_only() {
        let own = Some(hold(Some(3), Some(NOW), HoldReason::Backoff));
        assert_eq!(settled(own.clone(), 3, Outcome::Sent), None);
        assert_eq!(settled(own.clone(), 3, failed(Successors::Release)), None);
        assert_eq!(settled(own.clone(), 4, Outcome::Sent), own);
    }

    #[test]
    fn a_pause_stays_a_pause() {
        let paused = Hold { paused_at: Some(5), ..hold(Some(3), None, HoldReason::Backoff) };
        let plain = Hold { sequence: None, reason: HoldReason::Paused, ..paused };
        assert_eq!(settled(Some(paused), 3, Outcome::Sent), Some(plain.clone()));
        let with_event = Hold { sequence: Some(4), reason: HoldReason::Backoff, ..plain };
        assert_eq!(settled(Some(plain), 4, retry(9)), Some(with_event));
    }

    #[test]
    fn of_two_events_the_lower_sequence_and_the_later_time_count() {
        let before = |until| Some(hold(Some(5), Some(until), HoldReason::Requeued));
        let after = settled(before(NOW + 20), 3, retry(10));
        assert_eq!(after, Some(hold(Some(3), Some(NOW + 20), HoldReason::Requeued)));
        let after = settled(before(NOW + 20), 8, retry(30));
        assert_eq!(after, Some(hold(Some(5), Some(NOW + 30), HoldReason::Backoff)));
        let own = settled(before(NOW + 20), 5, retry(10));
        assert_eq!(own, Some(hold(Some(5), Some(NOW + 10), HoldReason::Backoff)));
        let parked = settled(before(NOW + 20), 5, failed(Successors::Park));
        assert_eq!(parked, Some(hold(Some(5), None, HoldReason::Parked)));
        assert_eq!(settled(parked.clone(), 6, retry(10)), parked);
    }

    #[test]
    fn only_a_hold_that_holds_nothing_is_unheld() {
        let unhold = Unhold { key: key(), partition: 7, sequence: Some(3) };
        let left = |hold: Hold, waits: &[Sequence]| {
            let mut holds = holds(Some(hold));
            holds.unhold(&unhold, &waits.iter().copied().collect());
            holds.holds.len()
        };
        let due = || hold(Some(3), Some(NOW), HoldReason::Backoff);
        assert_eq!(left(due(), &[]), 0);
        assert_eq!(left(due(), &[3]), 1);
        assert_eq!(left(hold(Some(3), Some(NOW + 1), HoldReason::Backoff), &[]), 1);
        assert_eq!(left(hold(Some(2), Some(NOW), HoldReason::Backoff), &[]), 1);
        assert_eq!(left(Hold { paused_at: Some(1), ..due() }, &[]), 1);
    }
}
