//! What a relay decides: a state machine without time, tasks or input and output of its own.
//!
//! Everything that happens comes in as a method call with the time of it; everything to be done goes out as a
//! [`Command`]. The rules that carry the guarantees stand here:
//!
//! - one message in flight per aggregate, and none of a successor before the failure of its predecessor is
//!   committed;
//! - no publish starts unless the publish time-out and a margin of the lease remain;
//! - an unknown outcome is never success;
//! - what a crash can duplicate is bounded by `in_flight_max`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    RelayConfig, RelayStatus,
    lanes::{HoldTaken, Item, LaneState, Lanes},
    polling::Polling,
    scopes::Scope,
};
use crate::{
    AggregateKey, Claimed, DueHold, Epoch, FailureCause, FetchRequest, Fetched, HoldEnd, HoldReason, Lease,
    Message, Monotonic, Outcome, Partition, PublishError, PublishErrorKind, PublishErrorScope, RelayId,
    Report, RetryDecision, Row, Sequence, SettleRequest, Settled, Settlement, Unhold, retry::backoff,
};

/// Something to be done outside.
#[derive(Debug)]
pub(crate) enum Command {
    /// Read.
    Fetch(RelayId, FetchRequest),
    /// Publish these, as one call.
    Publish(u64, Vec<Arc<Message>>),
    /// Record that the event is about to be attempted.
    BeginAttempt(RelayId, Lease, Sequence, u32),
    /// Record outcomes.
    Settle(SettleRequest),
    /// Give these leases back.
    Release(Vec<Lease>),
}

/// A message that is with the publisher.
#[derive(Debug)]
struct Flight {
    item: Item,
    epoch: Epoch,
    alone: bool,
}

impl Flight {
    fn lease(&self) -> Lease {
        Lease { partition: self.item.partition, epoch: self.epoch }
    }
}

#[derive(Debug)]
struct Call {
    flights: Vec<Option<Flight>>,
    left: usize,
}

#[derive(Debug)]
struct LeaseState {
    lease: Lease,
    /// Its last owner died, and this relay claimed it then.
    died_at: Option<Monotonic>,
    /// To be released once nothing of it is in flight or unsettled.
    draining: bool,
    /// Events and holds in flight or unsettled.
    active: usize,
}

/// What the fetch that is running was asked.
#[derive(Debug)]
struct Fetching {
    leases: Vec<Lease>,
    ended_holds: Vec<HoldEnd>,
}

/// The state of a relay.
#[derive(Debug)]
pub(crate) struct Engine {
    config: RelayConfig,
    rng: fastrand::Rng,
    relay: Option<RelayId>,
    lease_until: Monotonic,
    leases: BTreeMap<Partition, LeaseState>,
    lanes: Lanes,
    calls: HashMap<u64, Call>,
    calls_made: u64,
    in_flight: usize,
    /// An event whose attempt is being recorded before it is published alone.
    attempting: Option<Flight>,
    /// An alone event is with the publisher.
    alone_in_flight: bool,
    suspects_left: usize,
    /// Messages in flight whose lease is gone. Their partitions, should they come back, are not read before these
    /// have ended: else one event could be in flight twice.
    strays: HashMap<Partition, usize>,
    outcomes: Vec<Settlement>,
    unholds: Vec<Unhold>,
    settling: Option<SettleRequest>,
    fetching: Option<Fetching>,
    fetches_made: u64,
    ended_holds: Vec<HoldEnd>,
    broker: Scope,
    topics: HashMap<Arc<str>, Scope>,
    paused_topics: HashSet<String>,
    polling: Polling,
    stopping: bool,
    pub(crate) status: RelayStatus,
}

impl Engine {
    pub(crate) fn new(config: RelayConfig, seed: u64) -> Self {
        let polling = Polling::new(config.poll_min, config.poll_max);
        Self {
            config,
            rng: fastrand::Rng::with_seed(seed),
            relay: None,
            lease_until: Duration::ZERO,
            leases: BTreeMap::new(),
            lanes: Lanes::default(),
            calls: HashMap::new(),
            calls_made: 0,
            in_flight: 0,
            attempting: None,
            alone_in_flight: false,
            suspects_left: 0,
            strays: HashMap::new(),
            outcomes: Vec::new(),
            unholds: Vec::new(),
            settling: None,
            fetching: None,
            fetches_made: 0,
            ended_holds: Vec::new(),
            broker: Scope::default(),
            topics: HashMap::new(),
            paused_topics: HashSet::new(),
            polling,
            stopping: false,
            status: RelayStatus::default(),
        }
    }

    // ---- membership ------------------------------------------------------------------------------------------

    /// The relay has a row under this id.
    pub(crate) fn joined(&mut self, relay: RelayId, lease_until: Monotonic) {
        self.relay = Some(relay);
        self.lease_until = lease_until;
        self.status.relay = Some(relay);
    }

    /// The row was renewed by a beat that was sent `lease_ttl` before this.
    pub(crate) fn renewed(&mut self, lease_until: Monotonic) {
        self.lease_until = self.lease_until.max(lease_until);
    }

    /// The row is gone: nothing is owned any more.
    pub(crate) fn buried(&mut self) {
        let owned: Vec<Lease> = self.leases.values().map(|state| state.lease).collect();
        self.lost(&owned);
        self.relay = None;
        self.lease_until = Duration::ZERO;
        self.status.relay = None;
        self.status.buried += 1;
    }

    pub(crate) fn claimed(&mut self, now: Monotonic, claimed: &[Claimed]) {
        for &Claimed { lease, owner_died } in claimed {
            let died_at = owner_died.then_some(now);
            if owner_died {
                // At the time of its death it had at most this many events in flight, at the heads of their lanes.
                self.suspects_left = self.config.in_flight_max;
            }
            self.leases.insert(lease.partition, LeaseState { lease, died_at, draining: false, active: 0 });
        }
        self.status.partitions = self.leases.len();
        self.polling.wake(now);
    }

    /// These leases belong to somebody else by now.
    pub(crate) fn lost(&mut self, leases: &[Lease]) {
        let gone: HashSet<Partition> = leases
            .iter()
            .filter(|lease| self.leases.get(&lease.partition).is_some_and(|state| state.lease == **lease))
            .map(|lease| lease.partition)
            .collect();
        if gone.is_empty() {
            return;
        }
        let flights =
            self.calls.values().flat_map(|call| call.flights.iter().flatten()).chain(&self.attempting);
        for flight in flights.filter(|flight| leases.contains(&flight.lease())) {
            *self.strays.entry(flight.item.partition).or_default() += 1;
        }
        self.leases.retain(|partition, _| !gone.contains(partition));
        self.lanes.lose_partitions(|partition| gone.contains(&partition));
        self.outcomes.retain(|outcome| !gone.contains(&outcome.partition));
        self.unholds.retain(|unhold| !gone.contains(&unhold.partition));
        self.ended_holds.retain(|end| !gone.contains(&end.partition));
        self.status.partitions = self.leases.len();
    }

    /// Others should have these partitions: finish what is in flight, then release them.
    pub(crate) fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(state) = self.leases.get_mut(partition) {
                state.draining = true;
            }
        }
        let leases = &self.leases;
        let draining = |partition| leases.get(&partition).is_some_and(|state| state.draining);
        self.lanes.drain_partitions(draining);
        self.ended_holds.retain(|end| !draining(end.partition));
    }

    pub(crate) fn paused_topics(&mut self, topics: Vec<String>) {
        self.paused_topics = topics.into_iter().collect();
    }

    // ---- reading ---------------------------------------------------------------------------------------------

    /// There may be something new.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        self.polling.wake(now);
    }

    pub(crate) fn fetched(&mut self, now: Monotonic, fetched: Fetched) {
        let Some(Fetching { leases, .. }) = self.fetching.take() else { return };
        let valid: HashSet<Partition> = leases
            .iter()
            .filter(|lease| {
                self.leases
                    .get(&lease.partition)
                    .is_some_and(|state| state.lease == **lease && !state.draining)
            })
            .map(|lease| lease.partition)
            .collect();
        for key in &fetched.paused {
            let partition = self.lanes.get_mut(key).map(|lane| lane.partition);
            if self.lanes.paused(key)
                && let Some(partition) = partition
            {
                self.hold_ended(key.clone(), partition, false);
            }
        }
        let mut found = false;
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
        self.lanes.fetch_ended();
        self.polling.read(now, found, fetched.more, fetched.next_due);
        self.status.fetches += 1;
        if !found && !fetched.more && self.lanes.known_count() == 0 {
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

    fn take_hold(&mut self, now: Monotonic, hold: DueHold) -> bool {
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

    fn hold_ended(&mut self, key: AggregateKey, partition: Partition, removed: bool) {
        if self.leases.get(&partition).is_some_and(|state| !state.draining) {
            self.ended_holds.push(HoldEnd { key, partition, removed });
        }
    }

    fn item(&self, now: Monotonic, row: Row) -> Item {
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
        if self.stopping || self.fetching.is_some() || !self.has_room() || now < self.polling.next() {
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
        let request = FetchRequest {
            leases: leases.clone(),
            known: self.lanes.known().collect(),
            ended_holds: std::mem::take(&mut self.ended_holds),
            events_max: room.min(self.config.fetch_events_max),
            bytes_max: self.config.buffer_bytes_max.saturating_sub(self.lanes.bytes()).max(1),
        };
        self.fetches_made += 1;
        self.fetching = Some(Fetching { leases, ended_holds: request.ended_holds.clone() });
        self.lanes.fetch_started(self.fetches_made);
        Some(Command::Fetch(relay, request))
    }

    /// Small reads cost as much as large ones, so a full buffer is emptied by a part before it is filled again.
    fn has_room(&self) -> bool {
        let known = self.lanes.known_count();
        let room_min = self.config.fetch_events_max.min(self.config.buffer_events_max.div_ceil(4));
        self.config.buffer_events_max.saturating_sub(known) >= room_min
            && self.lanes.bytes() < self.config.buffer_bytes_max
    }

    // ---- publishing ------------------------------------------------------------------------------------------

    /// True if a publish that starts now ends, with a margin, before the lease can.
    fn lease_suffices(&self, now: Monotonic) -> bool {
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
    fn unsettled(&self) -> usize {
        let settling = self.settling.as_ref().map_or(0, |request| request.settlements.len());
        self.in_flight + self.outcomes.len() + settling
    }

    fn call(&mut self, flights: Vec<Flight>) -> Option<Command> {
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

    fn next_alone(&mut self, now: Monotonic) -> Option<Command> {
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
    fn probe_ended(&mut self, item: &Item) {
        if let Ok(message) = &item.content
            && let Some(topic) = self.topics.get_mut(&message.topic)
        {
            topic.probing = false;
        }
    }

    fn stray_ended(&mut self, item: &Item) {
        self.lanes.free_bytes(item.bytes);
        if let Some(left) = self.strays.get_mut(&item.partition) {
            *left -= 1;
            if *left == 0 {
                self.strays.remove(&item.partition);
            }
        }
    }

    fn owns(&self, lease: Lease) -> bool {
        self.leases.get(&lease.partition).is_some_and(|state| state.lease == lease)
    }

    fn deactivate(&mut self, partition: Partition) {
        if let Some(state) = self.leases.get_mut(&partition) {
            state.active = state.active.saturating_sub(1);
        }
    }

    /// The head of the lane may be what the partition's last owner died of.
    fn is_suspect_lane(&mut self, key: &AggregateKey) -> bool {
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
    fn take_flight(&mut self, now: Monotonic, key: &AggregateKey) -> Option<Flight> {
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

    fn set_state(&mut self, key: &AggregateKey, state: LaneState) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = state;
        }
    }

    /// Why an event is settled without being published.
    fn refusal(&mut self, now: Monotonic, item: &Item) -> Option<(u32, Outcome)> {
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

    fn given_up(&self, cause: FailureCause, error: String) -> Outcome {
        let (cause, successors) = self.config.retry.give_up.apply(cause);
        Outcome::Failed { cause, error, successors }
    }

    fn settle_later(&mut self, item: Item, attempts: u32, outcome: Outcome) {
        let Item { sequence, partition, key, bytes, .. } = item;
        // The bytes are free now; the sequence stays known until the store has it.
        self.lanes.free_bytes(bytes);
        self.outcomes.push(Settlement { sequence, partition, key, attempts, outcome });
    }

    // ---- outcomes --------------------------------------------------------------------------------------------

    /// One message of a call has an outcome.
    pub(crate) fn reported(&mut self, now: Monotonic, report: Report) {
        let Report { call, index, result } = report;
        let Some(state) = self.calls.get_mut(&call) else { return };
        // A second report of a message, or one beyond the call, is ignored: the first counts.
        let Some(flight) = state.flights.get_mut(index as usize).and_then(Option::take) else { return };
        state.left -= 1;
        if state.left == 0 {
            self.calls.remove(&call);
        }
        self.outcome(now, flight, result);
    }

    /// The call has ended: whatever was not reported has an unknown outcome.
    pub(crate) fn call_ended(&mut self, now: Monotonic, call: u64, why: &'static str) {
        let Some(state) = self.calls.remove(&call) else { return };
        for flight in state.flights.into_iter().flatten() {
            self.outcome(now, flight, Err(PublishError::transient("NoOutcome", why)));
        }
    }

    fn outcome(&mut self, now: Monotonic, flight: Flight, result: Result<(), PublishError>) {
        self.in_flight -= 1;
        if flight.alone {
            self.alone_in_flight = false;
        }
        self.probe_ended(&flight.item);
        let owned = self.owns(flight.lease());
        let Flight { item, alone, .. } = flight;
        if !owned {
            self.stray_ended(&item);
            return;
        }
        match result {
            Ok(()) => self.acknowledged(item),
            Err(error) => self.refused(now, item, alone, &error),
        }
    }

    fn acknowledged(&mut self, item: Item) {
        self.broker.succeeded();
        if let Ok(message) = &item.content
            && !self.topics.is_empty()
        {
            self.topics.remove(&message.topic);
        }
        self.status.published += 1;
        let key = item.key.clone();
        let attempts = item.attempts.saturating_add(1);
        if let Some(lane) = self.lanes.get_mut(&key) {
            // The successors of a held event come by a read that needs the hold to be gone first.
            let held = lane.hold.as_ref().is_some_and(|hold| hold.sequence == Some(item.sequence));
            lane.state = if held { LaneState::Settling } else { LaneState::Open };
        }
        self.settle_later(item, attempts, Outcome::Sent);
        self.lanes.offer(&key);
    }

    fn refused(&mut self, now: Monotonic, item: Item, alone: bool, error: &PublishError) {
        self.status.refused += 1;
        self.status.last_publish_error = Some(error.to_string());
        let (min, max) = self.config.unavailable_delay;
        match (error.kind, error.scope) {
            (PublishErrorKind::Unavailable, PublishErrorScope::Broker | PublishErrorScope::Batch) => {
                self.broker.failed(now, min, max, self.rng.f64());
                self.put_back(item, false);
            }
            (PublishErrorKind::Unavailable, PublishErrorScope::Destination) => {
                let random = self.rng.f64();
                let topic =
                    item.content.as_ref().map(|message| Arc::clone(&message.topic)).unwrap_or_default();
                let scope = self.topics.entry(topic).or_default();
                scope.failed(now, min, max, random);
                let after = scope.until.saturating_sub(now).max(min);
                let attempts = item.attempts;
                let outcome = Outcome::Retry { after, error: error.to_string(), reason: HoldReason::Topic };
                self.fail(item, attempts, outcome);
            }
            (PublishErrorKind::Permanent, PublishErrorScope::Batch) if !alone => self.put_back(item, true),
            (PublishErrorKind::Permanent, _) => {
                let attempts = item.attempts.saturating_add(1);
                let outcome = self.given_up(FailureCause::Permanent, error.to_string());
                self.fail(item, attempts, outcome);
            }
            (PublishErrorKind::Transient, _)
            | (PublishErrorKind::Unavailable, PublishErrorScope::Message) => {
                let attempts = item.attempts.saturating_add(1);
                let age = item.age + now.saturating_sub(item.fetched_at);
                let outcome = match self.config.retry.decide(attempts, age, self.rng.f64()) {
                    RetryDecision::After(after) => {
                        Outcome::Retry { after, error: error.to_string(), reason: HoldReason::Backoff }
                    }
                    RetryDecision::GiveUp(cause) => self.given_up(cause, error.to_string()),
                };
                self.fail(item, attempts, outcome);
            }
        }
    }

    /// Back to the head of its lane, with nothing recorded: no attempt was spent.
    fn put_back(&mut self, item: Item, alone: bool) {
        let partition = item.partition;
        self.deactivate(partition);
        if self.leases.get(&partition).is_some_and(|state| state.draining) || self.stopping {
            self.lanes.forget(item.sequence, item.bytes);
            self.release_lane(&item.key, false);
        } else {
            self.lanes.restore(item, alone);
        }
    }

    fn fail(&mut self, item: Item, attempts: u32, outcome: Outcome) {
        self.set_state(&item.key, LaneState::Settling);
        self.settle_later(item, attempts, outcome);
    }

    // ---- settling --------------------------------------------------------------------------------------------

    /// What is to be recorded now.
    pub(crate) fn next_settle(&mut self) -> Option<Command> {
        let relay = self.relay?;
        if self.settling.is_some() || (self.outcomes.is_empty() && self.unholds.is_empty()) {
            return None;
        }
        let count = self.outcomes.len().min(self.config.settle_events_max);
        let settlements: Vec<Settlement> = self.outcomes.drain(..count).collect();
        let unholds = std::mem::take(&mut self.unholds);
        let partitions: std::collections::BTreeSet<Partition> = settlements
            .iter()
            .map(|settlement| settlement.partition)
            .chain(unholds.iter().map(|unhold| unhold.partition))
            .collect();
        let leases = partitions
            .iter()
            .filter_map(|partition| self.leases.get(partition))
            .map(|state| state.lease)
            .collect();
        let when_sent = self.config.retention.when_sent;
        let request = SettleRequest { relay, leases, settlements, unholds, when_sent };
        self.settling = Some(request.clone());
        Some(Command::Settle(request))
    }

    /// The settle has committed.
    pub(crate) fn settled(&mut self, now: Monotonic, settled: &Settled) {
        let Some(request) = self.settling.take() else { return };
        let owned: HashSet<Lease> = request
            .leases
            .iter()
            .copied()
            .filter(|lease| self.owns(*lease) && !settled.fenced.contains(&lease.partition))
            .collect();
        let fenced: Vec<Lease> = request
            .leases
            .iter()
            .copied()
            .filter(|lease| settled.fenced.contains(&lease.partition))
            .collect();
        self.status.fenced += fenced.len() as u64;
        let owned: HashSet<Partition> = owned.iter().map(|lease| lease.partition).collect();
        for settlement in request.settlements {
            if owned.contains(&settlement.partition) {
                self.lanes.forget(settlement.sequence, 0);
                self.deactivate(settlement.partition);
                self.committed(settlement);
            }
        }
        for Unhold { key, partition, .. } in request.unholds {
            if owned.contains(&partition) {
                self.deactivate(partition);
                self.release_lane(&key, true);
            }
        }
        self.lost(&fenced);
        if !self.ended_holds.is_empty() {
            self.polling.wake(now);
        }
    }

    fn committed(&mut self, settlement: Settlement) {
        let Settlement { sequence, partition, key, outcome, .. } = settlement;
        let held_back = |engine: &mut Self| {
            if engine.lanes.hold_committed(&key) {
                engine.hold_ended(key.clone(), partition, false);
            }
        };
        match outcome {
            Outcome::Sent => {
                self.status.sent += 1;
                self.release_held_event(&key, sequence);
            }
            Outcome::Retry { .. } => {
                self.status.retried += 1;
                held_back(self);
            }
            Outcome::Failed { successors, .. } => {
                self.status.failed += 1;
                match successors {
                    crate::Successors::Release => {
                        self.release_held_event(&key, sequence);
                        self.release_lane(&key, false);
                    }
                    crate::Successors::Park => held_back(self),
                }
            }
        }
    }

    /// If the event was the one the aggregate was held behind, the hold is gone with it.
    fn release_held_event(&mut self, key: &AggregateKey, sequence: Sequence) {
        let held = self
            .lanes
            .get_mut(key)
            .and_then(|lane| lane.hold.as_ref())
            .is_some_and(|hold| hold.sequence == Some(sequence) && hold.item.is_none());
        if held {
            self.release_lane(key, true);
        }
    }

    fn release_lane(&mut self, key: &AggregateKey, hold_removed: bool) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if hold_removed && lane.hold.take().is_some() {
            let partition = lane.partition;
            self.hold_ended(key.clone(), partition, true);
        }
        if let Some(lane) = self.lanes.get_mut(key)
            && lane.state == LaneState::Settling
        {
            lane.state = LaneState::Open;
        }
        self.lanes.offer(key);
    }

    // ---- the end ---------------------------------------------------------------------------------------------

    /// Nothing new is begun from now on.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.unholds.clear();
        self.lanes.drain_partitions(|_| true);
    }

    /// True once nothing is in flight, being recorded or to be recorded.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_flight == 0
            && self.attempting.is_none()
            && self.settling.is_none()
            && (self.outcomes.is_empty() || self.relay.is_none())
    }

    /// Leases that are to be given back and have nothing in flight any more.
    pub(crate) fn next_release(&mut self) -> Option<Command> {
        let done: Vec<Lease> = self
            .leases
            .values()
            .filter(|state| state.draining && state.active == 0)
            .map(|state| state.lease)
            .collect();
        if done.is_empty() {
            return None;
        }
        self.lost(&done);
        Some(Command::Release(done))
    }

    /// When something can happen by the passing of time alone.
    pub(crate) fn next_time(&self, now: Monotonic) -> Option<Monotonic> {
        let mut next: Option<Monotonic> = None;
        let mut at = |time: Monotonic| {
            if time > now {
                next = Some(next.map_or(time, |next| next.min(time)));
            }
        };
        if !self.stopping && self.fetching.is_none() && !self.leases.is_empty() {
            at(self.polling.next());
        }
        if self.lanes.has_ready() {
            at(self.broker.until);
        }
        next
    }

    pub(crate) fn refresh_status(&mut self) {
        self.status.buffered = self.lanes.known_count();
        self.status.in_flight = self.in_flight;
        self.status.broker_available = self.broker.failures == 0;
    }
}
