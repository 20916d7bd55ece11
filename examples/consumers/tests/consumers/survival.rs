//! What is the same for every broker: events with all that an event may have, and what a consumer reads of
//! them.

use std::{collections::BTreeMap, sync::Arc};

use outbox::{
    AggregateKey, Publisher, ReceivedEvent,
    inbox::EventIdentity,
    publisher::{Message, Reporter},
    store::StoredEvent,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::PATIENCE;

/// Where the events come from: with characters that some bindings encode.
const SOURCE: &str = "/shop/größe?a=%41&b=\"c d\"";

/// Aggregate ids that encodings, case foldings, trimming and normal forms would change.
const IDS: [&str; 14] = [
    "47/11",
    " padded ",
    "\u{a0}no-break\u{a0}",
    "€ 😀 日本語 ä",
    "a\u{308} is not ä",
    "100% %41 %zz %",
    "\"quoted\\\"",
    "ISTANBUL i\u{307}stanbul ſ ß",
    "\u{feff}mark\u{200d}join\u{202e}turn\u{2028}line",
    "\u{fffd}\u{ffff}\u{10ffff}",
    "{}[]<>|^`~",
    "a,b;c=d&e+f",
    "null",
    "=?utf-8?q?=41?=",
];

pub(crate) fn topic() -> String {
    format!("survival-{}", Uuid::now_v7())
}

/// Publishes one message for each odd id, each with another of the things that an event may have.
pub(crate) async fn publish(publisher: Arc<dyn Publisher>, topic: &str) -> Vec<Arc<Message>> {
    let messages: Vec<_> = (1..).zip(IDS).map(|(number, id)| Arc::new(message(topic, number, id))).collect();
    let (sender, mut reports) = mpsc::unbounded_channel();
    publisher.publish(messages.clone(), PATIENCE, Reporter::new(1, sender)).await;
    for _ in &messages {
        let report = reports.try_recv().unwrap();
        assert_eq!(report.result, Ok(()), "{:?}", messages[report.index as usize]);
    }
    publisher.close().await;
    messages
}

fn message(topic: &str, number: i64, aggregate_id: &str) -> Message {
    let every_byte = (0..=255).cycle().take(usize::try_from(number).unwrap() * 100 - 100);
    let long = "größe ".repeat(300) + "end";
    let headers: BTreeMap<_, _> = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("baggage", "user%20id=a%2Cb;p=1"),
        ("X-Tenant", "größe 😀 \"%41\" \\"),
        ("x-tenant", "another one"),
        ("empty", ""),
        ("!#$%&'*+-.^_`|~09azAZ", "a name of every kind"),
        ("long", &long),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    // Some messages have all of it, some the least.
    let full = number % 3 != 0;
    Message::new(
        Arc::from(topic),
        AggregateKey::new("Order – ä", aggregate_id),
        if full { i64::MAX - number } else { number },
        Arc::from(SOURCE),
        StoredEvent::new(
            Uuid::now_v7(),
            if full { "order.größe 100%25 \"placed\"" } else { "order.placed" }.to_owned(),
            every_byte.collect::<Vec<u8>>(),
            format!("20{:02}-01-02T03:04:05.000{:03}Z", 10 + number, number).parse().unwrap(),
        )
        .with_version(if full { i32::MAX } else { 1 })
        .with_content_type(full.then(|| "text/plain; charset=\"utf-8\"; x=%41ä".to_owned()))
        .with_headers(if full { headers } else { BTreeMap::new() }),
    )
    .with_attempt(if full { 2 } else { 1 })
}

/// Each message must have arrived once, and say all that its event does. In any order.
pub(crate) fn compare(messages: &[Arc<Message>], received: Vec<(ReceivedEvent, Vec<u8>)>) {
    assert_eq!(received.len(), messages.len());
    let mut received: BTreeMap<_, _> =
        received.into_iter().map(|received| (received.0.identity.id().to_owned(), received)).collect();
    for Message { key, sequence, attempt, source, event, .. } in messages.iter().map(|message| &**message) {
        let id = event.id.to_string();
        let (read, payload) = received.remove(&id).unwrap();
        assert_eq!(read.identity, EventIdentity::new(&**source, id, Some(event.created_at)).unwrap());
        assert_eq!(read.aggregate().as_ref(), Some(key));
        assert_eq!(read.event_type, event.event_type, "{key}");
        assert_eq!(read.content_type, event.content_type.as_deref().unwrap_or("application/json"), "{key}");
        assert_eq!(
            (read.version, read.sequence, read.attempt),
            (event.version, Some(*sequence), *attempt),
            "{key}"
        );
        assert_eq!(read.headers, event.headers, "{key}");
        assert_eq!(read.traceparent(), event.headers.get("traceparent").map(String::as_str), "{key}");
        assert_eq!(read.extensions, BTreeMap::new(), "{key}");
        assert_eq!(payload, event.body(), "{key}");
        assert_eq!(read.tombstone, event.payload.is_none(), "{key}");
    }
}
