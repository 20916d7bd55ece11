//! Holds whose time has come, each with its event.

use std::collections::HashMap;

use mongodb::bson::{Timestamp, doc};
use outbox_core::{
    AggregateKey,
    store::{DueHold, Page, Row, Sequence},
};

use super::{position::Position, snapshot::Snapshot};
use crate::{
    codec::{
        document::{Stored, pending},
        sequence::timestamp_of,
    },
    database::index,
    error::Fault,
    holds::Held,
    schema::PENDING,
};

/// The most held events that are asked for at once: with the largest payloads they still fit into an answer.
const EVENTS_AT_ONCE: usize = 32;

impl Position {
    pub(super) async fn due_holds(
        &mut self,
        at: &mut Snapshot<'_>,
        due: Vec<(AggregateKey, Held)>,
        page: &mut Page,
    ) -> Result<Vec<DueHold>, Fault> {
        // A relay that still holds the event would not know this one for another attempt, and never answer.
        let is_new = |(key, held): &(AggregateKey, Held)| {
            self.owns(held.partition)
                && !self.given.contains(key)
                && !held.hold.sequence.is_some_and(|sequence| at.is_known(sequence))
        };
        let mut due: Vec<_> = due.into_iter().filter(is_new).collect();
        // Half of the page is left to the others, so that a topic which comes back does not stop the rest.
        let events_max = page.events_left().div_ceil(2);
        let mut found = Vec::new();
        let mut events = 0;
        while !due.is_empty() {
            let count = EVENTS_AT_ONCE.min(events_max - events).min(due.len());
            if count == 0 || page.is_full() {
                page.set_more();
                break;
            }
            let later = due.split_off(count);
            let mut rows = held_rows(at, &due).await?;
            for (key, Held { partition, hold }) in std::mem::replace(&mut due, later) {
                if page.is_full() {
                    page.set_more();
                    break;
                }
                let row =
                    hold.sequence.and_then(|sequence| rows.remove(&sequence)).filter(|row| row.key == key);
                if let Some(row) = &row {
                    page.take(row.bytes());
                    events += 1;
                }
                self.catch_up.remove(&key);
                self.given.insert(key.clone());
                found.push(DueHold::new(key, partition, hold.sequence, row));
            }
        }
        Ok(found)
    }
}

/// The events of these holds that are pending and due.
async fn held_rows(
    at: &mut Snapshot<'_>,
    holds: &[(AggregateKey, Held)],
) -> Result<HashMap<Sequence, Row>, Fault> {
    let sequences: Vec<Timestamp> =
        holds.iter().filter_map(|(_, held)| held.hold.sequence).map(timestamp_of).collect();
    let mut rows = HashMap::with_capacity(sequences.len());
    if sequences.is_empty() {
        return Ok(rows);
    }
    let mut filter = doc! { "sequence": { "$in": sequences } };
    filter.extend(pending());
    let mut cursor = at
        .database
        .snapshot(&at.database.names().outbox)
        .find(filter)
        .hint(index(PENDING))
        .session(&mut at.session)
        .await?;
    while cursor.advance(&mut at.session).await? {
        let stored = Stored::of(cursor.current());
        let ((key, valid), Some(sequence)) = (stored.key(), stored.sequence()) else { continue };
        if valid && stored.is_due(at.now) {
            rows.insert(sequence, stored.row(sequence, key, at.now));
        }
    }
    Ok(rows)
}
