//! The events in memory, a lane for each aggregate: what may be published next, and what must wait.
//!
//! ```text
//!           head published            acknowledged
//!   Open ───────────────────▶ InFlight ───────────────▶ Open
//!    ▲                           │ failed
//!    │ failure committed,        ▼
//!    └───────────────────── Settling ───────────────▶ Held ──▶ (gone, once fetches that began before have ended)
//!          successors released         hold committed
//! ```
//!
//! A lane never leaves `Settling` before the store has committed: releasing a successor first is what inverts
//! order.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    RelayConfig,
    full::{Full, Load},
};
use crate::{
    AggregateKey,
    clock::Monotonic,
    publisher::Message,
    store::{Partition, Sequence},
};

/// A row, with what the relay made of it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) sequence: Sequence,
    pub(crate) partition: Partition,
    pub(crate) key: AggregateKey,
    pub(crate) attempts: u32,
    pub(crate) bytes: usize,
    /// The age by the store's clock at `fetched_at`.
    pub(crate) age: Duration,
    pub(crate) fetched_at: Monotonic,
    /// The message, or why it cannot be made.
    pub(crate) content: Result<Arc<Message>, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneState {
    Open,
    InFlight,
    Settling,
    /// A hold is committed. Fetches up to this one may have begun before that: what they bring is stale.
    Held {
        until_fetch: u64,
    },
}

/// A due hold that is being worked off.
#[derive(Debug)]
pub(crate) struct HoldWork {
    /// The sequence in the hold's row.
    pub(crate) sequence: Option<Sequence>,
    /// Its event, unless it is in flight or being settled, or the hold holds nothing.
    pub(crate) item: Option<Item>,
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) partition: Partition,
    pub(crate) state: LaneState,
    pub(crate) hold: Option<HoldWork>,
    /// No event of this lane has been published yet: its head may be what a dead relay died of.
    pub(crate) first: bool,
    /// The head is to be published with nothing beside it.
    pub(crate) alone: bool,
    /// It stands in a queue of lanes that may publish.
    pub(crate) queued: bool,
    /// The store refuses to record something of it: nothing more is published.
    aside: bool,
    queue: VecDeque<Item>,
    /// What waits in `queue`.
    load: Load,
}

impl Lane {
    fn new(partition: Partition) -> Self {
        Self {
            partition,
            state: LaneState::Open,
            hold: None,
            first: true,
            alone: false,
            queued: false,
            aside: false,
            queue: VecDeque::new(),
            load: Load::default(),
        }
    }

    /// The event that would be published next.
    pub(crate) fn head(&self) -> Option<&Item> {
        match &self.hold {
            Some(hold) => hold.item.as_ref(),
            None => self.queue.front(),
        }
    }

    fn is_empty(&self) -> bool {
        self.state == LaneState::Open && self.queue.is_empty() && self.hold.is_none() && !self.aside
    }
}

/// All lanes, and the sequences they hold.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: HashMap<AggregateKey, Lane>,
    ready: VecDeque<AggregateKey>,
    alone: VecDeque<AggregateKey>,
    known: BTreeMap<Sequence, Partition>,
    bytes: usize,
    /// The fetch that is running.
    fetch: Option<u64>,
    lingering: Vec<Sequence>,
    held: Vec<AggregateKey>,
    pub(crate) full: Full,
}

impl Lanes {
    pub(crate) fn new(config: &RelayConfig) -> Self {
        Self {
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            alone: VecDeque::new(),
            known: BTreeMap::new(),
            bytes: 0,
            fetch: None,
            lingering: Vec::new(),
            held: Vec::new(),
            full: Full::new(config),
        }
    }

    /// The aggregates that are full, the fullest if there are more than can be named.
    pub(crate) fn full(&self) -> Vec<AggregateKey> {
        self.full.named(|key| self.lanes.get(key).map(|lane| &lane.load))
    }

    /// Sequences that are held in memory, in flight, being settled, or settled while a fetch is running.
    pub(crate) fn known(&self) -> impl Iterator<Item = Sequence> {
        self.known.keys().copied()
    }

    pub(crate) fn known_count(&self) -> usize {
        self.known.len()
    }

    /// Bytes of the items in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get_mut(&mut self, key: &AggregateKey) -> Option<&mut Lane> {
        self.lanes.get_mut(key)
    }

    pub(crate) fn fetch_started(&mut self, fetch: u64) {
        self.fetch = Some(fetch);
    }

    /// The fetch has returned and its rows are in: what was kept because of it can go.
    pub(crate) fn fetch_ended(&mut self) {
        let Some(ended) = self.fetch.take() else { return };
        for sequence in self.lingering.drain(..) {
            self.known.remove(&sequence);
        }
        for key in std::mem::take(&mut self.held) {
            if let Some(lane) = self.lanes.get(&key)
                && matches!(lane.state, LaneState::Held { until_fetch } if until_fetch <= ended)
            {
                self.lanes.remove(&key);
            }
        }
    }

    /// The event is no longer in memory. A fetch that is running may still return it, so it stays known until
    /// then.
    pub(crate) fn forget(&mut self, sequence: Sequence, bytes: usize) {
        self.free_bytes(bytes);
        if self.fetch.is_some() {
            self.lingering.push(sequence);
        } else {
            self.known.remove(&sequence);
        }
    }

    /// The content of an event has left memory; the event itself is still known.
    pub(crate) fn free_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Takes a row in. False: it is known already, or its aggregate is held.
    pub(crate) fn insert(&mut self, item: Item) -> bool {
        if self.known.contains_key(&item.sequence) {
            return false;
        }
        let lane = self.lanes.entry(item.key.clone()).or_insert_with(|| Lane::new(item.partition));
        if lane.hold.is_some() || matches!(lane.state, LaneState::Held { .. }) {
            return false;
        }
        self.known.insert(item.sequence, item.partition);
        self.bytes += item.bytes;
        let key = item.key.clone();
        // Rows come in order but for those that committed late or have just become due.
        let place =
            lane.queue.iter().rposition(|queued| queued.sequence < item.sequence).map_or(0, |at| at + 1);
        self.full.added(&key, &mut lane.load, item.bytes);
        lane.queue.insert(place, item);
        self.offer(&key);
        true
    }

    /// Takes a due hold in. False: the lane cannot take it now, and the reader should offer it again.
    pub(crate) fn insert_hold(
        &mut self,
        key: &AggregateKey,
        partition: Partition,
        sequence: Option<Sequence>,
        item: Option<Item>,
    ) -> HoldTaken {
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane::new(partition));
        if lane.hold.is_some() {
            return HoldTaken::InHand;
        }
        if matches!(lane.state, LaneState::Held { .. })
            || sequence.is_some_and(|sequence| {
                self.known.contains_key(&sequence) && !lane.queue.iter().any(|item| item.sequence == sequence)
            })
        {
            return HoldTaken::Stale;
        }
        let queue = std::mem::take(&mut lane.queue);
        self.full.emptied(key, &mut lane.load);
        let item_known = item.as_ref().map(|item| (item.sequence, item.bytes));
        lane.hold = Some(HoldWork { sequence, item });
        lane.alone = false;
        for dropped in queue {
            if item_known.is_some_and(|(sequence, _)| sequence == dropped.sequence) {
                self.bytes = self.bytes.saturating_sub(dropped.bytes);
            } else {
                self.forget(dropped.sequence, dropped.bytes);
            }
        }
        if let Some((sequence, bytes)) = item_known {
            self.known.insert(sequence, partition);
            self.bytes += bytes;
        }
        self.offer(key);
        HoldTaken::Taken
    }

    /// Puts a lane that may publish into the queue, and removes one that has nothing left.
    pub(crate) fn offer(&mut self, key: &AggregateKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.is_empty() {
            self.lanes.remove(key);
        } else if lane.state == LaneState::Open && !lane.queued && !lane.aside {
            lane.queued = true;
            if lane.alone { self.alone.push_back(key.clone()) } else { self.ready.push_back(key.clone()) }
        }
    }

    /// Nothing of the aggregate is published until it is taken [`back`](Self::take_back).
    pub(crate) fn set_aside(&mut self, key: &AggregateKey, partition: Partition) {
        self.lanes.entry(key.clone()).or_insert_with(|| Lane::new(partition)).aside = true;
    }

    /// The aggregate goes on.
    pub(crate) fn take_back(&mut self, key: &AggregateKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.aside = false;
        }
        self.offer(key);
    }

    /// The next lane that may publish, beside others.
    pub(crate) fn next_ready(&mut self) -> Option<AggregateKey> {
        Self::next_of(&mut self.ready, &mut self.lanes)
    }

    /// The next lane that must publish alone.
    pub(crate) fn next_alone(&mut self) -> Option<AggregateKey> {
        Self::next_of(&mut self.alone, &mut self.lanes)
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.alone.is_empty()
    }

    pub(crate) fn has_alone(&self) -> bool {
        !self.alone.is_empty()
    }

    fn next_of(
        queue: &mut VecDeque<AggregateKey>,
        lanes: &mut HashMap<AggregateKey, Lane>,
    ) -> Option<AggregateKey> {
        while let Some(key) = queue.pop_front() {
            // A lane that was dropped and made anew may stand in the queue twice; only a queued, open one
            // counts.
            if let Some(lane) = lanes.get_mut(&key)
                && lane.queued
            {
                lane.queued = false;
                if lane.state == LaneState::Open && !lane.is_empty() && !lane.aside {
                    return Some(key);
                }
            }
        }
        None
    }

    /// Takes the head of an open lane: the held event first. `Err(sequence)`: a hold that holds nothing.
    pub(crate) fn take_head(&mut self, key: &AggregateKey) -> Option<Result<Item, Option<Sequence>>> {
        let lane = self.lanes.get_mut(key)?;
        match &mut lane.hold {
            Some(hold) => Some(hold.item.take().ok_or(hold.sequence)),
            None => {
                let item = lane.queue.pop_front()?;
                self.full.taken(key, &mut lane.load, item.bytes);
                Some(Ok(item))
            }
        }
    }

    /// Puts an event back at the head of its lane, which is open again. It was not settled and is still the
    /// first.
    pub(crate) fn restore(&mut self, item: Item, alone: bool) {
        let key = item.key.clone();
        let Some(lane) = self.lanes.get_mut(&key) else {
            self.forget(item.sequence, item.bytes);
            return;
        };
        lane.state = LaneState::Open;
        lane.alone = alone;
        match &mut lane.hold {
            Some(hold) if hold.sequence == Some(item.sequence) => hold.item = Some(item),
            // The aggregate was held meanwhile: the event is read again after the hold.
            Some(_) => self.forget(item.sequence, item.bytes),
            None => {
                self.full.added(&key, &mut lane.load, item.bytes);
                lane.queue.push_front(item);
            }
        }
        self.offer(&key);
    }

    /// A hold of the aggregate is committed: everything of it leaves memory. True if that ends a due hold
    /// that was in hand.
    pub(crate) fn hold_committed(&mut self, key: &AggregateKey) -> bool {
        let Some(lane) = self.lanes.get_mut(key) else { return false };
        let hold = lane.hold.take();
        let ended = hold.is_some();
        let mut dropped = std::mem::take(&mut lane.queue);
        self.full.emptied(key, &mut lane.load);
        dropped.extend(hold.and_then(|hold| hold.item));
        match self.fetch {
            Some(until_fetch) => {
                lane.state = LaneState::Held { until_fetch };
                self.held.push(key.clone());
            }
            None => {
                self.lanes.remove(key);
            }
        }
        for item in dropped {
            self.forget(item.sequence, item.bytes);
        }
        ended
    }

    /// An operator paused the aggregate: what waits in memory leaves it; what is in flight goes on. True if
    /// that ends a due hold that was in hand.
    pub(crate) fn paused(&mut self, key: &AggregateKey) -> bool {
        let Some(lane) = self.lanes.get_mut(key) else { return false };
        let hold_waits = lane.hold.as_ref().is_some_and(|hold| hold.item.is_some());
        let mut dropped = std::mem::take(&mut lane.queue);
        self.full.emptied(key, &mut lane.load);
        if hold_waits {
            dropped.extend(lane.hold.take().and_then(|hold| hold.item));
        }
        for item in dropped {
            self.forget(item.sequence, item.bytes);
        }
        self.offer(key);
        hold_waits
    }

    /// Forgets everything of partitions that are no longer owned: what is still in flight or being settled of
    /// them is ignored, and is read anew should the partition come back.
    pub(crate) fn lose_partitions(&mut self, gone: impl Fn(Partition) -> bool) {
        self.drop_waiting(false, &gone);
        self.known.retain(|_, partition| !gone(*partition));
    }

    /// Drops what waits in the lanes of these partitions, while what is in flight is to be finished.
    pub(crate) fn drain_partitions(&mut self, drained: impl Fn(Partition) -> bool) {
        self.drop_waiting(true, drained);
    }

    fn drop_waiting(&mut self, keep_in_flight: bool, gone: impl Fn(Partition) -> bool) {
        let mut dropped = Vec::new();
        self.lanes.retain(|key, lane| {
            if !gone(lane.partition) {
                return true;
            }
            self.full.emptied(key, &mut lane.load);
            dropped.extend(lane.queue.drain(..).map(|item| (item.sequence, item.bytes)));
            let busy = matches!(lane.state, LaneState::InFlight | LaneState::Settling);
            if let Some(hold) = &mut lane.hold
                && let Some(item) = hold.item.take()
            {
                dropped.push((item.sequence, item.bytes));
                if !busy {
                    lane.hold = None;
                }
            }
            keep_in_flight && busy
        });
        for (sequence, bytes) in dropped {
            self.forget(sequence, bytes);
        }
    }
}

/// What became of a due hold that was offered to a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldTaken {
    /// It is next in its lane.
    Taken,
    /// The lane is working on it already and will answer.
    InHand,
    /// What was read is out of date.
    Stale,
}
