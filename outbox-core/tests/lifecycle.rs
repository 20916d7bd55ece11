//! What a handle says of a relay that begins, cannot, ends or is dropped; and what the observer is told of it
//! all.
#![allow(clippy::expect_used, reason = "a test that fails should panic, and say so")]
#![allow(clippy::disallowed_methods, reason = "a test has the real time")]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_core::{
    AggregateKey, Observer, Relay, RelayConfig, RetryPolicy, StoreErrorKind,
    memory::{MemoryPublisher, MemoryStore},
    publisher::{PublishError, PublishErrorScope},
    relay::{
        Availability, Change, GiveUp, GivenUp, NotReady, ObservedFetch, ObservedPublish, ObservedSettle,
        Phase, StoreWork, TokioClock,
    },
    store::FailureCause,
};
use support::{Door, DoorStore, commit};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

fn memory() -> MemoryStore {
    MemoryStore::new(Arc::new(TokioClock::default()))
}

/// Short pauses, and a lease that is longer than any test.
fn config() -> RelayConfig {
    let soon = Duration::from_millis(5);
    RelayConfig::default()
        .with_lease_ttl(Duration::from_secs(600))
        .with_membership_interval(soon)
        .with_unavailable_delay((soon, soon))
        .with_retry(RetryPolicy::default().with_delay_min(soon).with_delay_max(soon))
}

#[tokio::test]
async fn a_store_that_has_not_answered_is_not_healthy() {
    let (store, door) = DoorStore::new(memory());
    door.send_replace(Door::Shut);
    let relay = Relay::new(store, MemoryPublisher::new(), config()).expect("valid settings");
    let mut handle = relay.handle();
    assert_eq!(handle.ready(), Err(NotReady::Starting));
    let running = tokio::spawn(relay.run());
    handle.wait_for(|status| status.phase == Phase::Running).await.expect("it runs");
    assert_eq!(handle.ready(), Err(NotReady::Joining));
    let status = handle.status();
    assert_eq!((status.store, status.broker), (Availability::Unknown, Availability::Unknown));

    door.send_replace(Door::Broken);
    let status = handle.wait_for(|status| status.store.is_unavailable()).await.expect("it runs");
    assert_eq!(status.last_store_error.as_deref(), Some("cannot reach the store: connection refused"));
    let not_ready = handle.ready().expect_err("the store is away");
    assert!(matches!(not_ready, NotReady::Store { .. }), "{not_ready}");
    assert!(not_ready.to_string().ends_with("cannot reach the store: connection refused"), "{not_ready}");

    door.send_replace(Door::Open);
    let answered =
        |status: &outbox_core::RelayStatus| status.membership_seen && status.store == Availability::Available;
    handle.wait_for(answered).await.expect("it runs");
    assert_eq!(handle.ready(), Ok(()));
    assert_eq!(handle.status().broker, Availability::Unknown, "nothing has been sent");
    handle.shutdown();
    running.await.expect("it ends without a panic");
    let ended = handle.ready().expect_err("it has ended");
    assert_eq!(ended.to_string(), "the relay has ended");
}

#[tokio::test]
async fn a_store_that_falls_silent_is_not_healthy() {
    let (store, door) = DoorStore::new(memory());
    let ms = Duration::from_millis;
    let config = config()
        .with_lease_ttl(ms(200))
        .with_publish_timeout(ms(50))
        .with_lease_margin(ms(10))
        .with_beat_interval(ms(20));
    let relay = Relay::new(store, MemoryPublisher::new(), config).expect("valid settings");
    let mut handle = relay.handle();
    let running = tokio::spawn(relay.run());
    handle.wait_for(|status| status.membership_seen).await.expect("it runs");
    door.send_replace(Door::Shut);
    // No error and no answer comes: the relay says so itself once it has waited for the time between two
    // beats.
    let told = async {
        loop {
            match handle.ready() {
                Err(NotReady::Store { error, .. }) => return error,
                _ => tokio::time::sleep(ms(10)).await,
            }
        }
    };
    let error = timeout(PATIENCE, told).await.expect("it is told");
    assert!(error.contains("the store did not answer within 20ms"), "{error}");
    running.abort();
}

#[tokio::test]
async fn a_relay_that_has_ended_does_not_catch_up() {
    let store = memory();
    let relay = Relay::new(store.clone(), MemoryPublisher::new(), config()).expect("valid settings");
    let mut handle = relay.handle();
    let status = relay.run_until(async { drop(handle.clone().caught_up().await) }).await;
    assert_eq!((status.phase, status.partitions, status.relay), (Phase::Stopped, 0, None));
    commit(&store, "a", 1);
    let ended = timeout(PATIENCE, handle.caught_up()).await.expect("it does not wait");
    assert_eq!(ended.expect_err("an event is pending").status().phase, Phase::Stopped);
}

#[tokio::test]
async fn a_relay_that_was_dropped_says_so_and_gives_its_partitions_back() {
    let store = memory();
    let publisher = MemoryPublisher::new();
    let relay = || Relay::new(store.clone(), publisher.clone(), config()).expect("valid settings");
    let never_run = relay();
    let handle = never_run.handle();
    drop(never_run);
    assert_eq!(handle.status().phase, Phase::Dropped);

    let first = relay();
    let mut handle = first.handle();
    let mut owner = handle.clone();
    tokio::select! {
        _ = first.run() => unreachable!("it was not asked to end"),
        owned = owner.wait_for(|status| status.partitions == 64) => drop(owned.expect("it runs")),
    }
    commit(&store, "a", 3);
    let ended = timeout(PATIENCE, handle.caught_up()).await.expect("it does not wait");
    let ended = ended.expect_err("an event is pending");
    assert!(ended.to_string().contains("dropped"), "{ended}");
    assert!(matches!(handle.ready(), Err(NotReady::Ended(_))));
    assert_eq!((ended.status().phase, ended.status().partitions), (Phase::Dropped, 0));

    let second = relay();
    let mut handle = second.handle();
    let running = tokio::spawn(second.run());
    // The lease is of ten minutes: it was not waited for.
    let taken_over = handle.wait_for(|status| status.sent == 3 && status.partitions == 64);
    timeout(PATIENCE, taken_over).await.expect("the leases are free").expect("it runs");
    handle.shutdown();
    running.await.expect("it ends without a panic");
}

#[tokio::test]
async fn a_relay_that_is_aborted_or_panics_says_so() {
    struct Panics;
    impl Observer for Panics {
        fn changed(&self, change: &Change) {
            assert!(!matches!(change, Change::Claimed(_)), "a panic that is meant");
        }
    }
    let store = memory();
    let relay = Relay::new(store.clone(), MemoryPublisher::new(), config()).expect("valid settings");
    let mut handle = relay.with_observer(Panics).spawned();
    handle.0.wait_for(|status| status.phase == Phase::Dropped).await.expect("its panic is told");
    assert!(handle.1.await.is_err(), "it panicked");

    let relay = Relay::new(store, MemoryPublisher::new(), config()).expect("valid settings");
    let mut handle = relay.spawned();
    handle.0.wait_for(|status| status.phase == Phase::Running).await.expect("it runs");
    handle.1.abort();
    handle.0.wait_for(|status| status.phase == Phase::Dropped).await.expect("its abort is told");
}

trait Spawned {
    fn spawned(self) -> (outbox_core::RelayHandle, tokio::task::JoinHandle<outbox_core::RelayStatus>);
}

impl Spawned for Relay {
    fn spawned(self) -> (outbox_core::RelayHandle, tokio::task::JoinHandle<outbox_core::RelayStatus>) {
        (self.handle(), tokio::spawn(self.run()))
    }
}

/// What a recording observer was told.
#[derive(Debug, Default)]
struct Told {
    changes: Vec<Change>,
    outcomes: Vec<(String, bool)>,
    settles: Vec<ObservedSettle>,
    given_up: Vec<GivenUp>,
    rows: usize,
    bytes: usize,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Told>>);

impl Recorder {
    fn told<T>(&self, of: impl FnOnce(&mut Told) -> T) -> T {
        of(&mut self.0.lock().expect("no observer panics"))
    }
}

impl Observer for Recorder {
    fn fetched(&self, fetch: &ObservedFetch) {
        self.told(|told| (told.rows, told.bytes) = (told.rows + fetch.rows, told.bytes + fetch.bytes));
    }

    fn published(&self, outcomes: &[ObservedPublish]) {
        let outcome = |outcome: &ObservedPublish| {
            (outcome.message.key.aggregate_id().to_owned(), outcome.result.is_ok())
        };
        self.told(|told| told.outcomes.extend(outcomes.iter().map(outcome)));
    }

    fn settled(&self, settle: &ObservedSettle) {
        self.told(|told| told.settles.push(settle.clone()));
    }

    fn given_up(&self, events: &[GivenUp]) {
        self.told(|told| told.given_up.extend(events.iter().cloned()));
    }

    fn changed(&self, change: &Change) {
        self.told(|told| told.changes.push(change.clone()));
    }
}

#[tokio::test]
async fn the_observer_is_told_each_change_once_and_in_order() {
    let (store, door) = DoorStore::new(memory());
    let publisher = MemoryPublisher::new();
    let gone = PublishError::unavailable("Down", "the broker is gone");
    publisher.fail_next(&AggregateKey::new("order", "broker"), gone.clone(), 3);
    let unknown = gone.clone().scope(PublishErrorScope::Destination);
    publisher.fail_next(&AggregateKey::new("order", "topic"), unknown.clone(), 2);
    let recorder = Recorder::default();
    let relay = Relay::new(store.clone(), publisher, config()).expect("valid settings");
    let (mut handle, running) = relay.with_observer(recorder.clone()).spawned();
    handle.wait_for(|status| status.partitions == 64).await.expect("it runs");
    commit(&store.inner, "broker", 1);
    handle.wait_for(|status| status.sent == 1).await.expect("it runs");
    commit(&store.inner, "topic", 1);
    handle.wait_for(|status| status.sent == 2).await.expect("it runs");
    door.send_replace(Door::Broken);
    handle.wait_for(|status| status.store_errors >= 10).await.expect("it runs");
    door.send_replace(Door::Open);
    handle.wait_for(|status| status.store == Availability::Available).await.expect("it runs");
    handle.shutdown();
    running.await.expect("it ends without a panic");

    let changes = recorder.told(|told| std::mem::take(&mut told.changes));
    let is_store =
        |change: &Change| matches!(change, Change::StoreTrouble { .. } | Change::StoreRecovered { .. });
    let (of_store, others): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(is_store);
    let names: Vec<String> = others.iter().map(name).collect();
    assert_eq!(
        names,
        [
            "Running",
            "Joined",
            "Claimed",
            "broker down",
            "broker up",
            "topic down",
            "topic up",
            "Draining",
            "Stopped"
        ]
    );
    // Reading and membership fail beside each other, in any order; each is told once, until it works again.
    for work in [StoreWork::Lease, StoreWork::Membership, StoreWork::Reading] {
        let of_work: Vec<bool> = of_store
            .iter()
            .filter_map(|change| match change {
                Change::StoreTrouble { work: of, kind, error, .. } if *of == work => {
                    assert_eq!(*kind, StoreErrorKind::Unavailable);
                    assert_eq!(error, "cannot reach the store: connection refused");
                    Some(false)
                }
                Change::StoreRecovered { work: of, .. } if *of == work => Some(true),
                _ => None,
            })
            .collect();
        // A beat need not fall into the time of the trouble.
        if work != StoreWork::Lease || !of_work.is_empty() {
            assert_eq!(of_work, [false, true], "{work:?} in {of_store:?}");
        }
    }
    assert!(matches!(of_store.len(), 4 | 6), "{of_store:?}");
}

fn name(change: &Change) -> String {
    match change {
        Change::Phase(phase) => format!("{phase:?}"),
        Change::Joined(_) => "Joined".to_owned(),
        Change::Claimed(partitions) => {
            assert_eq!(partitions.len(), 64);
            "Claimed".to_owned()
        }
        Change::BrokerUnavailable { error, .. } => {
            assert_eq!(error.detail, "the broker is gone");
            "broker down".to_owned()
        }
        Change::BrokerAvailable => "broker up".to_owned(),
        Change::TopicUnavailable { topic, .. } => {
            assert_eq!(&**topic, "order");
            "topic down".to_owned()
        }
        Change::TopicAvailable { .. } => "topic up".to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn the_observer_is_told_what_was_read_published_settled_and_given_up() {
    let (mut store, _door) = DoorStore::new(memory());
    store.settle_events_max = Some(7);
    let publisher = MemoryPublisher::new();
    publisher.fail_next(&AggregateKey::new("order", "bad"), PublishError::permanent("TooLarge", "never"), 1);
    let recorder = Recorder::default();
    let retry = RetryPolicy::default().with_give_up(GiveUp::Park);
    for aggregate in 0..50 {
        commit(&store.inner, &aggregate.to_string(), 1);
    }
    commit(&store.inner, "bad", 2);
    let relay = Relay::new(store, publisher, config().with_retry(retry)).expect("valid settings");
    let (mut handle, running) = relay.with_observer(recorder.clone()).spawned();
    handle.wait_for(|status| status.sent == 50 && status.failed == 1).await.expect("it runs");
    handle.shutdown();
    let status = running.await.expect("it ends without a panic");

    let told = recorder.told(std::mem::take);
    assert!(told.rows >= 51 && told.bytes > 0, "{} rows, {} bytes", told.rows, told.bytes);
    assert_eq!(told.outcomes.iter().filter(|(_, acknowledged)| *acknowledged).count(), 50);
    let refused: Vec<&str> =
        told.outcomes.iter().filter(|(_, acknowledged)| !acknowledged).map(|(id, _)| id.as_str()).collect();
    assert_eq!(refused, ["bad"]);
    let sum = |of: fn(&ObservedSettle) -> u64| told.settles.iter().map(of).sum::<u64>();
    assert_eq!((sum(|settle| settle.sent), sum(|settle| settle.failed)), (50, 1));
    assert_eq!((status.sent, status.failed, status.published, status.refused), (50, 1, 50, 1));
    let largest = told.settles.iter().map(|settle| settle.sent + settle.failed).max();
    assert!(largest <= Some(7), "the store asks for 7 at most: {largest:?}");
    let [given_up] = &told.given_up[..] else { panic!("one event is given up: {:?}", told.given_up) };
    assert_eq!((given_up.key.aggregate_id(), given_up.attempts, given_up.parked), ("bad", 1, true));
    assert_eq!((given_up.cause, given_up.error.as_str()), (FailureCause::Permanent, "TooLarge: never"));
    assert!(given_up.id.is_some() && given_up.topic.as_deref() == Some("order"), "{given_up:?}");
}
