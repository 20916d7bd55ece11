//! What the broker would get: [`would_publish`].

use std::{collections::BTreeMap, sync::Arc};

use chrono::DateTime;

use crate::{
    AggregateKey, Event, ReceivedEvent, ReceivedEventError, RelayConfig, cloudevents, inbox::EventIdentity,
    publisher::Message, routing::RoutingError, store::StoredEvent,
};

/// The message that a relay with these settings would make of an event: its topic, its key, its headers and
/// its payload.
///
/// The sequence and the attempt are 1. The time is that of the event's id, if it is a UUIDv7, else 1970: a
/// database would set it.
///
/// ```
/// use outbox_core::{Event, RelayConfig, testing};
///
/// let relay = RelayConfig::default().with_topic("shop.{aggregate_type}".parse()?);
/// let event = Event::builder("order", "4711", "order.placed").json(&12).header("tenant", "acme").build()?;
/// let message = testing::would_publish(&event, &relay)?;
/// assert_eq!((&*message.topic, message.key.to_string().as_str()), ("shop.order", "order/4711"));
/// let headers = testing::headers(&message);
/// assert_eq!((headers["ce_type"].as_str(), headers["tenant"].as_str()), ("order.placed", "acme"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// An event to which the topic template gives no topic: the relay would record it as failed.
pub fn would_publish(event: &Event, config: &RelayConfig) -> Result<Message, RoutingError> {
    let key = AggregateKey::new(event.aggregate_type(), event.aggregate_id());
    let identity = EventIdentity::new("/", event.id().to_string(), None).ok();
    let created_at = identity.and_then(|identity| identity.time()).unwrap_or(DateTime::UNIX_EPOCH);
    let event = StoredEvent::of(event, created_at);
    let topic = config.topic.resolve(&key, &event)?;
    Ok(Message { topic, key, sequence: 1, attempt: 1, source: Arc::clone(&config.source), event })
}

/// The headers of a message as Kafka's binding of CloudEvents has them, by name: attributes with the prefix
/// `ce_`, the media type, and the event's own. The other bindings differ in the prefix.
pub fn headers(message: &Message) -> BTreeMap<String, String> {
    let mut headers = message.event.headers.clone();
    headers.insert("content-type".to_owned(), cloudevents::content_type(message).to_owned());
    cloudevents::attributes(message, &mut String::new(), |name, value| {
        headers.insert(format!("ce_{name}"), value.to_owned());
    });
    headers
}

/// The message as a consumer reads it, so that a producer's events are decoded by the consumer's types in one
/// test: `testing::received(&message)?.decode::<OrderPlaced>(message.event.body())?`.
///
/// # Errors
/// As [`ReceivedEvent::from_headers`].
pub fn received(message: &Message) -> Result<ReceivedEvent, ReceivedEventError> {
    ReceivedEvent::from_headers(headers(message))
}
