//! The tests, each a function over a [`Harness`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use outbox_core::{
    Enqueue as _, EnqueueError, Event, Inbox as _, InboxError, Receipt, Relay, RelayConfig,
    inbox::EventIdentity, memory::MemoryPublisher, publisher::Message, store::CONTENT_TYPE_DEFAULT,
};
use uuid::Uuid;

use crate::{Harness, Place as _};

/// More than fits into the largest statement of MySQL, so that every size of statement is used.
const MANY: usize = 600;

/// Every column, with what is hard to quote, and every column that may be null.
pub async fn committed_events_are_relayed_as_they_were_written<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let (full, plain) = (full("1"), event("2"));
    let many: Vec<Event> = (0..MANY).map(|n| if n % 3 == 0 { self::full("3") } else { event("4") }).collect();
    let mut session = H::begin(&place).await;
    let first = H::outbox(&place).enqueue(&mut session, &full).await.unwrap();
    let second = H::outbox(&place).enqueue(&mut session, &plain).await.unwrap();
    let sequences = H::outbox(&place).enqueue_all(&mut session, &many).await.unwrap();
    let all: Vec<i64> = [first, second].into_iter().chain(sequences).collect();
    assert!(all.is_sorted_by(|a, b| a < b), "sequences ascend in the order given: {all:?}");
    assert_eq!(all.len(), many.len() + 2);
    H::commit(session).await;

    let scheduled = 1 + many.iter().filter(|event| event.available_at().is_some()).count();
    assert_eq!(place.number(H::Place::COUNT_SCHEDULED).await, i64::try_from(scheduled).unwrap());
    let written: Vec<&Event> = [&full, &plain].into_iter().chain(&many).collect();
    let relayed = relay(&place, written.len()).await;
    let mut found = BTreeMap::new();
    for message in &relayed {
        found.insert(message.sequence, message);
    }
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), all, "each is relayed, at its sequence");
    for (event, message) in written.into_iter().zip(found.values()) {
        same(event, message);
    }
    place.drop().await;
}

/// A rollback takes the events back, and what was never committed is not relayed.
pub async fn rolled_back_events_are_not_there<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let mut session = H::begin(&place).await;
    H::outbox(&place).enqueue(&mut session, &event("1")).await.unwrap();
    H::outbox(&place).enqueue_all(&mut session, &[event("2"), event("3")]).await.unwrap();
    H::rollback(session).await;
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 0);
    place.drop().await;
}

/// As [`EnqueueError::NoTransaction`] and [`InboxError::NoTransaction`], and the connection is as good as
/// before.
pub async fn outside_a_transaction_nothing_is_written<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let mut session = H::outside(&place).await;
    for _ in 0..2 {
        let one = H::outbox(&place).enqueue(&mut session, &event("1")).await;
        assert!(matches!(one, Err(EnqueueError::NoTransaction)), "{one:?}");
        let many = H::outbox(&place).enqueue_all(&mut session, &[event("1")]).await;
        assert!(matches!(many, Err(EnqueueError::NoTransaction)), "{many:?}");
        let received = H::inbox(&place).receive(&mut session, &identity("1", Duration::ZERO)).await;
        assert!(matches!(received, Err(InboxError::NoTransaction)), "{received:?}");
        let purged = H::inbox(&place).purge(&mut session, 2 * HOUR, 10).await;
        assert!(matches!(purged, Err(InboxError::NoTransaction)), "{purged:?}");
    }
    drop(session);
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 0);
    assert_eq!(place.number("SELECT count(*) FROM outbox_inbox").await, 0);
    place.drop().await;
}

/// One, in a batch, and twice in a batch: nothing of a refused batch stays, and the transaction goes on.
pub async fn a_duplicate_is_named_and_the_transaction_goes_on<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let id = Uuid::now_v7();
    let twice = || Event::builder("order", "1", "order.placed").id(id).build().unwrap();
    let mut session = H::begin(&place).await;
    H::outbox(&place).enqueue(&mut session, &twice()).await.unwrap();
    H::commit(session).await;

    let mut session = H::begin(&place).await;
    let one = H::outbox(&place).enqueue(&mut session, &twice()).await;
    assert!(matches!(one, Err(EnqueueError::Duplicate(found)) if found == id), "{one:?}");
    let many: Vec<Event> = (0..MANY).map(|_| event("2")).chain([twice()]).collect();
    let many = H::outbox(&place).enqueue_all(&mut session, &many).await;
    assert!(matches!(many, Err(EnqueueError::Duplicate(found)) if found == id), "{many:?}");
    let event_twice = event("3");
    let within =
        H::outbox(&place).enqueue_all(&mut session, &[event_twice.clone(), event_twice.clone()]).await;
    assert!(matches!(within, Err(EnqueueError::Duplicate(found)) if found == event_twice.id()), "{within:?}");
    H::outbox(&place).enqueue(&mut session, &event("4")).await.unwrap();
    H::commit(session).await;
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 2);
    place.drop().await;
}

/// And the transaction goes on.
pub async fn a_payload_over_the_limit_is_refused_before_anything_is_sent<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let large = Event::builder("order", "1", "e").payload(vec![0; 1_000_001]).build().unwrap();
    let mut session = H::begin(&place).await;
    let one = H::outbox(&place).enqueue(&mut session, &large).await;
    assert!(matches!(one, Err(EnqueueError::Event(_))), "{one:?}");
    let many = H::outbox(&place).enqueue_all(&mut session, &[event("1"), large]).await;
    assert!(matches!(many, Err(EnqueueError::Event(_))), "{many:?}");
    H::outbox(&place).enqueue(&mut session, &event("2")).await.unwrap();
    H::commit(session).await;
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 1);
    place.drop().await;
}

/// With a time, with an old one, and without any; with names that are hard to quote.
pub async fn a_receipt_is_new_until_it_is_committed_and_then_seen<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let events = [
        identity("1", Duration::ZERO),
        identity("2", 3 * HOUR),
        EventIdentity::new(r#"/shop/"Zoë's" \ %"#, "no time, and a ‘quote’", None).unwrap(),
    ];
    for event in &events {
        let mut session = H::begin(&place).await;
        assert_eq!(H::inbox(&place).receive(&mut session, event).await.unwrap(), Receipt::New, "{event:?}");
        assert_eq!(H::inbox(&place).receive(&mut session, event).await.unwrap(), Receipt::Seen, "{event:?}");
        H::rollback(session).await;

        let mut session = H::begin(&place).await;
        assert_eq!(H::inbox(&place).receive(&mut session, event).await.unwrap(), Receipt::New, "{event:?}");
        H::commit(session).await;

        let mut session = H::begin(&place).await;
        assert_eq!(H::inbox(&place).receive(&mut session, event).await.unwrap(), Receipt::Seen, "{event:?}");
        H::commit(session).await;
    }
    assert_eq!(place.number("SELECT count(*) FROM outbox_inbox").await, 3);
    place.drop().await;
}

/// A purge takes the oldest first and no more than it may; what lies behind it is too old, and nothing of
/// it is written.
pub async fn what_was_purged_is_too_old_and_never_new<H: Harness>() {
    let Some(place) = H::Place::fresh().await else { return };
    let mut session = H::begin(&place).await;
    for (id, age) in [("young", Duration::ZERO), ("old", 3 * HOUR), ("older", 4 * HOUR)] {
        let receipt = H::inbox(&place).receive(&mut session, &identity(id, age)).await.unwrap();
        assert_eq!(receipt, Receipt::New, "{id}");
    }
    H::commit(session).await;

    let mut session = H::begin(&place).await;
    let refused = H::inbox(&place).purge(&mut session, Duration::from_secs(60), 10).await;
    assert!(matches!(refused, Err(InboxError::PurgeAge(_))), "{refused:?}");
    assert_eq!(H::inbox(&place).purge(&mut session, 2 * HOUR, 1).await.unwrap(), 1);
    H::commit(session).await;

    let mut session = H::begin(&place).await;
    for (id, age, expected) in [
        ("old", 3 * HOUR, Receipt::Seen),
        ("older", 5 * HOUR, Receipt::TooOld),
        ("another", 5 * HOUR, Receipt::TooOld),
        ("later than the horizon", 2 * HOUR, Receipt::New),
    ] {
        let receipt = H::inbox(&place).receive(&mut session, &identity(id, age)).await.unwrap();
        assert_eq!(receipt, expected, "{id}");
    }
    H::commit(session).await;
    assert_eq!(place.number("SELECT count(*) FROM outbox_inbox").await, 3);
    place.drop().await;
}

/// When the events of the suite that have such a time may be published: a time that has passed.
pub const AVAILABLE_AT: &str = "2026-01-02T03:04:05.678901Z";

const HOUR: Duration = Duration::from_secs(3600);

fn identity(id: &str, age: Duration) -> EventIdentity {
    EventIdentity::new("/shop", id, Some(Utc::now() - age)).unwrap()
}

/// JSON that is hard to quote.
const JSON: &str =
    r#"{"quote": "it's \"quoted\"", "path": "C:\\new\\x41", "line": "a\nb", "name": "Zoë 🦀"}"#;

fn event(aggregate: &str) -> Event {
    Event::builder("order", aggregate, "order.placed").payload(JSON).build().unwrap()
}

fn full(aggregate: &str) -> Event {
    let available_at: DateTime<Utc> = AVAILABLE_AT.parse().unwrap();
    Event::builder(r#"type "ä" \, {}"#, aggregate, r"event's \n type %")
        .version(7)
        .payload((0..=255u8).collect::<Vec<u8>>())
        .content_type(r#"text/plain; charset="utf-8""#)
        .header("traceparent", r#"00-"a"\b, {c} 'd' ü"#)
        .header("empty", "")
        .topic(r#"a "topic" \ NULL"#)
        .available_at(available_at)
        .build()
        .unwrap()
}

fn same(event: &Event, message: &Message) {
    let found = &message.event;
    assert_eq!(found.id, event.id());
    assert_eq!(message.key.aggregate_type(), event.aggregate_type());
    assert_eq!(message.key.aggregate_id(), event.aggregate_id());
    assert_eq!(found.event_type, event.event_type());
    assert_eq!(found.version, event.version());
    assert_eq!(found.payload.as_ref(), event.payload());
    assert_eq!(found.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT), event.content_type());
    assert_eq!(&found.headers, event.headers());
    assert_eq!(found.topic.as_deref(), event.topic());
}

/// What a relay publishes of so many events.
async fn relay(place: &impl crate::Place, count: usize) -> Vec<Arc<Message>> {
    let publisher = MemoryPublisher::new();
    let relay = Relay::new(place.store(), publisher.clone(), RelayConfig::default()).unwrap();
    let handle = relay.handle();
    let running = tokio::spawn(relay.run());
    let delivered = publisher.delivered_at_least(count).await;
    handle.shutdown();
    running.await.unwrap();
    delivered
}
