//! What the shared suite cannot see from outside, or what is peculiar to memory. The contract itself is
//! proven by the conformance suite, which runs on this store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;

use super::*;
use crate::{publisher::*, relay::*, store::*, *};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct ManualClock(AtomicU64);

impl ManualClock {
    fn advance(&self, duration: Duration) {
        self.0.fetch_add(u64::try_from(duration.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Monotonic {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        Task::new(task)
    }
}

fn store() -> (MemoryStore, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    (MemoryStore::new(clock.clone()), clock)
}

/// The store's methods never wait for anything.
fn ready<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a method of the store in memory had to wait")
}

fn event(id: &str) -> Event {
    Event::builder("order", id, "placed").build().unwrap()
}

fn commit(store: &MemoryStore, id: &str) -> Sequence {
    let mut transaction = store.begin();
    let sequence = transaction.enqueue(&event(id)).unwrap();
    transaction.commit();
    sequence
}

/// A relay that owns every partition.
struct Owner {
    relay: RelayId,
    leases: Vec<Lease>,
    reader: Box<dyn OutboxReader>,
}

impl Owner {
    fn of(store: &MemoryStore) -> Self {
        let relay = ready(store.join(3600 * SECOND)).unwrap();
        let seen: Vec<_> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
        let leases =
            ready(store.claim(relay, &seen)).unwrap().into_iter().map(|claimed| claimed.lease).collect();
        Self { relay, leases, reader: ready(store.reader(relay)).unwrap() }
    }

    fn request(&self) -> FetchRequest {
        FetchRequest {
            leases: self.leases.clone(),
            events_max: 100,
            bytes_max: 1 << 20,
            ..Default::default()
        }
    }

    fn fetch(&mut self) -> Fetched {
        let request = self.request();
        ready(self.reader.fetch(request)).unwrap()
    }

    fn settle(&self, store: &MemoryStore, settlements: Vec<Settlement>) -> Settled {
        let request = SettleRequest {
            relay: self.relay,
            leases: self.leases.clone(),
            settlements,
            unholds: Vec::new(),
            when_sent: WhenSent::Keep,
        };
        ready(store.settle(&request)).unwrap()
    }
}

fn settlement(row: &Row, outcome: Outcome) -> Settlement {
    Settlement {
        sequence: row.sequence,
        partition: row.partition,
        key: row.key.clone(),
        attempts: 1,
        outcome,
    }
}

fn retry(after: Duration) -> Outcome {
    Outcome::Retry { after, error: "no".to_owned(), reason: HoldReason::Backoff }
}

#[test]
fn business_rows_and_events_commit_together_or_not_at_all() {
    let (store, _) = store();
    let mut transaction = store.begin();
    transaction.put("a", "1");
    transaction.enqueue(&event("1")).unwrap();
    assert_eq!(store.get("a"), None);
    transaction.rollback();
    assert_eq!(store.get("a"), None);
    assert_eq!(ready(store.stats()).unwrap().pending, 0);

    let mut transaction = store.begin();
    transaction.put("a", "2");
    transaction.enqueue(&event("1")).unwrap();
    transaction.commit();
    assert_eq!(store.get("a").as_deref(), Some("2"));
    assert_eq!(ready(store.stats()).unwrap().pending, 1);
}

#[test]
fn a_sequence_is_drawn_at_once_so_that_a_lower_one_can_commit_late() {
    let (store, _) = store();
    let mut late = store.begin();
    let lower = late.enqueue(&event("1")).unwrap();
    let higher = commit(&store, "2");
    assert!(lower < higher);
    let mut owner = Owner::of(&store);
    assert_eq!(owner.fetch().rows.iter().map(|row| row.sequence).collect::<Vec<_>>(), [higher]);
    late.commit();
    let request = FetchRequest { known: vec![higher], ..owner.request() };
    let rows = ready(owner.reader.fetch(request)).unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.sequence).collect::<Vec<_>>(), [lower]);
}

#[test]
fn the_id_of_a_transaction_that_is_dropped_is_free_again() {
    let (store, _) = store();
    let event = event("1");
    let mut first = store.begin();
    first.enqueue(&event).unwrap();
    let mut second = store.begin();
    assert!(matches!(second.enqueue(&event), Err(EnqueueError::Duplicate(id)) if id == event.id()));
    drop(first);
    second.enqueue(&event).unwrap();
    second.commit();
    assert!(matches!(store.begin().enqueue(&event), Err(EnqueueError::Duplicate(_))));
}

#[test]
fn many_events_are_written_all_or_none() {
    let (store, _) = store();
    let repeated = event("1");
    let mut transaction = store.begin();
    let error = transaction.enqueue_all(&[event("1"), repeated.clone(), repeated]).unwrap_err();
    assert!(matches!(error, EnqueueError::Duplicate(_)), "{error}");
    let sequences = transaction.enqueue_all(&[event("1"), event("2")]).unwrap();
    assert!(sequences[0] < sequences[1]);
    transaction.commit();
    assert_eq!(ready(store.stats()).unwrap().pending, 2);
}

#[test]
fn a_payload_above_the_limit_is_refused_and_the_transaction_goes_on() {
    let (store, _) = store();
    let large = Event::builder("order", "1", "placed")
        .payload(vec![0; PAYLOAD_BYTES_MAX_DEFAULT + 1])
        .build()
        .unwrap();
    let mut transaction = store.begin();
    assert!(matches!(transaction.enqueue(&large), Err(EnqueueError::Event(EventError::TooLong { .. }))));
    transaction.enqueue(&event("1")).unwrap();
    transaction.commit();
    assert_eq!(ready(store.stats()).unwrap().pending, 1);
}

#[test]
fn a_transaction_of_another_store_is_refused() {
    let ((store, _), (other, _)) = (store(), self::store());
    let error = ready(store.enqueue(&mut other.begin(), &event("1"))).unwrap_err();
    assert!(
        matches!(&error, EnqueueError::Store(error) if error.kind() == StoreErrorKind::Misuse),
        "{error}"
    );
}

#[test]
fn two_runs_of_the_same_calls_give_the_same_answers() {
    let run = || {
        let (store, clock) = store();
        for id in 0..100 {
            commit(&store, &(id % 30).to_string());
            clock.advance(Duration::from_millis(7));
        }
        let mut owner = Owner::of(&store);
        let rows = owner.fetch().rows;
        let read: Vec<_> =
            rows.iter().map(|row| (row.sequence, row.key.clone(), row.partition, row.age)).collect();
        owner.settle(&store, rows.iter().map(|row| settlement(row, retry(SECOND))).collect());
        let holds: Vec<_> = ready(store.holds(100)).unwrap();
        (owner.relay, read, holds)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_settle_takes_its_outcomes_in_the_order_of_the_events() {
    let (store, clock) = store();
    commit(&store, "1");
    commit(&store, "1");
    let mut owner = Owner::of(&store);
    let rows = owner.fetch().rows;
    owner.settle(&store, vec![settlement(&rows[0], retry(SECOND))]);
    clock.advance(SECOND);
    // Listed the other way round: the end of the first must not take the hold of the second with it.
    let settled =
        owner.settle(&store, vec![settlement(&rows[1], retry(SECOND)), settlement(&rows[0], Outcome::Sent)]);
    assert_eq!(settled, Settled::default());
    let holds = ready(store.holds(10)).unwrap();
    assert_eq!(holds.iter().map(|hold| hold.sequence).collect::<Vec<_>>(), [Some(rows[1].sequence)]);
}

#[test]
fn a_settlement_without_a_lease_for_its_partition_is_fenced() {
    let (store, _) = store();
    commit(&store, "1");
    let mut owner = Owner::of(&store);
    let row = owner.fetch().rows.remove(0);
    owner.leases.clear();
    let settled = owner.settle(&store, vec![settlement(&row, Outcome::Sent)]);
    assert_eq!(settled.fenced, [row.partition]);
    assert_eq!(ready(store.stats()).unwrap().pending, 1);
}

#[test]
fn more_due_holds_than_one_answer_carries_all_get_their_turn() {
    let (store, clock) = store();
    for id in 0..600 {
        commit(&store, &id.to_string());
    }
    let mut owner = Owner::of(&store);
    let request = FetchRequest { events_max: 1000, ..owner.request() };
    let rows = ready(owner.reader.fetch(request)).unwrap().rows;
    owner.settle(&store, rows.iter().map(|row| settlement(row, retry(SECOND))).collect());
    clock.advance(SECOND);
    let mut due = 0;
    for fetches in 0.. {
        assert!(fetches < 10, "only {due} of 600 due holds were returned");
        let request = FetchRequest { events_max: 1000, ..owner.request() };
        let fetched = ready(owner.reader.fetch(request)).unwrap();
        assert!(fetched.rows.is_empty());
        due += fetched.due_holds.len();
        if !fetched.more {
            break;
        }
    }
    assert_eq!(due, 600);
}

#[test]
fn a_due_hold_is_returned_again_under_a_new_lease() {
    let (store, clock) = store();
    commit(&store, "1");
    let mut owner = Owner::of(&store);
    let row = owner.fetch().rows.remove(0);
    owner.settle(&store, vec![settlement(&row, retry(SECOND))]);
    clock.advance(SECOND);
    assert_eq!(owner.fetch().due_holds.len(), 1);
    assert_eq!(owner.fetch().due_holds.len(), 0);
    let lease = owner.leases[usize::from(row.partition)];
    ready(store.release(owner.relay, &[lease])).unwrap();
    let claimed = ready(store.claim(owner.relay, &[(lease.partition, lease.epoch)])).unwrap();
    owner.leases[usize::from(row.partition)] = claimed[0].lease;
    assert_eq!(owner.fetch().due_holds.len(), 1);
}

#[test]
fn a_long_backlog_is_drained_to_the_last_row() {
    let (store, _) = store();
    let mut transaction = store.begin();
    for id in 0..100_000 {
        transaction.enqueue(&event(&(id % 1000).to_string())).unwrap();
    }
    transaction.commit();
    let mut owner = Owner::of(&store);
    let mut settled = 0;
    while settled < 100_000 {
        let request = FetchRequest { events_max: 1000, ..owner.request() };
        let rows = ready(owner.reader.fetch(request)).unwrap().rows;
        assert_eq!(rows.len(), 1000);
        settled += rows.len();
        owner.settle(&store, rows.iter().map(|row| settlement(row, Outcome::Sent)).collect());
    }
    assert!(owner.fetch().rows.is_empty());
}

#[tokio::test]
async fn the_publisher_keeps_order_and_fails_as_told() {
    let publisher = MemoryPublisher::new();
    let (store, _) = store();
    for id in ["1", "2", "1"] {
        commit(&store, id);
    }
    let rows = Owner::of(&store).fetch().rows;
    let message = |row: &Row| {
        Arc::new(Message {
            topic: "orders".into(),
            key: row.key.clone(),
            sequence: row.sequence,
            attempt: 1,
            source: "test".into(),
            event: row.content.clone().unwrap(),
        })
    };
    publisher.fail_next(&rows[0].key, PublishError::transient("Refused", "as told"), 1);
    let (reports, mut outcomes) = mpsc::unbounded_channel();
    let messages: Vec<_> = rows.iter().map(message).collect();
    publisher.publish(messages.clone(), SECOND, Reporter::new(1, reports.clone())).await;
    publisher.publish(vec![messages[0].clone()], SECOND, Reporter::new(2, reports)).await;
    let mut results = Vec::new();
    while let Some(report) = outcomes.recv().await {
        results.push((report.call, report.index, report.result.is_ok()));
    }
    assert_eq!(results, [(1, 0, false), (1, 1, true), (1, 2, true), (2, 0, true)]);
    let delivered: Vec<_> =
        publisher.delivered_at_least(3).await.iter().map(|message| message.sequence).collect();
    assert_eq!(delivered, [rows[1].sequence, rows[2].sequence, rows[0].sequence]);
}

#[tokio::test]
async fn who_waits_for_a_delivery_is_woken_by_it() {
    let publisher = MemoryPublisher::new();
    let (store, _) = store();
    commit(&store, "1");
    let row = Owner::of(&store).fetch().rows.remove(0);
    let waiting = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.delivered_at_least(1).await.len() }
    });
    tokio::task::yield_now().await;
    let message = Message {
        topic: "orders".into(),
        key: row.key.clone(),
        sequence: row.sequence,
        attempt: 1,
        source: "test".into(),
        event: row.content.unwrap(),
    };
    let (reports, _outcomes) = mpsc::unbounded_channel();
    publisher.publish(vec![Arc::new(message)], SECOND, Reporter::new(1, reports)).await;
    assert_eq!(waiting.await.unwrap(), 1);
}
