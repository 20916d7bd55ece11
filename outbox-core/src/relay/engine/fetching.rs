//! Reading: what comes in goes into lanes, and when to ask for more.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{Command, Engine};
use crate::relay::{
    InvalidJson, ObservedFetch, StoreWork,
    lanes::{HoldTaken, Item},
    reading::Fetching,
};
use crate::{
    AggregateKey,
    clock::Monotonic,
    cloudevents,
    publisher::Message,
    store::{CONTENT_TYPE_DEFAULT, DueHold, FetchRequest, Fetched, HoldEnd, Partition, Row, StoredEvent},
};

/// Refuses a payload that is not what its content type says.
fn check_json(event: &StoredEvent) -> Result<(), String> {
    let Some(payload) = &event.payload else { return Ok(()) };
    let content_type = event.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT);
    if !cloudevents::is_json(content_type) {
        return Ok(());
    }
    cloudevents::check_json(payload).map_err(|error| {
        format!("content_type is {content_type:?}, and the payload is not JSON: {error} (relay.invalid_json)")
    })
}

impl Engine {
    /// There may be something new.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        self.reading.wake(now);
    }

    /// A fetch has returned, after so long.
    pub(crate) fn fetched(&mut self, now: Monotonic, fetched: Fetched, took: Duration) {
        self.account.store_answered(now, StoreWork::Reading);
        let Some(Fetching { leases, all, .. }) = self.reading.end() else { return };
        let valid: HashSet<Partition> = leases
            .iter()
            .filter(|lease| self.leases.owns(**lease) && self.leases.is_kept(lease.partition))
            .map(|lease| lease.partition)
            .collect();
        let mut found = false;
        let rows = fetched.rows.len();
        let mut observed = ObservedFetch { rows: 0, bytes: 0, more: fetched.more, took };
        self.lanes.full.take_crowded();
        for hold in fetched.due_holds {
            if valid.contains(&hold.partition) {
                let bytes = hold.row.as_ref().map(Row::bytes);
                observed.rows += usize::from(bytes.is_some());
                observed.bytes += bytes.unwrap_or_default();
                found |= self.take_hold(now, hold);
            }
        }
        for row in fetched.rows {
            if valid.contains(&row.partition) {
                let item = self.item(now, row);
                observed.rows += 1;
                observed.bytes += item.bytes;
                found |= self.lanes.insert(item);
            }
        }
        self.reading.narrow(rows, &mut self.lanes.full);
        // After the rows: those that came with the news of a pause were read before it, and stand behind what
        // is dropped.
        for key in &fetched.paused {
            let partition = self.lanes.get_mut(key).map(|lane| lane.partition);
            if self.lanes.paused(key)
                && let Some(partition) = partition
            {
                self.hold_ended(key.clone(), partition, false);
            }
        }
        self.lanes.fetch_ended();
        self.reading.read(now, found, fetched.more, fetched.next_due);
        let idle = !found && !fetched.more && all && self.lanes.known_count() == 0;
        self.account.fetched(&observed, idle);
    }

    /// The fetch failed; its reader is gone, and the next one starts anew.
    pub(crate) fn fetch_failed(&mut self, now: Monotonic, retry_at: Monotonic) {
        let Some(Fetching { ended_holds, .. }) = self.reading.end() else { return };
        for HoldEnd { key, partition, .. } in ended_holds {
            // The next reader may have started before the hold ended: it has to look again in any case.
            self.hold_ended(key, partition, true);
        }
        self.lanes.fetch_ended();
        self.reading.failed(now, retry_at);
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
        if self.leases.is_kept(partition) {
            self.reading.hold_ended(HoldEnd { key, partition, removed });
        }
    }

    pub(super) fn item(&self, now: Monotonic, row: Row) -> Item {
        let bytes = row.bytes();
        let Row { sequence, partition, key, attempts, age, content } = row;
        let content = content.and_then(|event| {
            if self.config.invalid_json == InvalidJson::Refuse {
                check_json(&event)?;
            }
            let topic = self.config.topic.resolve(&key, &event).map_err(|error| error.to_string())?;
            let source = Arc::clone(&self.config.source);
            let attempt = attempts.saturating_add(1);
            Ok(Arc::new(Message { topic, key: key.clone(), sequence, attempt, source, event }))
        });
        Item { sequence, partition, key, attempts, bytes, age, fetched_at: now, content }
    }

    /// Reads on if it is time and there is room.
    pub(crate) fn next_fetch(&mut self, now: Monotonic) -> Option<Command> {
        let relay = self.leases.relay()?;
        if self.stopping || self.reading.is_running() {
            return None;
        }
        let size = self.reading.room(&self.lanes)?;
        if self.lanes.full.take_relieved() {
            // A lane that has drained to half is still busy for a while.
            self.reading.soon();
        }
        if now < self.reading.next() {
            return None;
        }
        let leases = self.leases.readable(|partition| !self.flights.has_strays(partition));
        if leases.is_empty() {
            return None;
        }
        let full = self.lanes.full();
        let (number, ended_holds) = self.reading.begin(leases.clone(), full.is_empty());
        let known = self.lanes.known().collect();
        self.lanes.fetch_started(number);
        let (events_max, bytes_max) = (size.events, size.bytes);
        Some(Command::Fetch(relay, FetchRequest { leases, known, ended_holds, full, events_max, bytes_max }))
    }
}
