//! The operator's side of the store in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{EventRow, Hold, Life, State, Time, between, partition_of},
};
use crate::{
    AggregateKey, EventFilter, EventRecord, FailureCause, HoldReason, HoldRecord, OutboxAdmin, Sequence,
    StoreError,
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
        let mut first: BTreeMap<&AggregateKey, Sequence> = BTreeMap::new();
        for (sequence, key) in &failed {
            first.entry(key).or_insert(*sequence);
            state.update(*sequence, |row| {
                row.life = Life::Pending;
                row.attempts = 0;
                true
            });
        }
        // A hold of one of these events waits for nothing else than this.
        for (sequence, key) in &failed {
            if let Some(hold) = state.holds.get_mut(key)
                && hold.sequence == Some(*sequence)
            {
                hold.until = Some(now);
                hold.reason = HoldReason::Requeued;
            }
        }
        for (key, sequence) in first {
            state.hold_requeued(key, sequence, now);
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
            if let Some(hold) = state.holds.get_mut(key)
                && hold.sequence == Some(*sequence)
            {
                hold.until = Some(now);
            }
        }
        Ok(discarded.len() as u64)
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.pauses += 1;
        let pause = state.pauses;
        let plain = Hold { sequence: None, until: None, reason: HoldReason::Paused, paused: None };
        state.holds.entry(key.clone()).or_insert(plain).paused = Some(pause);
        Ok(())
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        let Some(hold) = state.holds.get_mut(key) else { return Ok(false) };
        hold.paused = None;
        hold.until = Some(now);
        Ok(true)
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        self.lock().paused_topics.insert(topic.to_owned());
        Ok(())
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        for hold in state.holds.values_mut().filter(|hold| hold.reason == HoldReason::Topic) {
            hold.until = Some(now);
        }
        Ok(state.paused_topics.remove(topic))
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.lock().paused_topics.iter().cloned().collect())
    }
}

impl State {
    fn hold_requeued(&mut self, key: &AggregateKey, sequence: Sequence, now: Time) {
        let new =
            Hold { sequence: Some(sequence), until: Some(now), reason: HoldReason::Requeued, paused: None };
        let hold = self.holds.entry(key.clone()).or_insert(new);
        match hold.sequence {
            Some(held) if held != sequence => hold.sequence = Some(held.min(sequence)),
            // Its own event, or none: it waits for nothing else than being put back.
            Some(_) | None => *hold = Hold { paused: hold.paused, ..new },
        }
    }
}

fn matching<'a>(
    rows: &'a BTreeMap<Sequence, EventRow>,
    filter: &'a EventFilter,
) -> impl Iterator<Item = (Sequence, &'a EventRow)> {
    let start = filter.after.map_or(Bound::Unbounded, Bound::Excluded);
    let rows = rows.range((start, Bound::Unbounded)).map(|(sequence, row)| (*sequence, row));
    rows.filter(|(_, row)| matches(row, filter))
}

fn matches(row: &EventRow, filter: &EventFilter) -> bool {
    let event = row.content.as_ref().ok();
    let is = |wanted: &Option<String>, actual: &str| wanted.as_ref().is_none_or(|wanted| wanted == actual);
    (filter.ids.is_empty() || event.is_some_and(|event| filter.ids.contains(&event.id)))
        && filter.status.is_none_or(|status| row.life.status() == status)
        && filter.cause.is_none_or(|cause| row.life.cause() == Some(cause))
        && is(&filter.aggregate_type, row.key.aggregate_type())
        && is(&filter.aggregate_id, row.key.aggregate_id())
        && is(&filter.event_type, event.map_or("", |event| event.event_type.as_str()))
        && filter.created_from.is_none_or(|from| row.created_at >= from)
        && filter.created_before.is_none_or(|before| row.created_at < before)
}

fn to_record(key: &AggregateKey, hold: &Hold, now: Time) -> HoldRecord {
    let paused = hold.paused.is_some();
    HoldRecord {
        key: key.clone(),
        partition: partition_of(key),
        sequence: hold.sequence,
        due_in: hold.until.filter(|_| !paused).map(|until| between(now, until)),
        reason: hold.reason,
        paused,
    }
}
