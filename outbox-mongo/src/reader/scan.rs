//! Reading on: what is late, and what is new.

use std::collections::HashSet;

use mongodb::bson::{Document, Timestamp, doc};
use outbox_core::{
    AggregateKey,
    store::{Page, Row, Sequence},
};

use super::{catch_up::held_among, page::Rows, position::Position, snapshot::Snapshot};
use crate::{
    codec::{
        document::{Stored, pending},
        sequence::timestamp_of,
    },
    database::index,
    error::Fault,
    schema::PENDING,
};

/// The most events that one fetch passes by, so that a parked aggregate with a long backlog does not make it
/// slow.
const SCAN_ROWS_MAX: usize = 10_000;

/// What a statement asks for at the most, in bytes: as much as the server puts into one answer.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Some of the events after a sequence, in order.
struct Chunk {
    rows: Vec<(Row, bool)>,
    /// There is nothing after the last of them.
    is_last: bool,
}

impl Position {
    /// Reads what is late and what is new, in one order, until the page is full. Returns up to where that
    /// was.
    pub(super) async fn scan(&mut self, at: &mut Snapshot<'_>, found: &mut Rows) -> Result<Sequence, Fault> {
        let mut rows_left = SCAN_ROWS_MAX.max(found.page.events_left());
        let mut position = self.bound;
        // What was caught up with is part of the answer, and not known yet.
        let mut returned: Vec<Sequence> = found.rows.iter().map(|row| row.sequence).collect();
        returned.sort_unstable();
        loop {
            if found.page.is_full() || rows_left == 0 {
                found.page.set_more();
                return Ok(position);
            }
            let chunk = self
                .chunk(at, position, &returned, rows_left.min(found.page.events_left()), &found.page)
                .await?;
            let held = held_among(at, chunk.rows.iter().map(|(row, _)| &row.key)).await?;
            for (row, valid) in chunk.rows {
                if found.page.is_full() {
                    found.page.set_more();
                    return Ok(position);
                }
                rows_left = rows_left.saturating_sub(1);
                position = row.sequence;
                self.read = self.read.max(position);
                // A key that cannot be read has no hold.
                if self.owns(row.partition) && (!valid || !self.passes_by(&row.key, &held)) {
                    found.add(row);
                } else {
                    self.passed.insert(position);
                }
            }
            if chunk.is_last {
                // What is not visible in this snapshot and has a sequence before it is late.
                self.read = self.read.max(at.moment);
                return Ok(position.max(at.moment));
            }
        }
    }

    async fn chunk(
        &mut self,
        at: &mut Snapshot<'_>,
        position: Sequence,
        returned: &[Sequence],
        rows_max: usize,
        page: &Page,
    ) -> Result<Chunk, Fault> {
        let filter = self.filter(at, position, returned);
        let rows_at_once = self.rows_at_once(page, rows_max);
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let outbox = at.database.snapshot(&at.database.names().outbox);
        let find = outbox.find(filter).hint(index(PENDING)).sort(doc! { "sequence": 1 });
        let mut cursor = find.limit(limit).batch_size(rows_at_once).session(&mut at.session).await?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while bytes < page.bytes_left() && cursor.advance(&mut at.session).await? {
            let stored = Stored::of(cursor.current());
            let Some(sequence) = stored.sequence() else {
                tracing::warn!("an event has a sequence that no server has given, and is passed by");
                continue;
            };
            let (key, valid) = stored.key();
            let row = stored.row(sequence, key, at.now);
            bytes += row.bytes();
            self.see(&row);
            rows.push((row, valid));
        }
        let is_last = bytes < page.bytes_left() && rows.len() < rows_max;
        Ok(Chunk { rows, is_last })
    }

    /// What is pending and due after a sequence, without what the relay has or wants no more of.
    pub(super) fn filter(&self, at: &Snapshot<'_>, position: Sequence, returned: &[Sequence]) -> Document {
        let after = |list: &[Sequence]| list.partition_point(|sequence| *sequence <= position);
        let known = &at.request.known[after(&at.request.known)..];
        let passed = self.passed.range(position + 1..);
        let returned = &returned[after(returned)..];
        let without: Vec<Timestamp> =
            known.iter().chain(passed).chain(returned).copied().map(timestamp_of).collect();
        let mut sequence = doc! { "$gt": timestamp_of(position) };
        if !without.is_empty() {
            sequence.insert("$nin", without);
        }
        let mut filter = doc! { "sequence": sequence, "available_at": { "$not": { "$gt": at.now } } };
        filter.extend(pending());
        filter.extend(self.of_partitions());
        if !at.request.full.is_empty() {
            let is = |key: &AggregateKey| {
                doc! { "aggregate_type": key.aggregate_type(), "aggregate_id": key.aggregate_id() }
            };
            filter.insert("$nor", at.request.full.iter().map(is).collect::<Vec<_>>());
        }
        filter
    }

    fn passes_by(&mut self, key: &AggregateKey, held: &HashSet<AggregateKey>) -> bool {
        if self.given.contains(key) || self.catch_up.contains_key(key) || self.waiting.contains(key) {
            return true;
        }
        let is_held = held.contains(key);
        if is_held {
            self.waiting.insert(key.clone());
        }
        is_held
    }

    /// How many events to ask for at once, at most `rows_max`: as many as fit into the page by the size of
    /// those that have been seen.
    pub(super) fn rows_at_once(&self, page: &Page, rows_max: usize) -> u32 {
        let fit = page.bytes_left().min(BATCH_BYTES_MAX) / self.row_bytes.max(1) + 1;
        u32::try_from(fit.min(rows_max).max(1)).unwrap_or(u32::MAX)
    }

    /// Learns from an event how large they are.
    pub(super) fn see(&mut self, row: &Row) {
        self.row_bytes = (self.row_bytes * 15 + row.bytes()) / 16;
    }
}
