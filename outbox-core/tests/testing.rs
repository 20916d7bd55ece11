//! The testing kit, as a service uses it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]
#![allow(clippy::disallowed_methods, reason = "a test has the real time")]

use std::{marker::PhantomData, rc::Rc, sync::Arc, time::Duration};

use outbox_core::{
    DynEnqueue, Enqueue, EnqueueError, Event, Relay, RelayConfig, RelayHandle, RelayStatus, StoreError,
    StoreErrorKind,
    memory::{MemoryPublisher, MemoryStore, MemoryTransaction},
    publisher::{Message, PublishError},
    relay::TokioClock,
    store::FailureCause,
    testing::{self, NotRelayed, RecordingOutbox, ScriptedPublisher},
};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

fn event(order: &str, event_type: &str) -> Event {
    Event::builder("order", order, event_type).json(&order).build().unwrap()
}

fn types(events: &[Event]) -> Vec<&str> {
    events.iter().map(Event::event_type).collect()
}

/// A transaction that is not `Send`, such as rusqlite's is not `Sync`.
struct Local(PhantomData<Rc<()>>);

#[tokio::test]
async fn what_was_enqueued_is_recorded_for_any_transaction_type() {
    let outbox = RecordingOutbox::new();
    let shared: Arc<dyn DynEnqueue<str>> = Arc::new(outbox.clone());
    let mut text = String::new();
    assert_eq!(outbox.enqueue(&mut Local(PhantomData), &event("1", "placed")).await.unwrap(), 1);
    let events = [event("1", "paid"), event("2", "placed")];
    assert_eq!(outbox.enqueue_all(&mut 7_u8, &events).await.unwrap(), [2, 3]);
    assert_eq!(shared.enqueue_boxed(text.as_mut_str(), &event("2", "paid")).await.unwrap(), 4);
    assert_eq!(types(&outbox.events()), ["placed", "paid", "placed", "paid"]);
    let taken: Vec<_> = outbox.take().into_iter().map(|recorded| recorded.sequence).collect();
    assert_eq!(taken, [1, 2, 3, 4]);
    assert!(outbox.events().is_empty());
}

#[tokio::test]
async fn an_outbox_fails_as_told_and_records_what_was_written_only() {
    let outbox = RecordingOutbox::new();
    outbox.fail_next(1, |event| EnqueueError::Duplicate(event.id()));
    outbox.fail_next(1, |_| StoreError::new(StoreErrorKind::Unavailable, "the database is away").into());
    let first = event("1", "placed");
    let error = outbox.enqueue(&mut (), &first).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Duplicate(id) if id == first.id()), "{error}");
    let error = outbox.enqueue_all(&mut (), &[first.clone(), event("2", "placed")]).await.unwrap_err();
    assert!(matches!(&error, EnqueueError::Store(error) if error.kind() == StoreErrorKind::Unavailable));
    let large = Event::builder("order", "1", "placed").payload(vec![0; 1_000_001]).build().unwrap();
    let error = outbox.enqueue(&mut (), &large).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Event(_)), "{error}");
    assert!(outbox.events().is_empty());
    outbox.enqueue(&mut (), &first).await.unwrap();
    assert_eq!(outbox.events(), [first]);
}

fn memory() -> MemoryStore {
    MemoryStore::new(Arc::new(TokioClock::default()))
}

/// The service under test: it knows neither the store nor the kit.
async fn place(outbox: &dyn DynEnqueue<MemoryTransaction>, store: &MemoryStore, commits: bool) -> Event {
    let event = event("1", "placed");
    let mut transaction = store.begin();
    outbox.enqueue(&mut transaction, &event).await.unwrap();
    if commits {
        transaction.commit();
    } else {
        transaction.rollback();
    }
    event
}

#[tokio::test]
async fn around_a_real_outbox_each_transaction_is_seen_and_written() {
    let store = memory();
    let outbox = RecordingOutbox::around(store.clone());
    place(&outbox, &store, false).await;
    assert_eq!(outbox.take().len(), 1, "it was enqueued, and rolled back");
    let event = place(&outbox, &store, true).await;
    let taken = outbox.take();
    assert_eq!((taken.len(), &taken[0].event, taken[0].sequence), (1, &event, 2));

    let mut again = store.begin();
    assert!(outbox.enqueue(&mut again, &event).await.is_err());
    assert!(outbox.take().is_empty(), "what the outbox refused was not enqueued");
}

struct World {
    store: MemoryStore,
    handle: RelayHandle,
    relay: JoinHandle<RelayStatus>,
}

fn config() -> RelayConfig {
    let mut config = RelayConfig::default();
    config.topic = "shop.{aggregate_type}".parse().unwrap();
    config.source = Arc::from("/shop");
    config.retry.attempts_max = 3;
    // Short, so that nothing is waited for longer than the relay needs.
    config.publish_timeout = Duration::from_millis(200);
    config.poll_min = Duration::from_millis(1);
    config.poll_max = Duration::from_millis(10);
    config.retry.delay_min = Duration::from_millis(1);
    config.retry.delay_max = Duration::from_millis(5);
    config.unavailable_delay = (Duration::from_millis(1), Duration::from_millis(5));
    config
}

impl World {
    fn start<P: outbox_core::Publisher>(publisher: P) -> Self {
        let store = memory();
        let relay = Relay::new(store.clone(), publisher, config()).unwrap();
        let (handle, relay) = (relay.handle(), tokio::spawn(relay.run()));
        Self { store, handle, relay }
    }

    fn commit(&self, event: &Event) {
        let mut transaction = self.store.begin();
        transaction.enqueue(event).unwrap();
        transaction.commit();
    }

    async fn relayed(&mut self, event: &Event) -> Result<(), NotRelayed> {
        testing::relayed(&self.store, &mut self.handle, [event.id()], PATIENCE).await
    }
}

fn attempts(publisher: &MemoryPublisher) -> Vec<u32> {
    publisher.delivered().iter().map(|message| message.attempt).collect()
}

#[tokio::test]
async fn what_would_be_published_is_what_the_relay_publishes() {
    let broker = MemoryPublisher::new();
    let mut world = World::start(broker.clone());
    let event = Event::builder("order", "4711", "order.placed")
        .version(2)
        .json(&[1])
        .header("tenant", "acme")
        .build()
        .unwrap();
    world.commit(&event);
    world.relayed(&event).await.unwrap();
    let expected = testing::would_publish(&event, &config()).unwrap();
    let delivered = broker.delivered();
    let [message] = &delivered[..] else { panic!("{delivered:?}") };
    // The time is the database's.
    let without_time = |message: &Message| {
        let mut headers = testing::headers(message);
        headers.remove("ce_time").unwrap();
        (message.topic.clone(), message.key.clone(), headers, message.event.payload.clone())
    };
    assert_eq!(without_time(&expected), without_time(message));
    assert_eq!(testing::headers(&expected)["ce_dataversion"], "2");
    let received = testing::received(&expected).unwrap();
    assert_eq!((received.event_type.as_str(), received.headers["tenant"].as_str()), ("order.placed", "acme"));

    let mut template = config();
    template.topic = "{header:region}".parse().unwrap();
    assert!(testing::would_publish(&event, &template).is_err(), "the header is not there");
}

#[tokio::test]
async fn an_event_that_is_not_relayed_says_why() {
    let publisher = ScriptedPublisher::new();
    let mut world = World::start(publisher.clone());
    let error = world.relayed(&event("1", "placed")).await.unwrap_err();
    assert!(matches!(error, NotRelayed::NotThere(_)), "{error}");

    publisher.fail_next(PublishError::permanent("TooLarge", "it is too large"), 1);
    let refused = event("1", "placed");
    world.commit(&refused);
    let error = world.relayed(&refused).await.unwrap_err();
    assert!(matches!(error, NotRelayed::Failed { cause: Some(FailureCause::Permanent), .. }), "{error}");
    assert!(error.to_string().contains("it is too large"), "{error}");

    publisher.fail_next(PublishError::unavailable("Down", "the broker is down"), u32::MAX);
    let waiting = event("2", "placed");
    world.commit(&waiting);
    let short = Duration::from_millis(100);
    let error = testing::relayed(&world.store, &mut world.handle, [waiting.id()], short).await.unwrap_err();
    assert!(matches!(error, NotRelayed::Pending { attempts: 0, .. }), "{error}");
    assert!(error.to_string().contains("the broker is down"), "{error}");

    world.handle.shutdown();
    world.relay.await.unwrap();
    let error =
        testing::relayed(&world.store, &mut world.handle, [waiting.id()], PATIENCE).await.unwrap_err();
    assert!(matches!(error, NotRelayed::Ended(id) if id == waiting.id()), "{error}");
}

#[tokio::test]
async fn an_event_is_not_waited_for_when_the_relay_was_dropped() {
    let publisher = ScriptedPublisher::new();
    let mut world = World::start(publisher.clone());
    publisher.hang_next(1);
    let event = event("1", "placed");
    world.commit(&event);
    publisher.hanging_at_least(1).await;
    world.relay.abort();
    let error = world.relayed(&event).await.unwrap_err();
    assert!(matches!(error, NotRelayed::Ended(id) if id == event.id()), "{error}");
}

#[tokio::test]
async fn a_publisher_fails_as_told_in_the_order_in_which_it_was_told() {
    let publisher = ScriptedPublisher::new();
    let mut world = World::start(publisher.clone());
    publisher.fail_next(PublishError::transient("Busy", "try again"), 1);
    publisher.fail_next(PublishError::unavailable("Down", "it is down"), 2);
    publisher.lose_answer_next(1);
    let event = event("1", "placed");
    world.commit(&event);
    world.relayed(&event).await.unwrap();
    // The transient error and the lost answer spend an attempt, the unavailable broker does not.
    assert_eq!(attempts(publisher.inner()), [2, 3], "stored without an answer, and sent again");
}

#[tokio::test]
async fn a_message_hangs_until_it_is_released() {
    let publisher = ScriptedPublisher::new();
    let mut world = World::start(publisher.clone());
    publisher.hang_next(1);
    let (slow, other) = (event("1", "placed"), event("2", "placed"));
    world.commit(&slow);
    publisher.hanging_at_least(1).await;
    world.commit(&other);
    world.relayed(&other).await.unwrap();
    assert_eq!(publisher.inner().delivered().len(), 1, "others pass one that hangs");
    publisher.release();
    world.relayed(&slow).await.unwrap();
    assert_eq!(attempts(publisher.inner()), [1, 1]);
}

#[tokio::test]
async fn a_message_that_is_never_released_is_sent_again() {
    let publisher = ScriptedPublisher::new();
    let mut world = World::start(publisher.clone());
    publisher.hang_next(1);
    let event = event("1", "placed");
    world.commit(&event);
    world.relayed(&event).await.unwrap();
    assert_eq!(attempts(publisher.inner()), [2], "the first attempt never arrived");
    publisher.release();
    assert_eq!(attempts(publisher.inner()), [2]);
}
