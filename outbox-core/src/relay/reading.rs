//! What is being read, how much of it, and what the reader is to be told: [`Reading`].

use super::{RelayConfig, full::Full, lanes::Lanes, polling::Polling};
use crate::{
    clock::Monotonic,
    store::{HoldEnd, Lease, Partition},
};

/// What the fetch that is running was asked.
#[derive(Debug)]
pub(crate) struct Fetching {
    pub(crate) leases: Vec<Lease>,
    pub(crate) ended_holds: Vec<HoldEnd>,
    /// Nothing was left out because its aggregate is full.
    pub(crate) all: bool,
}

/// The relay's reads of the table, one at a time.
#[derive(Debug)]
pub(crate) struct Reading {
    polling: Polling,
    fetching: Option<Fetching>,
    fetches_made: u64,
    /// How often the size of a fetch is halved: see [`narrow`](Self::narrow).
    narrowed: u32,
    /// What the next fetch tells of holds that have ended.
    ended_holds: Vec<HoldEnd>,
    fetch_events_max: usize,
    buffer_events_max: usize,
    buffer_bytes_max: usize,
}

/// How much the next fetch may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Reading {
    pub(crate) fn new(config: &RelayConfig) -> Self {
        Self {
            polling: Polling::new(config.poll_min, config.poll_max),
            fetching: None,
            fetches_made: 0,
            narrowed: 0,
            ended_holds: Vec::new(),
            fetch_events_max: config.fetch_events_max,
            buffer_events_max: config.buffer_events_max,
            buffer_bytes_max: config.buffer_bytes_max,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.fetching.is_some()
    }

    /// When to read next.
    pub(crate) fn next(&self) -> Monotonic {
        self.polling.next()
    }

    /// There may be something new: read at once.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        self.polling.wake(now);
    }

    /// There is more to be read, and it is not urgent.
    pub(crate) fn soon(&mut self) {
        self.polling.soon();
    }

    /// The hold of an aggregate has ended, which the reader is to be told.
    pub(crate) fn hold_ended(&mut self, end: HoldEnd) {
        self.ended_holds.push(end);
    }

    /// The ends of holds in these partitions are not told: another relay reads them from the start.
    pub(crate) fn forget_holds(&mut self, of: impl Fn(Partition) -> bool) {
        self.ended_holds.retain(|end| !of(end.partition));
    }

    pub(crate) fn has_ended_holds(&self) -> bool {
        !self.ended_holds.is_empty()
    }

    /// A read begins: its number, and what it tells of holds.
    pub(crate) fn begin(&mut self, leases: Vec<Lease>, all: bool) -> (u64, Vec<HoldEnd>) {
        self.fetches_made += 1;
        let ended_holds = std::mem::take(&mut self.ended_holds);
        self.fetching = Some(Fetching { leases, ended_holds: ended_holds.clone(), all });
        (self.fetches_made, ended_holds)
    }

    /// The read that was running has ended.
    pub(crate) fn end(&mut self) -> Option<Fetching> {
        self.fetching.take()
    }

    /// The read returned rows that are in the lanes by now.
    pub(crate) fn read(
        &mut self,
        now: Monotonic,
        found: bool,
        more: bool,
        next_due: Option<std::time::Duration>,
    ) {
        self.polling.read(now, found, more, next_due);
    }

    /// The read failed: the next one is not before `retry_at`.
    pub(crate) fn failed(&mut self, now: Monotonic, retry_at: Monotonic) {
        self.polling.wake(now);
        self.polling.not_before(retry_at);
    }

    /// How much the next fetch may bring; `None` if there is no room. Small reads cost as much as large ones,
    /// so a full buffer is emptied by a part before it is filled again.
    pub(crate) fn room(&self, lanes: &Lanes) -> Option<Size> {
        let events = self.buffer_events_max.saturating_sub(lanes.known_count());
        let bytes = self.buffer_bytes_max.saturating_sub(lanes.bytes());
        let (fetch_events, fetch_bytes) = (self.fetch_events(&lanes.full), self.fetch_bytes(&lanes.full));
        let events_min = fetch_events.min(self.buffer_events_max.div_ceil(4));
        let room = events >= events_min && bytes >= fetch_bytes;
        room.then(|| Size { events: events.min(fetch_events), bytes: bytes.min(fetch_bytes).max(1) })
    }

    /// The most events of the next fetch, if there is room.
    fn fetch_events(&self, full: &Full) -> usize {
        let max = self.fetch_events_max;
        (max >> self.narrowed).max(full.events_max()).min(max)
    }

    /// The most bytes of the next fetch, if there is room.
    fn fetch_bytes(&self, full: &Full) -> usize {
        let max = self.buffer_bytes_max.div_ceil(4);
        (max >> self.narrowed).max(full.bytes_max()).min(max)
    }

    /// A fetch may bring many more rows of one aggregate than its lane has room for, since it is named only
    /// afterwards. Where one such aggregate stands behind the other in the table, a few fetches would fill
    /// the buffer with a few lanes. So a fetch that brought mostly such rows is followed by one half as
    /// large.
    pub(crate) fn narrow(&mut self, rows: usize, full: &mut Full) {
        let crowded = full.take_crowded();
        if 2 * crowded <= rows {
            self.narrowed = self.narrowed.saturating_sub(1);
        } else if self.fetch_events(full) > full.events_max() {
            self.narrowed += 1;
        }
    }
}
