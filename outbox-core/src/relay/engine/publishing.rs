//! Publishing: what may go out now, what alone, and what not at all.

use std::sync::Arc;

use super::{Command, Engine};
use crate::relay::{
    GivenUp, StoreWork,
    flights::Flight,
    lanes::{Item, LaneState},
    scopes::Passage,
};
use crate::{
    AggregateKey, StoreError,
    clock::Monotonic,
    store::{FailureCause, HoldReason, Outcome, Settlement, Successors, Unhold},
};

impl Engine {
    /// True if a publish that starts now ends, with a margin, before the lease can.
    pub(super) fn lease_suffices(&self, now: Monotonic) -> bool {
        self.leases.suffice(now, self.config.publish_timeout + self.config.lease_margin)
    }

    /// What can be published now.
    pub(crate) fn next_publish(&mut self, now: Monotonic) -> Option<Command> {
        if self.stopping || !self.flights.may_begin() || !self.lease_suffices(now) {
            return None;
        }
        let in_flight = self.flights.count();
        let room = match self.scopes.room(now, in_flight) {
            0 => return None,
            room => room.min(self.config.publish_max.saturating_sub(in_flight)),
        };
        if self.lanes.has_alone() {
            return if in_flight == 0 { self.next_alone(now) } else { None };
        }
        let mut flights = Vec::new();
        while flights.len() < room && self.unsettled() + flights.len() < self.config.in_flight_max {
            let Some(key) = self.lanes.next_ready() else { break };
            if let Some(flight) = self.take_flight(now, &key) {
                flights.push(flight);
            }
            if self.lanes.has_alone() {
                break;
            }
        }
        self.flights.begin(now, flights).map(Command::publish)
    }

    /// Events that are published or decided and not yet settled.
    pub(super) fn unsettled(&self) -> usize {
        self.flights.count() + self.decided.count() + self.unrecorded.count()
    }

    pub(super) fn next_alone(&mut self, now: Monotonic) -> Option<Command> {
        let relay = self.leases.relay()?;
        while let Some(key) = self.lanes.next_alone() {
            let suspect = self.is_suspect_lane(&key);
            let Some(mut flight) = self.take_flight(now, &key) else { continue };
            flight.alone = true;
            if !suspect {
                return self.flights.begin_alone(now, flight).map(Command::publish);
            }
            self.flights.suspect_passes();
            let lease = flight.lease();
            let (sequence, attempts) = (flight.item.sequence, flight.item.attempts.saturating_add(1));
            self.flights.attempt(flight);
            return Some(Command::BeginAttempt(relay, lease, sequence, attempts));
        }
        None
    }

    /// The attempt is recorded, or its lease is lost: publish the event alone, or drop it.
    pub(crate) fn attempt_begun(
        &mut self,
        now: Monotonic,
        recorded: Result<bool, StoreError>,
    ) -> Option<Command> {
        self.account.store_answered(now, StoreWork::Settling);
        let flight = self.flights.attempted()?;
        let lease = flight.lease();
        let recorded = match recorded {
            Ok(recorded) => {
                self.recorded(&flight.item.key);
                recorded
            }
            Err(error) => {
                self.attempt_refused(now, flight, &error);
                return None;
            }
        };
        let publishes = recorded && self.leases.owns(lease) && self.lease_suffices(now) && !self.stopping;
        if !publishes {
            self.probe_ended(&flight.item);
        }
        if !self.leases.owns(lease) {
            self.stray_ended(&flight.item);
            return None;
        }
        if !recorded {
            self.lanes.free_bytes(flight.item.bytes);
            self.lost(&[lease]);
            return None;
        }
        if !publishes {
            self.put_back(flight.item, true);
            return None;
        }
        self.flights.begin_alone(now, flight).map(Command::publish)
    }

    /// The store refuses to record the attempt, and without it the event could kill one relay after the
    /// other.
    fn attempt_refused(&mut self, now: Monotonic, flight: Flight, error: &StoreError) {
        self.probe_ended(&flight.item);
        if !self.leases.owns(flight.lease()) {
            self.stray_ended(&flight.item);
            return;
        }
        let (key, partition) = (flight.item.key.clone(), flight.item.partition);
        let new = self.unrecorded.refuse_attempt(now, &key, partition);
        self.lanes.set_aside(&key, partition);
        self.account.refused(now, &key, Some(flight.item.sequence), new, error);
        self.put_back(flight.item, true);
    }

    /// If the message was its topic's probe, another may follow.
    pub(super) fn probe_ended(&mut self, item: &Item) {
        if let Ok(message) = &item.content {
            self.scopes.probe_ended(&message.topic);
        }
    }

    pub(super) fn stray_ended(&mut self, item: &Item) {
        self.lanes.free_bytes(item.bytes);
        self.flights.stray_ended(item.partition);
    }

    /// The head of the lane may be what the partition's last owner died of.
    pub(super) fn is_suspect_lane(&mut self, key: &AggregateKey) -> bool {
        if !self.flights.has_suspects() {
            return false;
        }
        let Some(lane) = self.lanes.get_mut(key) else { return false };
        let died_at = self.leases.died_at(lane.partition);
        match (died_at, lane.head()) {
            // Only an event that was there when the partition was claimed can have been in flight before.
            (Some(died_at), Some(head)) => lane.first && head.age >= head.fetched_at.saturating_sub(died_at),
            _ => false,
        }
    }

    /// Takes the head of a lane for publication; `None` if it is not to be published, which is then settled
    /// or put off.
    pub(super) fn take_flight(&mut self, now: Monotonic, key: &AggregateKey) -> Option<Flight> {
        let partition = self.lanes.get_mut(key)?.partition;
        let epoch = self.leases.of(partition)?.epoch;
        let suspect = self.is_suspect_lane(key);
        let lane = self.lanes.get_mut(key)?;
        if suspect && !lane.alone {
            lane.alone = true;
            self.lanes.offer(key);
            return None;
        }
        lane.alone = false;
        let head = self.lanes.take_head(key)?;
        self.leases.activate(partition);
        let item = match head {
            Ok(item) => item,
            Err(sequence) => {
                self.set_state(key, LaneState::Settling);
                self.decided.unhold(Unhold { key: key.clone(), partition, sequence });
                return None;
            }
        };
        match self.refusal(now, &item) {
            None => {
                if let Some(lane) = self.lanes.get_mut(key) {
                    lane.state = LaneState::InFlight;
                    lane.first = false;
                }
                Some(Flight { item, epoch, alone: false })
            }
            Some((attempts, outcome)) => {
                self.set_state(key, LaneState::Settling);
                self.settle_later(item, attempts, outcome);
                None
            }
        }
    }

    pub(super) fn set_state(&mut self, key: &AggregateKey, state: LaneState) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = state;
        }
    }

    /// Why an event is settled without being published.
    pub(super) fn refusal(&mut self, now: Monotonic, item: &Item) -> Option<(u32, Outcome)> {
        let retry = &self.config.retry;
        let message = match &item.content {
            Ok(message) => message,
            Err(error) => {
                return Some((item.attempts, self.given_up(FailureCause::Undecodable, error.clone())));
            }
        };
        if item.attempts >= retry.attempts_max {
            let error = format!(
                "attempted {} times, the last without an outcome: the relay may have died of it",
                item.attempts
            );
            return Some((item.attempts, self.given_up(FailureCause::Exhausted, error)));
        }
        let (after, why) = match self.scopes.pass(now, &message.topic) {
            Passage::Open => return None,
            Passage::Paused => (self.config.topic_recheck, "paused by an operator".to_owned()),
            Passage::Shut(failures, until) => {
                let after = self.scopes.delay(now, failures, until, self.rng.f64());
                (after, format!("unavailable: {}", self.scopes.topic_error(&message.topic)))
            }
        };
        let error = format!("topic {} is {why}", message.topic);
        Some((item.attempts, Outcome::Retry { after, error, reason: HoldReason::Topic }))
    }

    pub(super) fn given_up(&self, cause: FailureCause, error: String) -> Outcome {
        let (cause, successors) = self.config.retry.give_up.apply(cause);
        Outcome::Failed { cause, error, successors }
    }

    pub(super) fn settle_later(&mut self, item: Item, attempts: u32, outcome: Outcome) {
        let Item { sequence, partition, key, bytes, content, .. } = item;
        let outcome = storable(outcome);
        if let Outcome::Failed { cause, error, successors } = &outcome {
            let message = content.ok();
            let event = GivenUp {
                id: message.as_ref().map(|message| message.event.id),
                sequence,
                key: key.clone(),
                topic: message.as_ref().map(|message| Arc::clone(&message.topic)),
                attempts,
                cause: *cause,
                error: error.clone(),
                parked: *successors == Successors::Park,
            };
            self.decided.fail(partition, event);
        }
        // The bytes are free now; the sequence stays known until the store has it.
        self.lanes.free_bytes(bytes);
        self.decided.settle(Settlement { sequence, partition, key, attempts, outcome });
    }
}

/// The outcome with an error's text as every store can keep it, whatever a broker has said.
fn storable(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Sent => Outcome::Sent,
        Outcome::Retry { after, error, reason } => Outcome::retry(after, error, reason),
        Outcome::Failed { cause, error, successors } => Outcome::failed(cause, error, successors),
    }
}
