//! Publishing: what may go out now, what alone, and what not at all.

use super::{Call, Command, Engine, Flight};
use crate::relay::lanes::{Item, LaneState};
use crate::{
    AggregateKey, FailureCause, HoldReason, Lease, Monotonic, Outcome, Partition, Settlement, Unhold,
    retry::backoff,
};

impl Engine {
    /// True if a publish that starts now ends, with a margin, before the lease can.
    pub(super) fn lease_suffices(&self, now: Monotonic) -> bool {
        now + self.config.publish_timeout + self.config.lease_margin <= self.lease_until
    }

    /// What can be published now.
    pub(crate) fn next_publish(&mut self, now: Monotonic) -> Option<Command> {
        if self.stopping || self.alone_in_flight || self.attempting.is_some() || !self.lease_suffices(now) {
            return None;
        }
        let room = match self.broker.room(now, self.in_flight) {
            0 => return None,
            room => room.min(self.config.publish_max.saturating_sub(self.in_flight)),
        };
        if self.lanes.has_alone() {
            return if self.in_flight == 0 { self.next_alone(now) } else { None };
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
        self.call(flights)
    }

    /// Events that are published or decided and not yet settled.
    pub(super) fn unsettled(&self) -> usize {
        let settling = self.settling.as_ref().map_or(0, |request| request.settlements.len());
        self.in_flight + self.outcomes.len() + settling
    }

    pub(super) fn call(&mut self, flights: Vec<Flight>) -> Option<Command> {
        if flights.is_empty() {
            return None;
        }
        let messages = flights.iter().filter_map(|flight| flight.item.content.clone().ok()).collect();
        self.calls_made += 1;
        self.in_flight += flights.len();
        let left = flights.len();
        self.calls.insert(self.calls_made, Call { flights: flights.into_iter().map(Some).collect(), left });
        Some(Command::Publish(self.calls_made, messages))
    }

    pub(super) fn next_alone(&mut self, now: Monotonic) -> Option<Command> {
        let relay = self.relay?;
        while let Some(key) = self.lanes.next_alone() {
            let suspect = self.is_suspect_lane(&key);
            let Some(mut flight) = self.take_flight(now, &key) else { continue };
            flight.alone = true;
            if !suspect {
                self.alone_in_flight = true;
                return self.call(vec![flight]);
            }
            self.suspects_left = self.suspects_left.saturating_sub(1);
            let lease = flight.lease();
            let (sequence, attempts) = (flight.item.sequence, flight.item.attempts.saturating_add(1));
            self.attempting = Some(flight);
            return Some(Command::BeginAttempt(relay, lease, sequence, attempts));
        }
        None
    }

    /// The attempt is recorded, or its lease is lost: publish the event alone, or drop it.
    pub(crate) fn attempt_begun(&mut self, now: Monotonic, recorded: bool) -> Option<Command> {
        let flight = self.attempting.take()?;
        let lease = flight.lease();
        let publishes = recorded && self.owns(lease) && self.lease_suffices(now) && !self.stopping;
        if !publishes {
            self.probe_ended(&flight.item);
        }
        if !self.owns(lease) {
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
        self.alone_in_flight = true;
        self.call(vec![flight])
    }

    /// If the message was its topic's probe, another may follow.
    pub(super) fn probe_ended(&mut self, item: &Item) {
        if let Ok(message) = &item.content
            && let Some(topic) = self.topics.get_mut(&message.topic)
        {
            topic.probing = false;
        }
    }

    pub(super) fn stray_ended(&mut self, item: &Item) {
        self.lanes.free_bytes(item.bytes);
        if let Some(left) = self.strays.get_mut(&item.partition) {
            *left -= 1;
            if *left == 0 {
                self.strays.remove(&item.partition);
            }
        }
    }

    pub(super) fn owns(&self, lease: Lease) -> bool {
        self.leases.get(&lease.partition).is_some_and(|state| state.lease == lease)
    }

    pub(super) fn deactivate(&mut self, partition: Partition) {
        if let Some(state) = self.leases.get_mut(&partition) {
            state.active = state.active.saturating_sub(1);
        }
    }

    /// The head of the lane may be what the partition's last owner died of.
    pub(super) fn is_suspect_lane(&mut self, key: &AggregateKey) -> bool {
        if self.suspects_left == 0 {
            return false;
        }
        let Some(lane) = self.lanes.get_mut(key) else { return false };
        let died_at = self.leases.get(&lane.partition).and_then(|state| state.died_at);
        match (died_at, lane.head()) {
            // Only an event that was there when the partition was claimed can have been in flight before.
            (Some(died_at), Some(head)) => lane.first && head.age >= head.fetched_at.saturating_sub(died_at),
            _ => false,
        }
    }

    /// Takes the head of a lane for publication; `None` if it is not to be published, which is then settled or
    /// put off.
    pub(super) fn take_flight(&mut self, now: Monotonic, key: &AggregateKey) -> Option<Flight> {
        let partition = self.lanes.get_mut(key)?.partition;
        let state = self.leases.get_mut(&partition)?;
        let epoch = state.lease.epoch;
        let suspect = self.is_suspect_lane(key);
        let lane = self.lanes.get_mut(key)?;
        if suspect && !lane.alone {
            lane.alone = true;
            self.lanes.offer(key);
            return None;
        }
        lane.alone = false;
        let head = self.lanes.take_head(key)?;
        if let Some(state) = self.leases.get_mut(&partition) {
            state.active += 1;
        }
        let item = match head {
            Ok(item) => item,
            Err(sequence) => {
                self.set_state(key, LaneState::Settling);
                self.unholds.push(Unhold { key: key.clone(), partition, sequence });
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
        if self.paused_topics.contains(&*message.topic) {
            let error = format!("topic {} is paused by an operator", message.topic);
            let after = self.config.topic_recheck;
            return Some((item.attempts, Outcome::Retry { after, error, reason: HoldReason::Topic }));
        }
        let (min, max) = self.config.unavailable_delay;
        let scope = self.topics.get_mut(&message.topic)?;
        if scope.room(now, usize::from(scope.probing)) > 0 {
            scope.probing = scope.failures > 0;
            return None;
        }
        let after =
            backoff(min, max, scope.failures, self.rng.f64()).max(min).max(scope.until.saturating_sub(now));
        let error = format!("topic {} is unavailable", message.topic);
        Some((item.attempts, Outcome::Retry { after, error, reason: HoldReason::Topic }))
    }

    pub(super) fn given_up(&self, cause: FailureCause, error: String) -> Outcome {
        let (cause, successors) = self.config.retry.give_up.apply(cause);
        Outcome::Failed { cause, error, successors }
    }

    pub(super) fn settle_later(&mut self, item: Item, attempts: u32, outcome: Outcome) {
        let Item { sequence, partition, key, bytes, .. } = item;
        // The bytes are free now; the sequence stays known until the store has it.
        self.lanes.free_bytes(bytes);
        self.outcomes.push(Settlement { sequence, partition, key, attempts, outcome });
    }
}
