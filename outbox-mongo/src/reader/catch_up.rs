//! What is behind the read position, by aggregate.

use std::collections::HashSet;

use mongodb::bson::{Bson, DateTime as BsonDateTime, Document, doc};
use outbox_core::{AggregateKey, store::Sequence};

use super::{page::Rows, position::Position, snapshot::Snapshot};
use crate::{
    codec::{
        document::{Stored, pending},
        sequence::timestamp_of,
    },
    database::index,
    error::Fault,
    holds::{hold_id, key_of},
    schema::PENDING_BY_KEY,
};

/// The most aggregates that are read by one statement: each is a scan of its own, and all are merged.
const AGGREGATES_AT_ONCE: usize = 32;

impl Position {
    /// Reads what is behind the read position of the aggregates that have something there, each in its turn.
    pub(super) async fn catch_up(&mut self, at: &mut Snapshot<'_>, found: &mut Rows) -> Result<(), Fault> {
        if self.catch_up.is_empty() {
            self.turns.clear();
            return Ok(());
        }
        let full: HashSet<&AggregateKey> = at.request.full.iter().collect();
        // Half of the page is left to what is new.
        let events_min = found.page.events_left() / 2;
        let mut turns_left = self.turns.len();
        while turns_left > 0 && found.page.events_left() > events_min && !found.page.is_full() {
            let mut batch: Vec<(AggregateKey, Sequence)> = Vec::new();
            while turns_left > 0 && batch.len() < AGGREGATES_AT_ONCE {
                turns_left -= 1;
                let Some(key) = self.turns.pop_front() else { break };
                if full.contains(&key) {
                    self.turns.push_back(key);
                } else if let Some(after) = self.catch_up.remove(&key) {
                    batch.push((key, after));
                }
            }
            if batch.is_empty() {
                break;
            }
            let held = held_among(at, batch.iter().map(|(key, _)| key)).await?;
            batch.retain(|(key, _)| !held.contains(key));
            self.waiting.extend(held);
            self.read_batch(at, batch, events_min, found).await?;
        }
        Ok(())
    }

    async fn read_batch(
        &mut self,
        at: &mut Snapshot<'_>,
        batch: Vec<(AggregateKey, Sequence)>,
        events_min: usize,
        found: &mut Rows,
    ) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        let filter = self.of_batch(&batch, at.now);
        let count = self.rows_at_once(&found.page, found.page.events_left().saturating_sub(events_min) + 1);
        let outbox = at.database.snapshot(&at.database.names().outbox);
        let find = outbox.find(filter).hint(index(PENDING_BY_KEY)).sort(doc! { "sequence": 1 });
        let mut cursor = find.batch_size(count).session(&mut at.session).await?;
        let mut stopped_at = None;
        let mut last = 0;
        while cursor.advance(&mut at.session).await? {
            let stored = Stored::of(cursor.current());
            let Some(sequence) = stored.sequence() else { continue };
            if !at.is_known(sequence) {
                if found.page.events_left() <= events_min || found.page.is_full() {
                    stopped_at = Some(last);
                    break;
                }
                let row = stored.row(sequence, stored.key().0, at.now);
                self.see(&row);
                found.add(row);
            }
            last = sequence;
        }
        // In the order of sequences over all of them: up to there each has been read.
        if let Some(stopped_at) = stopped_at {
            for (key, after) in batch {
                self.catch_up_after(&key, after.max(stopped_at));
            }
        }
        Ok(())
    }

    /// What is pending and due of these aggregates, up to the read position.
    pub(super) fn of_batch(&self, batch: &[(AggregateKey, Sequence)], now: BsonDateTime) -> Document {
        let read = timestamp_of(self.read);
        let range = |(key, after): &(AggregateKey, Sequence)| {
            doc! {
                "aggregate_type": key.aggregate_type(), "aggregate_id": key.aggregate_id(),
                "sequence": { "$gt": timestamp_of(*after), "$lte": read },
            }
        };
        let mut filter = doc! { "$or": batch.iter().map(range).collect::<Vec<_>>() };
        filter.extend(pending());
        filter.insert("available_at", doc! { "$not": { "$gt": now } });
        filter
    }
}

/// The aggregates among these that have a hold.
pub(super) async fn held_among<'k>(
    at: &mut Snapshot<'_>,
    keys: impl Iterator<Item = &'k AggregateKey>,
) -> Result<HashSet<AggregateKey>, Fault> {
    let mut held = HashSet::new();
    if !at.any_hold {
        return Ok(held);
    }
    let ids: Vec<Bson> = keys.map(hold_id).collect();
    let holds = at.database.snapshot(&at.database.names().holds);
    let find = holds.find(doc! { "_id": { "$in": ids } }).projection(doc! { "_id": 1 });
    let mut cursor = find.session(&mut at.session).await?;
    while cursor.advance(&mut at.session).await? {
        held.extend(key_of(cursor.current()));
    }
    Ok(held)
}
