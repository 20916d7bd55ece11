//! The operator's side of the store in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{EventRow, Life, partition_of},
    time::{Time, between},
};
use crate::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{EventRecord, FailureCause, Hold, HoldRecord, Sequence},
};

#[async_trait]
impl OutboxAdmin for MemoryStore {
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let state = self.lock();
        let rows = if filter.archived { &state.archive } else { &state.rows };
        let found = matching(rows, filter).take(rows_max as usize);
        Ok(found.map(|(sequence, row)| row.to_record(sequence)).collect())
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        let now = self.now();
        let state = self.lock();
        let mut holds: Vec<_> = state.holds.iter().map(|(key, hold)| to_record(key, hold, now)).collect();
        // `None` is without end, and so the last.
        holds.sort_by_key(|hold| (hold.due_in.is_none(), hold.due_in));
        holds.truncate(rows_max as usize);
        Ok(holds)
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let now = self.now();
        let mut state = self.lock();
        let failed = matching(&state.rows, filter).filter(|(_, row)| matches!(row.life, Life::Failed { .. }));
        let failed: Vec<(Sequence, AggregateKey)> =
            failed.map(|(sequence, row)| (sequence, row.key.clone())).collect();
        let mut requeued: BTreeMap<&AggregateKey, Vec<Sequence>> = BTreeMap::new();
        for (sequence, key) in &failed {
            requeued.entry(key).or_default().push(*sequence);
            state.update(*sequence, |row| {
                row.life = Life::Pending;
                row.attempts = 0;
                true
            });
        }
        for (key, sequences) in requeued {
            state.change_hold(key, |hold| Hold::requeued(hold, &sequences, now));
        }
        Ok(failed.len() as u64)
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let now = self.now();
        let mut state = self.lock();
        let discarded: Vec<(Sequence, AggregateKey)> = matching(&state.rows, filter)
            .filter(|(sequence, row)| match row.life {
                Life::Pending => {
                    state.holds.get(&row.key).is_some_and(|hold| hold.sequence == Some(*sequence))
                }
                Life::Failed { .. } => true,
                Life::Sent { .. } => false,
            })
            .map(|(sequence, row)| (sequence, row.key.clone()))
            .collect();
        for (sequence, key) in &discarded {
            state.update(*sequence, |row| {
                // The age that retention counts is that of the failure, not of giving it up.
                let at = if let Life::Failed { at, .. } = row.life { at } else { now };
                row.life = Life::Failed { at, cause: FailureCause::Discarded };
                true
            });
            state.change_hold(key, |hold| hold.map(|hold| hold.discarded(*sequence, now)));
        }
        Ok(discarded.len() as u64)
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let now = self.now();
        let mut state = self.lock();
        state.pauses += 1;
        let number = state.pauses;
        state.paused.insert(key.clone(), number);
        state.change_hold(key, |hold| Some(Hold::paused(hold, now)));
        Ok(())
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        state.paused.remove(key);
        state.change_hold(key, |hold| hold.map(|hold| hold.resumed(now)));
        Ok(state.holds.contains_key(key))
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        self.lock().paused_topics.insert(topic.to_owned());
        Ok(())
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        for hold in state.holds.values_mut() {
            *hold = hold.topic_resumed(now);
        }
        Ok(state.paused_topics.remove(topic))
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.lock().paused_topics.iter().cloned().collect())
    }
}

fn matching<'a>(
    rows: &'a BTreeMap<Sequence, EventRow>,
    filter: &'a EventFilter,
) -> impl Iterator<Item = (Sequence, &'a EventRow)> {
    let start = filter.after.map_or(Bound::Unbounded, Bound::Excluded);
    let rows = rows.range((start, Bound::Unbounded)).map(|(sequence, row)| (*sequence, row));
    rows.filter(|(sequence, row)| filter.matches(&row.to_record(*sequence)))
}

fn to_record(key: &AggregateKey, hold: &Hold<Time>, now: Time) -> HoldRecord {
    HoldRecord {
        key: key.clone(),
        partition: partition_of(key),
        sequence: hold.sequence,
        due_in: hold.until.map(|until| between(now, until)),
        reason: hold.reason,
        paused: hold.is_paused(),
    }
}
