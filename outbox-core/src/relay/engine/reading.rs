//! Reading: what comes in goes into lanes, and when to ask for more.

use std::{collections::HashSet, sync::Arc};

use super::{Command, Engine, Fetching};
use crate::relay::lanes::{HoldTaken, Item};
use crate::{
    AggregateKey, DueHold, FetchRequest, Fetched, HoldEnd, Lease, Message, Monotonic, Partition, Row,
};

impl Engine {
    /// There may be something new.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        self.polling.wake(now);
    }

    pub(crate) fn fetched(&mut self, now: Monotonic, fetched: Fetched) {
        let Some(Fetching { leases, all, .. }) = self.fetching.take() else { return };
        let valid: HashSet<Partition> = leases
            .iter()
            .filter(|lease| {
                self.leases
                    .get(&lease.partition)
                    .is_some_and(|state| state.lease == **lease && !state.draining)
            })
            .map(|lease| lease.partition)
            .collect();
        let mut found = false;
        let rows = fetched.rows.len();
        self.lanes.full.take_crowded();
        for hold in fetched.due_holds {
            if valid.contains(&hold.partition) {
                found |= self.take_hold(now, hold);
            }
        }
        for row in fetched.rows {
            if valid.contains(&row.partition) {
                let item = self.item(now, row);
                found |= self.lanes.insert(item);
            }
        }
        self.narrow(rows);
        // After the rows: those that came with the news of a pause were read before it, and stand behind what is dropped.
        for key in &fetched.paused {
            let partition = self.lanes.get_mut(key).map(|lane| lane.partition);
            if self.lanes.paused(key)
                && let Some(partition) = partition
            {
                self.hold_ended(key.clone(), partition, false);
            }
        }
        self.lanes.fetch_ended();
        self.polling.read(now, found, fetched.more, fetched.next_due);
        self.status.fetches += 1;
        if !found && !fetched.more && all && self.lanes.known_count() == 0 {
            self.status.idle_reads += 1;
        }
    }

    /// The fetch failed; its reader is gone, and the next one starts anew.
    pub(crate) fn fetch_failed(&mut self, now: Monotonic, retry_at: Monotonic) {
        let Some(Fetching { ended_holds, .. }) = self.fetching.take() else { return };
        for HoldEnd { key, partition, .. } in ended_holds {
            // The next reader may have started before the hold ended: it has to look again in any case.
            self.hold_ended(key, partition, true);
        }
        self.lanes.fetch_ended();
        self.polling.wake(now);
        self.polling.not_before(retry_at);
    }

    pub(super) fn take_hold(&mut self, now: Monotonic, hold: DueHold) -> bool {
        let DueHold { key, partition, sequence, row } = hold;
        let item = row.map(|row| self.item(now, row));
        match self.lanes.insert_hold(&key, partition, sequence, item) {
            HoldTaken::Taken => true,
            HoldTaken::InHand => false,
            HoldTaken::Stale => {
                // Reading on is safe in any case: a hold that is still there keeps its aggregate out.
                self.hold_ended(key, partition, true);
                false
            }
        }
    }

    pub(super) fn hold_ended(&mut self, key: AggregateKey, partition: Partition, removed: bool) {
        if self.leases.get(&partition).is_some_and(|state| !state.draining) {
            self.ended_holds.push(HoldEnd { key, partition, removed });
        }
    }

    pub(super) fn item(&self, now: Monotonic, row: Row) -> Item {
        let bytes = row.bytes();
        let Row { sequence, partition, key, attempts, age, content } = row;
        let content = content.and_then(|event| {
            let topic = self.config.topic.resolve(&key, &event).map_err(|error| error.to_string())?;
            let source = Arc::clone(&self.config.source);
            let attempt = attempts.saturating_add(1);
            Ok(Arc::new(Message { topic, key: key.clone(), sequence, attempt, source, event }))
        });
        Item { sequence, partition, key, attempts, bytes, age, fetched_at: now, content }
    }

    /// Reads on if it is time and there is room.
    pub(crate) fn next_fetch(&mut self, now: Monotonic) -> Option<Command> {
        let relay = self.relay?;
        if self.stopping || self.fetching.is_some() || !self.has_room() {
            return None;
        }
        if self.lanes.full.take_relieved() {
            // A lane that has drained to half is still busy for a while.
            self.polling.soon();
        }
        if now < self.polling.next() {
            return None;
        }
        let leases: Vec<Lease> = self
            .leases
            .values()
            .filter(|state| !state.draining && !self.strays.contains_key(&state.lease.partition))
            .map(|state| state.lease)
            .collect();
        if leases.is_empty() {
            return None;
        }
        let room = self.config.buffer_events_max - self.lanes.known_count();
        let room_bytes = self.config.buffer_bytes_max.saturating_sub(self.lanes.bytes());
        let request = FetchRequest {
            leases: leases.clone(),
            known: self.lanes.known().collect(),
            ended_holds: std::mem::take(&mut self.ended_holds),
            full: self.lanes.full(),
            events_max: room.min(self.fetch_events()),
            bytes_max: room_bytes.min(self.fetch_bytes()).max(1),
        };
        self.fetches_made += 1;
        let (ended_holds, all) = (request.ended_holds.clone(), request.full.is_empty());
        self.fetching = Some(Fetching { leases, ended_holds, all });
        self.lanes.fetch_started(self.fetches_made);
        Some(Command::Fetch(relay, request))
    }

    /// Small reads cost as much as large ones, so a full buffer is emptied by a part before it is filled again.
    pub(super) fn has_room(&self) -> bool {
        let known = self.lanes.known_count();
        let room_min = self.fetch_events().min(self.config.buffer_events_max.div_ceil(4));
        self.config.buffer_events_max.saturating_sub(known) >= room_min
            && self.config.buffer_bytes_max.saturating_sub(self.lanes.bytes()) >= self.fetch_bytes()
    }

    /// The most events of the next fetch, if there is room.
    fn fetch_events(&self) -> usize {
        let max = self.config.fetch_events_max;
        (max >> self.narrowed).max(self.lanes.full.events_max()).min(max)
    }

    /// The most bytes of the next fetch, if there is room.
    fn fetch_bytes(&self) -> usize {
        let max = self.config.buffer_bytes_max.div_ceil(4);
        (max >> self.narrowed).max(self.lanes.full.bytes_max()).min(max)
    }

    /// A fetch may bring many more rows of one aggregate than its lane has room for, since it is named only afterwards.
    /// Where one such aggregate stands behind the other in the table, a few fetches would fill the buffer with a few
    /// lanes. So a fetch that brought mostly such rows is followed by one half as large.
    fn narrow(&mut self, rows: usize) {
        let crowded = self.lanes.full.take_crowded();
        if 2 * crowded <= rows {
            self.narrowed = self.narrowed.saturating_sub(1);
        } else if self.fetch_events() > self.lanes.full.events_max() {
            self.narrowed += 1;
        }
    }
}
