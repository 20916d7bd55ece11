//! The relay on the in-memory store and publisher, under Tokio's clock.
#![allow(clippy::expect_used, reason = "a test that fails should panic, and say so")]
#![allow(clippy::disallowed_methods, reason = "a test has the real time")]

mod support;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use outbox_core::{
    AggregateKey, Event, EventFilter, OutboxAdmin, OutboxStore as _, Relay, RelayConfig, RelayHandle,
    RelayStatus, RetryPolicy,
    memory::{MemoryPublisher, MemoryStore},
    publisher::PublishError,
    relay::{Clock, GiveUp, InvalidJson, Monotonic, Phase, Task, TokioClock},
    store::{FailureCause, Status},
};

struct World {
    store: MemoryStore,
    publisher: MemoryPublisher,
    handle: RelayHandle,
    task: tokio::task::JoinHandle<RelayStatus>,
}

impl World {
    fn start(retry: RetryPolicy) -> Self {
        let store = MemoryStore::new(Arc::new(TokioClock::default()));
        let publisher = MemoryPublisher::new();
        let soon = Duration::from_millis(5);
        let config = RelayConfig::default()
            .with_membership_interval(soon)
            .with_retry(retry.with_delay_min(soon).with_delay_max(soon));
        let relay = Relay::new(store.clone(), publisher.clone(), config).expect("valid settings");
        let handle = relay.handle();
        let task = tokio::spawn(relay.run());
        Self { store, publisher, handle, task }
    }

    fn enqueue(&self, aggregate: &str, count: usize) {
        let mut tx = self.store.begin();
        for number in 0..count {
            tx.enqueue(&event(aggregate, number)).expect("enqueue");
        }
        tx.commit();
    }

    fn delivered(&self, aggregate: &str) -> Vec<String> {
        let of = |id: &str| id == aggregate;
        self.publisher
            .delivered()
            .iter()
            .filter(|message| of(message.key.aggregate_id()))
            .map(|message| message.event.event_type.clone())
            .collect()
    }

    async fn stop(self) -> RelayStatus {
        self.handle.shutdown();
        self.task.await.expect("the relay ends without a panic")
    }
}

fn event(aggregate: &str, number: usize) -> Event {
    Event::builder("order", aggregate, number.to_string()).build().expect("a valid event")
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn everything_is_delivered_in_order_and_marked_sent() {
    let mut world = World::start(RetryPolicy::default());
    for aggregate in ["a", "b", "c"] {
        world.enqueue(aggregate, 50);
    }
    world.handle.caught_up().await.expect("it runs");
    for aggregate in ["a", "b", "c"] {
        assert_eq!(world.delivered(aggregate), numbers(0..50));
    }
    let sent = world.store.list(&EventFilter::status(Status::Sent), 1000).await.expect("list");
    assert_eq!(sent.len(), 150);
    let status = world.stop().await;
    assert_eq!((status.phase, status.sent, status.retried), (Phase::Stopped, 150, 0));
}

#[tokio::test]
async fn a_failing_event_holds_back_its_own_aggregate_only() {
    let mut world = World::start(RetryPolicy::default());
    let slow = AggregateKey::new("order", "slow");
    world.publisher.fail_next(&slow, PublishError::transient("Busy", "try later"), 2);
    world.enqueue("slow", 5);
    world.enqueue("fast", 5);
    world.handle.wait_for(|status| status.sent == 10).await.expect("it runs");
    assert_eq!(world.delivered("slow"), numbers(0..5));
    assert_eq!(world.delivered("fast"), numbers(0..5));
    let status = world.stop().await;
    assert_eq!((status.retried, status.failed), (2, 0));
}

#[tokio::test]
async fn an_exhausted_event_is_stored_and_its_successors_go_on_or_wait_as_policy_says() {
    for (give_up, expected) in [(GiveUp::Store, numbers(1..3)), (GiveUp::Park, numbers(0..0))] {
        let retry = RetryPolicy::default().with_attempts_max(2).with_give_up(give_up);
        let mut world = World::start(retry);
        let key = AggregateKey::new("order", "a");
        world.publisher.fail_next(&key, PublishError::transient("Busy", "try later"), 2);
        world.enqueue("a", 3);
        world.handle.wait_for(|status| status.failed == 1).await.expect("it runs");
        world.handle.caught_up().await.expect("it runs");
        assert_eq!(world.delivered("a"), expected, "{give_up:?}");
        let failed = world.store.list(&EventFilter::status(Status::Failed), 10).await.expect("list");
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].cause, failed[0].attempts), (Some(FailureCause::Exhausted), 2));

        let requeued = world.store.requeue(&EventFilter::status(Status::Failed)).await.expect("requeue");
        assert_eq!(requeued, 1);
        world.handle.wait_for(|status| status.sent == 3).await.expect("it runs");
        let mut all = world.delivered("a");
        all.sort();
        assert_eq!(all, numbers(0..3));
        if give_up == GiveUp::Park {
            assert_eq!(world.delivered("a"), numbers(0..3), "a park keeps the original place");
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn an_undecodable_row_fails_alone() {
    let mut world = World::start(RetryPolicy::default());
    let mut tx = world.store.begin();
    tx.enqueue(&event("a", 0)).expect("enqueue");
    tx.enqueue_undecodable(&AggregateKey::new("order", "a"), "headers are not a JSON object");
    tx.enqueue(&event("a", 1)).expect("enqueue");
    tx.commit();
    world.handle.wait_for(|status| status.sent == 2 && status.failed == 1).await.expect("it runs");
    assert_eq!(world.delivered("a"), numbers(0..2));
    let failed = world.store.list(&EventFilter::status(Status::Failed), 10).await.expect("list");
    assert_eq!(failed[0].cause, Some(FailureCause::Undecodable));
    world.stop().await;
}

#[tokio::test]
async fn a_payload_that_is_not_the_json_it_says_to_be_is_sent_or_fails_alone() {
    for (invalid_json, failed) in [(InvalidJson::Send, 0), (InvalidJson::Refuse, 1)] {
        let store = MemoryStore::new(Arc::new(TokioClock::default()));
        let publisher = MemoryPublisher::new();
        let mut transaction = store.begin();
        for event in [
            Event::builder("order", "a", "broken").payload("{\"path\": \"C:\\dir\"}"),
            Event::builder("order", "a", "well").payload("{\"path\": \"C:\\\\dir\"}"),
            Event::builder("order", "a", "text").payload("{").content_type("text/plain"),
            Event::tombstone("order", "a", "gone"),
        ] {
            transaction.enqueue(&event.build().expect("a valid event")).expect("enqueue");
        }
        transaction.commit();
        let config = RelayConfig::default().with_invalid_json(invalid_json);
        let relay = Relay::new(store.clone(), publisher.clone(), config).expect("valid settings");
        let mut handle = relay.handle();
        let task = tokio::spawn(relay.run());
        handle.caught_up().await.expect("it runs");
        handle.shutdown();
        task.await.expect("the relay ends without a panic");
        let given_up = store.list(&EventFilter::status(Status::Failed), 10).await.expect("list");
        assert_eq!(given_up.len(), failed);
        for event in given_up {
            assert_eq!((&*event.event_type, event.cause), ("broken", Some(FailureCause::Undecodable)));
            assert!(event.last_error.is_some_and(|error| error.contains("relay.invalid_json")));
        }
        assert_eq!(publisher.delivered().len(), 4 - failed);
    }
}

#[tokio::test]
async fn two_relays_share_the_work_and_a_clean_stop_hands_it_over() {
    let mut first = World::start(RetryPolicy::default());
    first.handle.wait_for(|status| status.partitions == 64).await.expect("it runs");
    let config = RelayConfig::default().with_membership_interval(Duration::from_millis(5));
    let second = Relay::new(first.store.clone(), first.publisher.clone(), config).expect("valid settings");
    let mut handle = second.handle();
    let task = tokio::spawn(second.run());
    handle.wait_for(|status| status.partitions == 32).await.expect("it runs");
    first.handle.wait_for(|status| status.partitions == 32).await.expect("it runs");
    for aggregate in 0..20 {
        first.enqueue(&aggregate.to_string(), 10);
    }
    let (store, publisher) = (first.store.clone(), first.publisher.clone());
    publisher.delivered_at_least(200).await;
    first.stop().await;
    handle.wait_for(|status| status.partitions == 64).await.expect("it runs");
    let mut tx = store.begin();
    tx.enqueue(&event("last", 0)).expect("enqueue");
    tx.commit();
    publisher.delivered_at_least(201).await;
    assert_eq!(publisher.delivered().len(), 201, "a clean hand-over duplicates nothing");
    handle.shutdown();
    task.await.expect("the relay ends without a panic");
}

/// A clock whose process dies: nothing is done once its relay is dropped.
struct Mortal(TokioClock);

impl Clock for Mortal {
    fn now(&self) -> Monotonic {
        self.0.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        self.0.spawn(task)
    }
}

#[tokio::test]
async fn a_relay_that_beats_more_often_than_it_looks_around_takes_over_all_the_same() {
    let store = MemoryStore::new(Arc::new(TokioClock::default()));
    let relay = || {
        let config = RelayConfig::default()
            .with_lease_ttl(Duration::from_millis(400))
            .with_publish_timeout(Duration::from_millis(100))
            .with_lease_margin(Duration::from_millis(50))
            .with_beat_interval(Duration::from_millis(20))
            .with_membership_interval(Duration::from_millis(30));
        let clock = Arc::new(Mortal(TokioClock::default()));
        Relay::with_clock(store.clone(), MemoryPublisher::new(), config, clock).expect("valid settings")
    };
    let first = relay();
    let mut handle = first.handle();
    let task = tokio::spawn(first.run());
    handle.wait_for(|status| status.partitions == 64).await.expect("it runs");
    let second = relay();
    let mut handle = second.handle();
    let running = tokio::spawn(second.run());
    // Like a crash: its leases expire.
    task.abort();
    let all = handle.wait_for(|status| status.partitions == 64);
    let all = tokio::time::timeout(Duration::from_secs(60), all).await.expect("the second relay takes over");
    all.expect("it runs");
    handle.shutdown();
    running.await.expect("the relay ends without a panic");
}

/// A claim that is never answered, as of a partition that a dead relay's transaction has locked, keeps no
/// relay from renewing its lease: what it owns is relayed, and it is not buried.
#[tokio::test]
async fn a_claim_without_an_answer_costs_no_lease() {
    let store = MemoryStore::new(Arc::new(TokioClock::default()));
    let (store, door) = support::DoorStore::new(store);
    let memory = store.inner.clone();
    let publisher = MemoryPublisher::new();
    let ms = Duration::from_millis;
    let config = RelayConfig::default()
        .with_lease_ttl(ms(2_500))
        .with_beat_interval(ms(100))
        .with_membership_interval(ms(20))
        .with_publish_timeout(ms(300))
        .with_lease_margin(ms(100));
    let relay =
        Relay::new(store.with_claims_behind_the_door(), publisher.clone(), config).expect("valid settings");
    let mut handle = relay.handle();
    let task = tokio::spawn(relay.run());
    handle.wait_for(|status| status.partitions == 64).await.expect("it runs");
    // From now on every claim hangs. There is one to be made: another relay came and has gone.
    door.send_replace(support::Door::Shut);
    let other = memory.join(Duration::from_secs(3600)).await.expect("join");
    handle.wait_for(|status| status.partitions == 32).await.expect("it gives up half");
    memory.leave(other).await.expect("leave");
    let began = tokio::time::Instant::now();
    while began.elapsed() < ms(3_500) {
        support::commit(&memory, "a", 1);
        tokio::time::sleep(ms(100)).await;
    }
    let status = handle.status();
    assert_eq!((status.buried, status.partitions), (0, 32), "{status:?}");
    assert!(status.store.is_unavailable(), "it says that the store does not answer: {status:?}");
    door.send_replace(support::Door::Open);
    handle.wait_for(|status| status.partitions == 64).await.expect("it claims at last");
    handle.shutdown();
    task.await.expect("the relay ends without a panic");
}
