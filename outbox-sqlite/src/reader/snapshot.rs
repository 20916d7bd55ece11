//! What one fetch looks at, [`Snapshot`], and what it answers, [`Rows`].

use std::time::Duration;

use outbox_core::{
    AggregateKey,
    store::{Page, Row, Sequence},
};
use rusqlite::{OptionalExtension, Transaction, params};

use crate::{
    SqliteConfig,
    codec::{PENDING_COLUMNS, Pending, micros},
};

/// What one fetch looks at.
pub(super) struct Snapshot<'a> {
    pub(super) config: &'a SqliteConfig,
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) now: i64,
    pub(super) known: &'a [Sequence],
}

impl Snapshot<'_> {
    pub(super) fn is_known(&self, sequence: Sequence) -> bool {
        self.known.binary_search(&sequence).is_ok()
    }

    pub(super) fn is_held(&self, key: &AggregateKey) -> rusqlite::Result<bool> {
        let sql = "SELECT EXISTS(SELECT 1 FROM {p}_holds WHERE aggregate_type = ?1 AND aggregate_id = ?2)";
        let mut statement = self.transaction.prepare_cached(&self.config.sql(sql))?;
        statement.query_row([key.aggregate_type(), key.aggregate_id()], |row| row.get(0))
    }

    /// The event of a hold, if it is one of that aggregate, pending and due.
    pub(super) fn held_row(&self, key: &AggregateKey, sequence: Sequence) -> rusqlite::Result<Option<Row>> {
        let sql = format!("SELECT {PENDING_COLUMNS} FROM {{p}} o WHERE o.sequence = ?1 AND o.status = 0");
        let mut statement = self.transaction.prepare_cached(&self.config.sql(&sql))?;
        let row = statement.query_row([sequence], |row| {
            let pending = Pending(row);
            let is_due = pending.due(self.now)? && pending.key()? == (key.clone(), true);
            if is_due { pending.row(key.clone(), self.now).map(Some) } else { Ok(None) }
        });
        Ok(row.optional()?.flatten())
    }

    /// Adds the rows of one aggregate after and up to a sequence, at most `events_max`. The answer is where
    /// to go on, if there may be more.
    pub(super) fn rows_of(
        &self,
        key: &AggregateKey,
        (mut after, up_to): (Sequence, Sequence),
        mut events_max: usize,
        found: &mut Rows,
    ) -> rusqlite::Result<Option<Sequence>> {
        let mut rows = self.transaction.prepare_cached(&self.config.sql(&format!(
            "SELECT {PENDING_COLUMNS} FROM {{p}} o INDEXED BY {{p}}_by_key WHERE o.status = 0 \
             AND o.aggregate_type = ?1 AND o.aggregate_id = ?2 AND o.sequence > ?3 AND o.sequence <= ?4 \
             ORDER BY o.sequence"
        )))?;
        let mut rows = rows.query(params![key.aggregate_type(), key.aggregate_id(), after, up_to])?;
        while let Some(row) = rows.next()? {
            let pending = Pending(row);
            let sequence = pending.sequence()?;
            if !self.is_known(sequence) && pending.due(self.now)? {
                if events_max == 0 || found.page.is_full() {
                    return Ok(Some(after));
                }
                events_max -= 1;
                found.add(pending.row(key.clone(), self.now)?);
            }
            after = sequence;
        }
        Ok(None)
    }

    pub(super) fn next_due(&self) -> rusqlite::Result<Option<Duration>> {
        let first = |sql: &str| -> rusqlite::Result<Option<i64>> {
            let mut statement = self.transaction.prepare_cached(&self.config.sql(sql))?;
            statement.query_row(params![self.now, i64::MAX], |row| row.get(0)).optional()
        };
        // The upper bound leaves out values that are not numbers, which sort after all numbers.
        let hold = first(
            "SELECT until FROM {p}_holds INDEXED BY {p}_holds_until \
             WHERE paused_at IS NULL AND until IS NOT NULL AND until > ?1 AND until < ?2 ORDER BY until LIMIT 1",
        )?;
        let scheduled = first(
            "SELECT available_at FROM {p} INDEXED BY {p}_scheduled WHERE status = 0 AND available_at IS NOT NULL \
             AND available_at > ?1 AND available_at < ?2 ORDER BY available_at LIMIT 1",
        )?;
        Ok([hold, scheduled].into_iter().flatten().min().map(|at| micros(at - self.now)))
    }
}

/// The rows of one answer, counted by the core's [`Page`].
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) page: Page,
}

impl Rows {
    pub(super) fn add(&mut self, row: Row) {
        self.page.take(row.bytes());
        self.rows.push(row);
    }
}
