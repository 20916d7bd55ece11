//! What has been read and not yet sent or refused: [`Queue`]. One event of an aggregate is in flight at a
//! time, and its successors wait for its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::{AggregateKey, clock::Monotonic, publisher::Message, store::Sequence};

#[derive(Default)]
pub(super) struct Queue {
    items: BTreeMap<Sequence, Item>,
    /// The events of each aggregate in order; the first is ready, waiting or in flight.
    lanes: HashMap<AggregateKey, VecDeque<Sequence>>,
    ready: BTreeSet<Sequence>,
    /// Ready, but only while nothing else is in flight.
    alone: BTreeSet<Sequence>,
    /// Firsts that are to be tried again later.
    waiting: BTreeSet<(Monotonic, Sequence)>,
    in_flight: usize,
    alone_in_flight: bool,
}

struct Item {
    message: Arc<Message>,
    /// Attempts that have failed.
    failures: u32,
}

/// What may be sent now, in one call.
pub(super) struct Batch {
    pub(super) messages: Vec<Arc<Message>>,
    pub(super) alone: bool,
}

impl Queue {
    /// Takes an event. Events come in ascending sequence.
    pub(super) fn push(&mut self, message: Message) {
        let sequence = message.sequence;
        let lane = self.lanes.entry(message.key.clone()).or_default();
        lane.push_back(sequence);
        if lane.len() == 1 {
            self.ready.insert(sequence);
        }
        self.items.insert(sequence, Item { message: Arc::new(message), failures: 0 });
    }

    /// Events that are neither sent nor refused.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The first event that is neither sent nor refused.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.items.keys().next().copied()
    }

    /// When an event that waits may be tried again.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// There is something that may be sent now.
    pub(super) fn is_ready(&self) -> bool {
        !self.alone_in_flight
            && if self.alone.is_empty() { !self.ready.is_empty() } else { self.in_flight == 0 }
    }

    /// Takes what may be sent now, at most so many events. They are in flight from now on.
    pub(super) fn take(&mut self, now: Monotonic, events_max: usize) -> Option<Batch> {
        while let Some((_, sequence)) = self.waiting.first().filter(|(at, _)| *at <= now).copied() {
            self.waiting.pop_first();
            self.ready.insert(sequence);
        }
        if !self.is_ready() || events_max == 0 {
            return None;
        }
        let alone = self.alone.pop_first();
        let sequences: Vec<_> = match alone {
            Some(sequence) => vec![sequence],
            None => (0..events_max).map_while(|_| self.ready.pop_first()).collect(),
        };
        self.in_flight += sequences.len();
        self.alone_in_flight = alone.is_some();
        let messages = sequences.iter().filter_map(|sequence| self.items.get(sequence));
        let messages = messages.map(|item| Arc::clone(&item.message)).collect();
        Some(Batch { messages, alone: self.alone_in_flight })
    }

    /// The event in flight was sent or is given up: its successor may follow.
    pub(super) fn done(&mut self, message: &Message) {
        self.landed();
        self.items.remove(&message.sequence);
        let Some(lane) = self.lanes.get_mut(&message.key) else { return };
        lane.pop_front();
        match lane.front() {
            Some(next) => _ = self.ready.insert(*next),
            None => _ = self.lanes.remove(&message.key),
        }
    }

    /// The event in flight failed; how often that makes.
    pub(super) fn failures(&mut self, message: &Message) -> u32 {
        let Some(item) = self.items.get_mut(&message.sequence) else { return 0 };
        item.failures = item.failures.saturating_add(1);
        item.failures
    }

    /// The event in flight is to be tried again at that time.
    pub(super) fn again(&mut self, message: &Message, at: Monotonic) {
        self.landed();
        self.waiting.insert((at, message.sequence));
        if let Some(item) = self.items.get_mut(&message.sequence) {
            Arc::make_mut(&mut item.message).attempt = item.failures.saturating_add(1);
        }
    }

    /// The event in flight goes back, to be sent alone or as before.
    pub(super) fn put_back(&mut self, message: &Message, alone: bool) {
        self.landed();
        let ready = if alone { &mut self.alone } else { &mut self.ready };
        ready.insert(message.sequence);
    }

    fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.alone_in_flight = false;
    }
}
