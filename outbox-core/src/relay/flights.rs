//! What is with the publisher: [`Flights`].

use std::{collections::HashMap, sync::Arc};

use super::lanes::Item;
use crate::{
    clock::Monotonic,
    publisher::Message,
    store::{Epoch, Lease, Partition},
};

/// A message that is with the publisher.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) item: Item,
    pub(crate) epoch: Epoch,
    /// Nothing may be sent beside it.
    pub(crate) alone: bool,
}

impl Flight {
    pub(crate) fn lease(&self) -> Lease {
        Lease { partition: self.item.partition, epoch: self.epoch }
    }
}

/// One publish call.
#[derive(Debug)]
struct Call {
    flights: Vec<Option<Flight>>,
    left: usize,
    began_at: Monotonic,
}

/// The messages that are with the publisher, by call, and the one that must go alone.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    calls: HashMap<u64, Call>,
    calls_made: u64,
    count: usize,
    /// An event whose attempt is being recorded before it is published alone.
    attempting: Option<Flight>,
    /// An event that goes alone is with the publisher.
    alone: bool,
    /// How many more events may be what a dead relay died of.
    suspects_left: usize,
    /// Messages in flight whose lease is gone. Their partitions, should they come back, are not read before
    /// these have ended: else one event could be in flight twice.
    strays: HashMap<Partition, usize>,
}

impl Flights {
    /// How many messages are in flight.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Nothing is in flight, nor about to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.count == 0 && self.attempting.is_none()
    }

    /// False while an event that goes alone is in flight, or about to be.
    pub(crate) fn may_begin(&self) -> bool {
        !self.alone && self.attempting.is_none()
    }

    /// These go out as one call: its number and its messages. `None` if there are none.
    pub(crate) fn begin(
        &mut self,
        began_at: Monotonic,
        flights: Vec<Flight>,
    ) -> Option<(u64, Vec<Arc<Message>>)> {
        if flights.is_empty() {
            return None;
        }
        let messages = flights.iter().filter_map(|flight| flight.item.content.clone().ok()).collect();
        self.calls_made += 1;
        self.count += flights.len();
        let left = flights.len();
        let flights = flights.into_iter().map(Some).collect();
        self.calls.insert(self.calls_made, Call { flights, left, began_at });
        Some((self.calls_made, messages))
    }

    /// This one goes out, and nothing beside it.
    pub(crate) fn begin_alone(
        &mut self,
        began_at: Monotonic,
        flight: Flight,
    ) -> Option<(u64, Vec<Arc<Message>>)> {
        self.alone = true;
        self.begin(began_at, vec![flight])
    }

    /// The flight's attempt is being recorded.
    pub(crate) fn attempt(&mut self, flight: Flight) {
        self.attempting = Some(flight);
    }

    /// The flight whose attempt was being recorded.
    pub(crate) fn attempted(&mut self) -> Option<Flight> {
        self.attempting.take()
    }

    /// The message of a call that has an outcome, and when the call began. `None` for a second report of a
    /// message, or for one that is not of the call: the first report counts.
    pub(crate) fn landed(&mut self, call: u64, index: usize) -> Option<(Flight, Monotonic)> {
        let state = self.calls.get_mut(&call)?;
        let flight = state.flights.get_mut(index).and_then(Option::take)?;
        let began_at = state.began_at;
        state.left -= 1;
        if state.left == 0 {
            self.calls.remove(&call);
        }
        self.land(&flight);
        Some((flight, began_at))
    }

    /// The call has ended: those of its messages that have no outcome, and when it began.
    pub(crate) fn ended(&mut self, call: u64) -> (Vec<Flight>, Monotonic) {
        let Some(state) = self.calls.remove(&call) else { return (Vec::new(), Monotonic::ZERO) };
        let left: Vec<Flight> = state.flights.into_iter().flatten().collect();
        for flight in &left {
            self.land(flight);
        }
        (left, state.began_at)
    }

    fn land(&mut self, flight: &Flight) {
        self.count -= 1;
        if flight.alone {
            self.alone = false;
        }
    }

    /// A partition was claimed whose owner died with at most `in_flight_max` events in flight, at the heads
    /// of their lanes.
    pub(crate) fn suspect(&mut self, in_flight_max: usize) {
        self.suspects_left = in_flight_max;
    }

    pub(crate) fn has_suspects(&self) -> bool {
        self.suspects_left > 0
    }

    /// One of the suspects is about to be attempted.
    pub(crate) fn suspect_passes(&mut self) {
        self.suspects_left = self.suspects_left.saturating_sub(1);
    }

    /// These leases are lost, each of them for the first time: what is in flight under them has gone astray.
    pub(crate) fn lose(&mut self, leases: &[Lease]) {
        let flights =
            self.calls.values().flat_map(|call| call.flights.iter().flatten()).chain(&self.attempting);
        for flight in flights.filter(|flight| leases.contains(&flight.lease())) {
            *self.strays.entry(flight.item.partition).or_default() += 1;
        }
    }

    /// A message whose lease is lost has an outcome, which nothing follows from.
    pub(crate) fn stray_ended(&mut self, partition: Partition) {
        if let Some(left) = self.strays.get_mut(&partition) {
            *left -= 1;
            if *left == 0 {
                self.strays.remove(&partition);
            }
        }
    }

    /// Messages of the partition's former lease are still in flight.
    pub(crate) fn has_strays(&self, partition: Partition) -> bool {
        self.strays.contains_key(&partition)
    }
}
