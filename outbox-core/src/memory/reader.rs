//! The plain scan from the lowest pending row.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use super::{
    database::Database,
    state::State,
    time::{Time, between},
};
use crate::{
    AggregateKey, StoreError,
    store::{DueHold, Epoch, FetchRequest, Fetched, OutboxReader, Page, Partition, Row},
};

/// The most due holds of one fetch. Bounded so that one long outage, ended at once, does not fill the memory.
const DUE_HOLDS_MAX: usize = 256;

/// Scans from the lowest pending row each time, so that late rows, scheduled rows and new partitions need no
/// memory. All it remembers is which due holds it has returned, so that the others get their turn.
pub(super) struct MemoryReader {
    database: Database,
    leases: BTreeMap<Partition, Epoch>,
    holds_out: BTreeMap<AggregateKey, Partition>,
    pauses_told: u64,
}

impl MemoryReader {
    pub(super) fn new(database: Database) -> Self {
        let pauses_told = database.lock().pauses;
        Self { database, leases: BTreeMap::new(), holds_out: BTreeMap::new(), pauses_told }
    }

    /// Takes note of what the relay owns and has dealt with. What it was given under another lease is
    /// forgotten.
    fn advance(&mut self, request: &FetchRequest) {
        let leases = request.leases.iter().map(|lease| (lease.partition, lease.epoch)).collect();
        let leases_before = std::mem::replace(&mut self.leases, leases);
        self.holds_out.retain(|_, partition| {
            self.leases.contains_key(partition) && self.leases.get(partition) == leases_before.get(partition)
        });
        for end in &request.ended_holds {
            self.holds_out.remove(&end.key);
        }
    }

    fn due_holds(&mut self, state: &State, page: &mut Page, now: Time) -> Vec<DueHold> {
        let mut due: Vec<_> = state
            .holds
            .iter()
            .filter(|(key, hold)| hold.is_due(now) && !self.holds_out.contains_key(*key))
            .map(|(key, hold)| (hold.until, key, hold))
            .filter_map(|(until, key, hold)| {
                let partition = super::state::partition_of(key);
                self.leases.contains_key(&partition).then_some((until, key, partition, hold.sequence))
            })
            .collect();
        due.sort_unstable_by_key(|(until, key, ..)| (*until, *key));
        let mut found = Vec::new();
        for (_, key, partition, sequence) in due {
            if found.len() == DUE_HOLDS_MAX || page.is_full() {
                page.set_more();
                break;
            }
            let held = sequence.and_then(|sequence| Some((sequence, state.pending_due(sequence, now)?)));
            let row = held.map(|(sequence, row)| row.to_row(sequence, now));
            if let Some(row) = &row {
                page.take(row.bytes());
            }
            self.holds_out.insert(key.clone(), partition);
            found.push(DueHold { key: key.clone(), partition, sequence, row });
        }
        found
    }

    fn scan(&self, state: &State, request: &FetchRequest, page: &mut Page, now: Time) -> Vec<Row> {
        let known: BTreeSet<_> = request.known.iter().collect();
        let mut rows = Vec::new();
        for sequence in &state.pending {
            let Some(row) = state.rows.get(sequence) else { continue };
            if !self.leases.contains_key(&row.partition)
                || known.contains(sequence)
                || !row.is_due(now)
                || state.holds.contains_key(&row.key)
                || request.full.contains(&row.key)
            {
                continue;
            }
            if page.is_full() {
                page.set_more();
                break;
            }
            let row = row.to_row(*sequence, now);
            page.take(row.bytes());
            rows.push(row);
        }
        rows
    }

    fn paused(&mut self, state: &State) -> Vec<AggregateKey> {
        let told = std::mem::replace(&mut self.pauses_told, state.pauses);
        let new = state.paused.iter().filter(|(_, number)| **number > told);
        new.map(|(key, _)| key.clone())
            .filter(|key| self.leases.contains_key(&super::state::partition_of(key)))
            .collect()
    }

    fn next_due(&self, state: &State, now: Time) -> Option<std::time::Duration> {
        let held = state
            .holds
            .iter()
            .filter_map(|(key, hold)| Some((key, hold.until.filter(|until| *until > now)?)))
            .filter(|(key, _)| self.leases.contains_key(&super::state::partition_of(key)))
            .map(|(_, until)| until)
            .min();
        let scheduled = state
            .scheduled
            .range((now, crate::store::Sequence::MAX)..)
            .find(|(_, sequence)| {
                let row = state.rows.get(sequence);
                row.is_some_and(|row| self.leases.contains_key(&row.partition))
            })
            .map(|(at, _)| *at);
        [held, scheduled].into_iter().flatten().min().map(|at| between(now, at))
    }
}

#[async_trait]
impl OutboxReader for MemoryReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        self.advance(&request);
        let now = self.database.now();
        let database = self.database.clone();
        let state = database.lock();
        let mut page = Page::new(&request);
        // Due holds first: everything of their aggregate waits for them.
        let due_holds = self.due_holds(&state, &mut page, now);
        let rows = self.scan(&state, &request, &mut page, now);
        let paused = self.paused(&state);
        Ok(Fetched { rows, due_holds, paused, more: page.more(), next_due: self.next_due(&state, now) })
    }
}
