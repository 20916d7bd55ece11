//! A message as a Kafka record: key and headers.

use std::borrow::Cow;

use outbox_core::{cloudevents, publisher::Message};
use rdkafka::message::{Header, OwnedHeaders};

use crate::KafkaKey;

/// The record's key. The same for all events of an aggregate, which therefore share a partition.
pub(crate) fn key(message: &Message, key: KafkaKey) -> Cow<'_, str> {
    match key {
        KafkaKey::AggregateId => Cow::Borrowed(message.key.aggregate_id()),
        KafkaKey::Aggregate => Cow::Owned(message.key.to_string()),
    }
}

/// The headers of the Kafka binding's binary mode, then the event's own.
///
/// See <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>,
/// section 3.2.
pub(crate) fn headers(message: &Message, scratch: &mut String) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(8 + message.event.headers.len()));
    let mut insert = |key: &str, value: &str| {
        headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
    };
    insert("content-type", cloudevents::content_type(message));
    let mut name_buffer = String::with_capacity(16);
    cloudevents::attributes(message, scratch, |name, value| {
        name_buffer.clear();
        name_buffer.push_str("ce_");
        name_buffer.push_str(name);
        insert(&name_buffer, value);
    });
    for (name, value) in &message.event.headers {
        insert(name, value);
    }
    headers.unwrap_or_default()
}
