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
//!
//! What a relay knows stands in parts, each with fields that only it touches: [`Leases`], [`Lanes`],
//! [`Flights`], [`Decided`], [`Unrecorded`], [`Reading`] and [`Scopes`]; [`Account`] tells of it. The chapters of the engine
//! say how one follows from the other.

mod fetching;
mod membership;
mod outcomes;
mod publishing;
mod settling;

use std::sync::Arc;

use super::{
    Observer, Phase, RelayConfig, RelayStatus, account::Account, decided::Decided, flights::Flights,
    lanes::Lanes, leases::Leases, reading::Reading, scopes::Scopes, unrecorded::Unrecorded,
};
use crate::{
    clock::Monotonic,
    publisher::Message,
    store::{FetchRequest, Lease, RelayId, Sequence, SettleRequest},
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
    Settle(Arc<SettleRequest>),
    /// Give these leases back.
    Release(Vec<Lease>),
}

impl Command {
    fn publish((call, messages): (u64, Vec<Arc<Message>>)) -> Self {
        Self::Publish(call, messages)
    }
}

/// The state of a relay.
#[derive(Debug)]
pub(crate) struct Engine {
    config: RelayConfig,
    rng: fastrand::Rng,
    leases: Leases,
    lanes: Lanes,
    flights: Flights,
    decided: Decided,
    unrecorded: Unrecorded,
    reading: Reading,
    scopes: Scopes,
    stopping: bool,
    account: Account,
}

impl Engine {
    pub(crate) fn new(config: RelayConfig, seed: u64, observer: Option<Arc<dyn Observer>>) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            leases: Leases::default(),
            lanes: Lanes::new(&config),
            flights: Flights::default(),
            decided: Decided::new(config.settle_events_max, config.retention.when_sent),
            unrecorded: Unrecorded::default(),
            reading: Reading::new(&config),
            scopes: Scopes::new(config.unavailable_delay),
            stopping: false,
            account: Account::new(observer),
            config,
        }
    }

    /// The relay runs.
    pub(crate) fn start(&mut self) {
        self.account.phase(Phase::Running);
    }

    /// Nothing new is begun from now on.
    pub(crate) fn stop(&mut self) {
        self.account.phase(Phase::Draining);
        self.stopping = true;
        self.decided.drop_unholds();
        self.lanes.drain_partitions(|_| true);
    }

    /// True once nothing is in flight, being recorded or to be recorded.
    pub(crate) fn is_drained(&self) -> bool {
        self.flights.is_idle()
            && !self.decided.is_settling()
            && (self.decided.has_none_waiting() || self.leases.relay().is_none())
    }

    /// Leases that are to be given back and have nothing in flight any more.
    pub(crate) fn next_release(&mut self) -> Option<Command> {
        let done = self.leases.drained();
        if done.is_empty() {
            return None;
        }
        self.lose(&done);
        self.account.released(&done, self.leases.count());
        Some(Command::Release(done))
    }

    /// When something can happen by the passing of time alone.
    pub(crate) fn next_time(&self, now: Monotonic) -> Option<Monotonic> {
        let reads = !self.stopping && !self.reading.is_running() && !self.leases.is_empty();
        let read_at = reads.then(|| self.reading.next());
        let send_at = self.lanes.has_ready().then(|| self.scopes.shut_until());
        let settle_at = self.unrecorded.next();
        read_at.into_iter().chain(send_at).chain(settle_at).filter(|at| *at > now).min()
    }

    /// All that has happened is dealt with: tells what was gathered meanwhile.
    pub(crate) fn turn_ended(&mut self, now: Monotonic) {
        let unrecorded = self.unrecorded.next().map(|_| self.unrecorded.count());
        self.account.turn_ended(now, self.lanes.known_count(), self.flights.count(), unrecorded);
    }

    /// The relay has ended.
    pub(crate) fn ended(&mut self, now: Monotonic) {
        self.turn_ended(now);
        self.account.phase(Phase::Stopped);
    }

    pub(crate) fn status(&self) -> &RelayStatus {
        self.account.status()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        AggregateKey,
        relay::happening::Written,
        store::{Claimed, Fetched, Row, StoredEvent},
    };

    const NOW: Monotonic = Duration::from_secs(1);

    fn row(sequence: Sequence) -> Row {
        row_of("1", sequence)
    }

    fn row_of(id: &str, sequence: Sequence) -> Row {
        let event = StoredEvent {
            id: uuid::Uuid::from_u128(sequence as u128),
            event_type: "e".to_owned(),
            version: 1,
            payload: None,
            content_type: None,
            headers: BTreeMap::new(),
            topic: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let key = AggregateKey::new("order", id);
        Row { sequence, partition: 0, key, attempts: 0, age: Duration::ZERO, content: Ok(event) }
    }

    /// The sequences that the engine publishes now.
    fn published(engine: &mut Engine) -> Vec<Sequence> {
        match engine.next_publish(NOW) {
            Some(Command::Publish(_, messages)) => messages.iter().map(|message| message.sequence).collect(),
            _ => Vec::new(),
        }
    }

    fn fetch(engine: &mut Engine, fetched: Fetched) -> FetchRequest {
        engine.wake(NOW);
        let Some(Command::Fetch(_, request)) = engine.next_fetch(NOW) else { panic!("it does not read") };
        engine.fetched(NOW, fetched, Duration::ZERO);
        request
    }

    fn engine() -> Engine {
        let mut engine = Engine::new(RelayConfig::default(), 1, None);
        engine.joined(NOW, RelayId(uuid::Uuid::nil()), Duration::from_secs(60));
        engine.claimed(NOW, &[Claimed { lease: Lease { partition: 0, epoch: 1 }, owner_died: false }]);
        engine
    }

    /// Publishes and acknowledges what can be, until an aggregate has no more than `left` events.
    fn drain(engine: &mut Engine, left: usize) {
        while engine.lanes.known_count() - engine.unsettled() > left {
            let Some(Command::Publish(call, messages)) = engine.next_publish(NOW) else { continue };
            for index in 0..u32::try_from(messages.len()).unwrap() {
                engine.reported(NOW, crate::publisher::Report { call, index, result: Ok(()) });
            }
        }
        while let Some(Command::Settle(_)) = engine.next_settle(NOW) {
            engine.settled(NOW, Written::default());
        }
    }

    #[test]
    fn rows_that_come_with_the_news_of_a_pause_do_not_pass_those_that_it_drops() {
        let mut engine = engine();
        fetch(&mut engine, Fetched { rows: vec![row(1), row(2)], ..Fetched::default() });
        assert_eq!(published(&mut engine), vec![1]);
        let paused = vec![AggregateKey::new("order", "1")];
        fetch(&mut engine, Fetched { rows: vec![row(3)], paused, ..Fetched::default() });
        engine.reported(NOW, crate::publisher::Report { call: 1, index: 0, result: Ok(()) });
        assert!(published(&mut engine).is_empty(), "2 was dropped, so 3 must not go");
    }

    #[test]
    fn a_hot_aggregate_is_named_until_it_has_drained_to_half_and_then_read_on() {
        let mut engine = engine();
        let hot = vec![AggregateKey::new("order", "1")];
        let first = fetch(&mut engine, Fetched { rows: (1..=100).map(row).collect(), ..Fetched::default() });
        assert!(first.full.is_empty());
        drain(&mut engine, 33);
        assert_eq!(fetch(&mut engine, Fetched::default()).full, hot);
        let soon = NOW + RelayConfig::default().poll_min;
        engine.reading.failed(Duration::ZERO, NOW + Duration::from_secs(9));
        assert!(engine.next_fetch(soon).is_none(), "there is nothing more to be read");
        drain(&mut engine, 32);
        let Some(Command::Fetch(_, request)) = engine.next_fetch(soon) else { panic!("it does not read on") };
        assert!(request.full.is_empty());
    }

    #[test]
    fn nothing_is_said_to_be_left_only_if_every_aggregate_was_read() {
        let mut engine = engine();
        fetch(&mut engine, Fetched { rows: (1..=64).map(row).collect(), ..Fetched::default() });
        engine.wake(NOW);
        assert!(matches!(engine.next_fetch(NOW), Some(Command::Fetch(..))));
        drain(&mut engine, 0);
        engine.fetched(NOW, Fetched::default(), Duration::ZERO);
        assert_eq!((engine.lanes.known_count(), engine.status().idle_reads), (0, 0));
        fetch(&mut engine, Fetched::default());
        assert_eq!(engine.status().idle_reads, 1);
    }

    #[test]
    fn a_lease_that_is_found_lost_twice_has_its_strays_once() {
        let mut engine = engine();
        let (first, other) = (Lease { partition: 0, epoch: 1 }, Lease { partition: 1, epoch: 1 });
        engine.claimed(NOW, &[Claimed { lease: other, owner_died: false }]);
        fetch(&mut engine, Fetched { rows: vec![row(1)], ..Fetched::default() });
        assert_eq!(published(&mut engine), vec![1]);
        // A settle was fenced; then the steward sees the same, and another loss.
        engine.lost(&[first]);
        engine.lost(&[first, other]);
        engine.reported(NOW, crate::publisher::Report { call: 1, index: 0, result: Ok(()) });
        let again = Lease { partition: 0, epoch: 3 };
        engine.claimed(NOW, &[Claimed { lease: again, owner_died: false }]);
        assert_eq!(fetch(&mut engine, Fetched::default()).leases, vec![again]);
    }

    #[test]
    fn what_a_broker_says_is_recorded_as_every_store_can_keep_it() {
        let mut engine = engine();
        fetch(&mut engine, Fetched { rows: vec![row(1)], ..Fetched::default() });
        assert_eq!(published(&mut engine), vec![1]);
        let error = crate::publisher::PublishError::permanent("TooLarge", "\0".repeat(10_000));
        engine.reported(NOW, crate::publisher::Report { call: 1, index: 0, result: Err(error) });
        let Some(Command::Settle(request)) = engine.next_settle(NOW) else { panic!("it does not settle") };
        let crate::store::Outcome::Failed { error, .. } = &request.settlements[0].outcome else {
            panic!("{request:?}")
        };
        assert!(
            error.len() <= crate::store::ERROR_BYTES_MAX && !error.contains('\0'),
            "{} bytes",
            error.len()
        );
    }

    #[test]
    fn one_long_backlog_after_the_other_does_not_fill_the_buffer() {
        let mut engine = engine();
        let mut lanes = 0;
        while engine.reading.room(&engine.lanes).is_some() {
            lanes += 1;
            let id = lanes.to_string();
            engine.wake(NOW);
            let Some(Command::Fetch(_, request)) = engine.next_fetch(NOW) else { panic!("it does not read") };
            let rows = (0..request.events_max).map(|row| row_of(&id, 10_000 * lanes + row as Sequence));
            engine.fetched(
                NOW,
                Fetched { rows: rows.collect(), more: true, ..Fetched::default() },
                Duration::ZERO,
            );
        }
        // With fetches of the same size it would be four.
        assert!(lanes >= 20, "{lanes} lanes fill it");
    }
}
