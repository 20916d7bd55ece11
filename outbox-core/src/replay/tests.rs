use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use async_trait::async_trait;
use futures::FutureExt;

use super::*;
use crate::{
    AggregateKey, Event, Finding, OutboxStore, StoreErrorKind, WhenSent,
    memory::{MemoryPublisher, MemoryStore},
    publisher::{PublishError, PublishErrorScope, Reporter},
    relay::Phase,
    store::{FailureCause, HoldRecord, Outcome, SettleRequest, Settlement, Successors},
};

/// A store whose events, `aggregates` times `each`, are all sent, and archived if asked for.
async fn sent(aggregates: u32, each: u32, when_sent: WhenSent) -> MemoryStore {
    let store = MemoryStore::new(Arc::new(TokioClock::default()));
    let mut transaction = store.begin();
    for n in 0..aggregates * each {
        let event =
            Event::builder("order", (n % aggregates).to_string(), "order.placed").header("n", n.to_string());
        transaction.enqueue(&event.build().unwrap()).unwrap();
    }
    transaction.commit();
    settle_all(&store, when_sent, |_| Outcome::Sent).await;
    store
}

async fn settle_all(store: &MemoryStore, when_sent: WhenSent, outcome: impl Fn(&EventRecord) -> Outcome) {
    let relay = store.join(Duration::from_secs(3600)).await.unwrap();
    let view = store.membership(relay).await.unwrap().partitions;
    let seen: Vec<_> = view.iter().map(|view| (view.partition, view.epoch)).collect();
    let leases = store.claim(relay, &seen).await.unwrap().iter().map(|claimed| claimed.lease).collect();
    let records = store.list(&EventFilter::default(), u32::MAX).await.unwrap();
    let settlement = |record: &EventRecord| Settlement {
        sequence: record.sequence,
        partition: record.partition,
        key: record.key.clone(),
        attempts: 1,
        outcome: outcome(record),
    };
    let settlements = records.iter().map(settlement).collect();
    let request = SettleRequest { relay, leases, settlements, unholds: Vec::new(), when_sent };
    store.settle(&request).await.unwrap();
    store.leave(relay).await.unwrap();
}

fn config(filter: EventFilter) -> ReplayConfig {
    let (min, max) = (Duration::from_millis(1), Duration::from_millis(2));
    ReplayConfig::new(filter, "again".parse().unwrap())
        .with_retry(RetryPolicy::default().with_delay_min(min).with_delay_max(max))
        .with_unavailable_delay((min, max))
}

fn replay(store: &MemoryStore, publisher: &Arc<impl Publisher>, config: ReplayConfig) -> Replay {
    Replay::new(store.clone(), Arc::clone(publisher), config).unwrap()
}

async fn run(replay: Replay) -> ReplayProgress {
    let (progress, end) = replay.run().await;
    assert!(matches!(end, ReplayEnd::Complete), "{end:?}");
    progress
}

fn by_key(messages: &[Arc<Message>]) -> BTreeMap<AggregateKey, Vec<Sequence>> {
    let mut lists: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for message in messages {
        lists.entry(message.key.clone()).or_default().push(message.sequence);
    }
    lists
}

fn assert_in_order(messages: &[Arc<Message>]) {
    for (key, list) in by_key(messages) {
        assert!(list.is_sorted(), "{key}: {list:?}");
    }
}

#[tokio::test]
async fn sent_events_are_sent_again_in_order_and_marked() {
    let store = sent(7, 300, WhenSent::Keep).await;
    let before = store.list(&EventFilter::default(), u32::MAX).await.unwrap();
    let publisher = Arc::new(MemoryPublisher::new());
    let replay = replay(&store, &publisher, config(EventFilter::default()));
    let id = replay.id();
    let progress = run(replay).await;
    assert_eq!((progress.sent, progress.refused, progress.retried), (2_100, 0, 0));
    assert_eq!(progress.position, before.last().map(|record| record.sequence));
    let delivered = publisher.delivered();
    assert_eq!(delivered.len(), 2_100);
    assert_in_order(&delivered);
    let (first, record) = (&delivered[0], &before[0]);
    assert_eq!((Some(first.event.id), &*first.topic, first.attempt), (record.id, "again", 1));
    assert_eq!(first.event.headers[REPLAY_HEADER], id.to_string());
    assert_eq!(first.event.headers["n"], "0");
    assert_eq!(store.list(&EventFilter::default(), u32::MAX).await.unwrap(), before, "nothing is changed");
}

#[tokio::test]
async fn the_archive_is_replayed_and_failed_events_of_it_where_they_are_asked_for() {
    let store = sent(3, 4, WhenSent::Archive).await;
    let mut transaction = store.begin();
    transaction.enqueue(&Event::builder("order", "0", "order.lost").build().unwrap()).unwrap();
    transaction.commit();
    let failed = |_: &EventRecord| Outcome::Failed {
        cause: FailureCause::Permanent,
        error: "no".to_owned(),
        successors: Successors::Release,
    };
    settle_all(&store, WhenSent::Keep, failed).await;
    let age = (Duration::ZERO, crate::Disposal::Archive);
    let purge = crate::store::PurgeRequest { sent: None, failed: Some(age), rows_max: 10 };
    assert_eq!(store.purge(purge).await.unwrap().failed, 1);
    for (filter, expected) in [
        (EventFilter::default(), 0),
        (EventFilter { archived: true, ..EventFilter::default() }, 12),
        (EventFilter { archived: true, ..EventFilter::aggregate(&AggregateKey::new("order", "2")) }, 4),
        (EventFilter { archived: true, ..EventFilter::status(Status::Failed) }, 1),
    ] {
        let publisher = Arc::new(MemoryPublisher::new());
        let replay = replay(&store, &publisher, config(filter));
        let plan = replay.plan(|_| ()).await.unwrap();
        assert_eq!((plan.events, publisher.delivered().len()), (expected, 0), "a dry run sends nothing");
        assert_eq!(run(replay).await.sent, expected);
        assert_eq!(publisher.delivered().len() as u64, expected);
    }
}

#[tokio::test]
async fn a_topic_of_the_event_counts_only_where_it_was_asked_for() {
    let store = MemoryStore::new(Arc::new(TokioClock::default()));
    let mut transaction = store.begin();
    for topic in ["own", "other"] {
        transaction
            .enqueue(&Event::builder("order", "1", "order.placed").topic(topic).build().unwrap())
            .unwrap();
    }
    transaction.commit();
    settle_all(&store, WhenSent::Keep, |_| Outcome::Sent).await;
    let publisher = Arc::new(MemoryPublisher::new());
    let mut config = config(EventFilter::default());
    let plan = replay(&store, &publisher, config.clone()).plan(|_| ()).await.unwrap();
    assert_eq!(plan.topics, BTreeMap::from([("again".into(), 2)]));
    config.own_topics = true;
    let plan = replay(&store, &publisher, config).plan(|_| ()).await.unwrap();
    assert_eq!(plan.topics, BTreeMap::from([("own".into(), 1), ("other".into(), 1)]));
    assert_eq!((plan.events, plan.range), (2, Some((1, 2))));
}

#[tokio::test]
async fn what_fails_for_a_while_is_tried_again_and_what_fails_for_good_is_named() {
    let store = sent(3, 20, WhenSent::Keep).await;
    let publisher = Arc::new(MemoryPublisher::new());
    let key = |id: &str| AggregateKey::new("order", id);
    publisher.fail_next(&key("0"), PublishError::transient("Busy", "later"), 3);
    publisher.fail_next(&key("1"), PublishError::permanent("TooLarge", "never"), 1);
    publisher.fail_next(&key("2"), PublishError::unavailable("Down", "gone"), 4);
    let progress = run(replay(&store, &publisher, config(EventFilter::default()))).await;
    assert_eq!((progress.sent, progress.refused, progress.retried), (59, 1, 3));
    let [refusal] = &progress.refusals[..] else { panic!("{progress:?}") };
    assert_eq!((refusal.sequence, refusal.error.as_str()), (2, "TooLarge: never"));
    assert_eq!((progress.position, progress.waiting_for), (Some(60), None));
    let delivered = publisher.delivered();
    assert_in_order(&delivered);
    assert_eq!(
        delivered.iter().find(|message| message.sequence == 1).map(|message| message.attempt),
        Some(4)
    );
}

#[tokio::test]
async fn an_event_that_fails_its_batch_is_sent_alone() {
    let store = sent(10, 2, WhenSent::Keep).await;
    let publisher = Arc::new(Batches::default());
    let progress = run(replay(&store, &publisher, config(EventFilter::default()))).await;
    // Sequence 7 fails whatever travels with it, and only it is refused.
    assert_eq!((progress.sent, progress.refused), (19, 1), "{progress:?}");
    assert_eq!(progress.refusals[0].sequence, 7);
    assert_eq!(publisher.overlaps.load(Ordering::SeqCst), 0, "alone is alone");
}

/// A broker that refuses a call as a whole for one event of it.
#[derive(Default)]
struct Batches {
    in_flight: AtomicU32,
    overlaps: AtomicU32,
}

#[async_trait]
impl Publisher for Batches {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, _timeout: Duration, reporter: Reporter) {
        let bad = messages.iter().any(|message| message.sequence == 7);
        if self.in_flight.fetch_add(1, Ordering::SeqCst) > 0 && bad && messages.len() == 1 {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        tokio::task::yield_now().await;
        for index in 0..messages.len() {
            let error = PublishError::permanent("TooLarge", "one of them").scope(PublishErrorScope::Batch);
            reporter.report(index, if bad { Err(error) } else { Ok(()) });
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A publisher that answers nothing until it is told to, and says nothing of a message in five.
#[derive(Default)]
struct Slow {
    inner: MemoryPublisher,
    silent: bool,
    calls: AtomicU64,
    busy: std::sync::Mutex<std::collections::HashSet<AggregateKey>>,
}

#[async_trait]
impl Publisher for Slow {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        for message in &messages {
            assert!(
                self.busy.lock().unwrap().insert(message.key.clone()),
                "one message of an aggregate at a time"
            );
        }
        for _ in 0..messages[0].sequence % 5 {
            tokio::task::yield_now().await;
        }
        for message in &messages {
            self.busy.lock().unwrap().remove(&message.key);
        }
        if self.silent && self.calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(5) {
            return;
        }
        self.inner.publish(messages, timeout, reporter).await;
    }
}

#[tokio::test]
async fn one_message_of_an_aggregate_is_in_flight_and_an_unknown_outcome_is_tried_again() {
    let store = sent(11, 40, WhenSent::Keep).await;
    let publisher = Arc::new(Slow { silent: true, ..Slow::default() });
    let mut config = config(EventFilter::default()).with_in_flight_max(8);
    config.retry.attempts_max = 100;
    let progress = run(replay(&store, &publisher, config)).await;
    assert_eq!((progress.sent, progress.refused), (440, 0));
    assert!(progress.retried > 0);
    assert_in_order(&publisher.inner.delivered());
}

#[tokio::test]
async fn a_replay_that_is_stopped_goes_on_where_it_ended() {
    let store = sent(5, 100, WhenSent::Keep).await;
    let publisher = Arc::new(Slow::default());
    let mut after = None;
    let (mut sent, mut rounds) = (0, 0);
    loop {
        rounds += 1;
        let config = config(EventFilter { after, ..EventFilter::default() }).with_in_flight_max(3);
        let replay = replay(&store, &publisher, config);
        let mut handle = replay.handle();
        let stop = handle.wait_for(|progress| progress.sent >= 90).map(drop);
        let (progress, end) = replay.run_until(stop).await;
        sent += progress.sent;
        assert!(progress.position >= after, "{progress:?}");
        after = progress.position;
        match end {
            ReplayEnd::Stopped => assert!(progress.sent < 200, "it stops soon: {progress:?}"),
            ReplayEnd::Complete => break,
            ReplayEnd::Store(error) => panic!("{error}"),
        }
    }
    assert!(rounds >= 3, "{rounds}");
    let delivered = publisher.inner.delivered();
    let all: std::collections::BTreeSet<_> = delivered.iter().map(|message| message.sequence).collect();
    assert_eq!(all.len(), 500, "every event was sent");
    assert_eq!(sent, delivered.len() as u64);
    assert!(delivered.len() <= 500 + rounds * 3, "a resumed replay repeats what was ahead of its position");
}

#[tokio::test]
async fn the_rate_is_kept_on_the_clock() {
    let store = sent(50, 4, WhenSent::Keep).await;
    let publisher = Arc::new(MemoryPublisher::new());
    let config = config(EventFilter::default()).with_rate(NonZeroU32::new(10));
    let clock = Arc::new(JumpingClock::default());
    let replay = Replay::with_clock(store, publisher, config, clock.clone()).unwrap();
    let (mut handle, mut counts) = (replay.handle(), Vec::new());
    let counting = async {
        let mut sent = 0;
        while let Ok(progress) = handle.wait_for(|progress| progress.sent > sent).await {
            sent = progress.sent;
            counts.push((clock.now().as_secs(), sent));
        }
    };
    let ((progress, _), ()) = tokio::join!(replay.run(), counting);
    assert!(counts.len() > 20, "the progress is told on the way: {} times", counts.len());
    assert_eq!(progress.sent, 200);
    assert!(clock.now() >= Duration::from_millis(19_800), "200 events at 10 a second: {:?}", clock.now());
    for (second, sent) in counts {
        assert!(sent <= second * 10 + 12, "{sent} events after {second} s");
    }
}

/// A clock that jumps to the end of a sleep when there is nothing else to do.
#[derive(Default)]
struct JumpingClock(Arc<AtomicU64>);

impl Clock for JumpingClock {
    fn now(&self) -> crate::clock::Monotonic {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        let (now, end) = (Arc::clone(&self.0), self.now() + duration);
        Box::pin(async move {
            tokio::task::yield_now().await;
            now.fetch_max(u64::try_from(end.as_nanos()).unwrap(), Ordering::SeqCst);
        })
    }

    fn spawn(&self, task: futures::future::BoxFuture<'static, ()>) -> crate::clock::Task {
        crate::clock::Task::new(task)
    }
}

/// A store whose list fails so often.
struct Failing {
    inner: MemoryStore,
    kind: StoreErrorKind,
    left: AtomicU32,
}

#[async_trait]
impl OutboxAdmin for Failing {
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let left = self.left.load(Ordering::SeqCst);
        if filter.after.is_some() && left > 0 {
            self.left.store(left - 1, Ordering::SeqCst);
            return Err(StoreError::new(self.kind, "the store is away"));
        }
        self.inner.list(filter, rows_max).await
    }

    async fn holds(&self, _: u32) -> Result<Vec<HoldRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn requeue(&self, _: &EventFilter) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn discard(&self, _: &EventFilter) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn pause(&self, _: &AggregateKey) -> Result<(), StoreError> {
        Ok(())
    }

    async fn resume(&self, _: &AggregateKey) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn pause_topic(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn resume_topic(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_and_one_that_stays_away_ends_the_replay() {
    let store = sent(5, 100, WhenSent::Keep).await;
    for (kind, times, complete) in [
        (StoreErrorKind::Unavailable, 5, true),
        (StoreErrorKind::Unavailable, 1_000, false),
        (StoreErrorKind::Denied, 1_000, false),
    ] {
        let failing = Failing { inner: store.clone(), kind, left: AtomicU32::new(times) };
        let publisher = Arc::new(MemoryPublisher::new());
        let filter = EventFilter::default();
        let replay = Replay::new(failing, publisher.clone(), config(filter)).unwrap();
        let (progress, end) = replay.run().await;
        assert_eq!(matches!(end, ReplayEnd::Complete), complete, "{end:?}");
        if complete {
            assert_eq!(progress.sent, 500);
        } else {
            assert!(matches!(end, ReplayEnd::Store(error) if error.kind() == kind));
            assert_eq!(progress.sent, 32, "what had been read was sent");
            assert_eq!(progress.position, Some(32));
        }
    }
}

#[test]
fn a_replay_that_makes_no_sense_is_refused_with_every_reason() {
    let store = Arc::new(MemoryStore::new(Arc::new(TokioClock::default())));
    let mut config = config(EventFilter::status(Status::Failed));
    config.in_flight_max = 0;
    config.publish_timeout = Duration::ZERO;
    let publisher = || Arc::new(MemoryPublisher::new());
    let error = Replay::new(store.clone(), publisher(), config.clone()).unwrap_err();
    assert_eq!(error.problems().len(), 3, "{error}");
    assert!(error.problems()[0].remedy.contains("requeue"), "{error}");
    config.filter.status = Some(Status::Pending);
    let error = Replay::new(store, publisher(), config).unwrap_err();
    assert!(error.problems()[0].what.contains("on their way"), "{error}");
}

#[tokio::test]
async fn the_handle_tells_how_a_replay_ended() {
    let store = sent(2, 5, WhenSent::Keep).await;
    let complete = replay(&store, &Arc::new(MemoryPublisher::new()), config(EventFilter::default()));
    let mut handle = complete.handle();
    assert_eq!(handle.progress().phase, Phase::Starting);
    run(complete).await;
    assert_eq!((handle.progress().phase, handle.progress().sent), (Phase::Stopped, 10));
    let ended = handle.wait_for(|progress| progress.sent > 10).await.unwrap_err();
    assert_eq!(ended.progress().sent, 10);

    let dropped = replay(&store, &Arc::new(Silent), config(EventFilter::default()));
    let mut handle = dropped.handle();
    assert!(dropped.run().now_or_never().is_none(), "it waits for the publisher");
    let ended = handle.wait_for(|progress| progress.sent == 10).await.unwrap_err();
    assert_eq!(ended.progress().phase, Phase::Dropped);
    assert!(ended.to_string().contains("dropped"), "{ended}");
}

/// A publisher that never answers.
struct Silent;

#[async_trait]
impl Publisher for Silent {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, _messages: Vec<Arc<Message>>, _timeout: Duration, _reporter: Reporter) {
        std::future::pending::<()>().await;
    }
}
