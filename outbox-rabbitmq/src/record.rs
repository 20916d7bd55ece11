//! A message as RabbitMQ carries it: exchange, routing key, properties and headers.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use outbox_core::{
    cloudevents,
    publisher::{Message, PublishError},
};

use crate::{RabbitMqConfig, config::NAME_BYTES_MAX};

/// A message survives the broker's restart.
const PERSISTENT: u8 = 2;

/// Headers with which a sender orders further routes. Their values would have to be lists, and any other
/// value closes the channel.
const SENDER_ROUTES: [&str; 2] = ["CC", "BCC"];

/// What a header takes beside its name and its value: the lengths of both, and a type.
const HEADER_BYTES: usize = 6;

/// What the properties take beside the headers, rounded up: the frame, the flags, the message id, and room to
/// spare.
const PROPERTIES_BYTES: usize = 128;

/// A message, ready to be sent.
pub(crate) struct Record {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) id: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
    /// The size of the frame that holds the properties: it cannot be split.
    pub(crate) properties_bytes: usize,
}

/// The message, with the application properties of the AMQP binding's binary mode as headers, then the
/// event's own.
///
/// See <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md>,
/// section 3.1.
///
/// # Errors
/// What AMQP cannot carry.
pub(crate) fn record(config: &RabbitMqConfig, message: &Message) -> Result<Record, PublishError> {
    let (exchange, routing_key) = address(config, &message.topic)?;
    let payload = message.event.payload.clone().unwrap_or_default();
    if payload.len() > config.payload_bytes_max {
        return Err(PublishError::permanent(
            "PayloadTooLarge",
            format!(
                "the payload has {} bytes, more than payload_bytes_max, which is {}",
                payload.len(),
                config.payload_bytes_max
            ),
        ));
    }
    let content_type = cloudevents::content_type(message);
    let Ok(content_type) = ShortString::try_new(content_type) else {
        let problem = format!("the content type has more than {NAME_BYTES_MAX} bytes: {content_type:?}");
        return Err(PublishError::permanent("InvalidContentType", problem));
    };
    let mut properties_bytes = PROPERTIES_BYTES + content_type.as_str().len();
    let headers = headers(message, &mut properties_bytes)?;
    let id = ShortString::from(&*message.event.id.hyphenated().encode_lower(&mut [0; 36]));
    let properties = BasicProperties::default()
        .with_content_type(content_type)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id.clone())
        .with_headers(headers);
    Ok(Record { exchange, routing_key, id, properties, payload, properties_bytes })
}

/// Exchange and routing key of a topic.
///
/// # Errors
/// A name that is too long.
pub(crate) fn address(
    config: &RabbitMqConfig,
    topic: &str,
) -> Result<(ShortString, ShortString), PublishError> {
    let (exchange, routing_key) = config.address(topic);
    match (ShortString::try_new(exchange), ShortString::try_new(routing_key)) {
        (Ok(exchange), Ok(routing_key)) => Ok((exchange, routing_key)),
        _ => Err(PublishError::permanent(
            "InvalidTopic",
            format!("an exchange and a routing key have up to {NAME_BYTES_MAX} bytes: {topic:?}"),
        )),
    }
}

fn headers(message: &Message, bytes: &mut usize) -> Result<FieldTable, PublishError> {
    let mut headers = FieldTable::default();
    let mut insert = |name: ShortString, value: &str| {
        *bytes += HEADER_BYTES + name.as_str().len() + value.len();
        headers.insert(name, AMQPValue::LongString(value.into()));
    };
    let mut name_buffer = String::with_capacity(32);
    cloudevents::attributes(message, &mut String::with_capacity(64), |name, value| {
        name_buffer.clear();
        name_buffer.push_str("cloudEvents:");
        name_buffer.push_str(name);
        insert(name_buffer.as_str().into(), value);
    });
    for (name, value) in &message.event.headers {
        let problem = |problem: &str| {
            Err(PublishError::permanent("InvalidHeader", format!("header {name:?} {problem}")))
        };
        if SENDER_ROUTES.contains(&name.as_str()) || name.starts_with("cloudEvents:") {
            return problem("has a name that is reserved");
        }
        match ShortString::try_new(name.as_str()) {
            Ok(name) => insert(name, value),
            Err(_) => return problem("has a name of more than 255 bytes"),
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use outbox_core::{AggregateKey, publisher::PublishErrorKind, store::StoredEvent};

    use super::*;

    fn message(topic: &str, header: &str, payload: usize) -> Message {
        Message::new(
            Arc::from(topic),
            AggregateKey::new("order", "1"),
            1,
            Arc::from("/test"),
            StoredEvent::new(
                "01990000-0000-7000-8000-000000000001".parse().unwrap(),
                "order.placed".to_owned(),
                vec![0; payload],
                Default::default(),
            )
            .with_headers(BTreeMap::from([(header.to_owned(), "v".to_owned())])),
        )
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused_for_good() {
        let config = RabbitMqConfig::builder("amqp://a").payload_bytes_max(10).build().unwrap();
        let long = "x".repeat(256);
        for (message, code) in [
            (message(&long, "h", 0), "InvalidTopic"),
            (message("t", &long, 0), "InvalidHeader"),
            (message("t", "CC", 0), "InvalidHeader"),
            (message("t", "cloudEvents:id", 0), "InvalidHeader"),
            (message("t", "h", 11), "PayloadTooLarge"),
        ] {
            let error = record(&config, &message).err().unwrap();
            assert_eq!((&*error.code, error.kind), (code, PublishErrorKind::Permanent));
        }
        let mut odd = message("t", "h", 0);
        odd.event.content_type = Some(long);
        assert_eq!(record(&config, &odd).err().unwrap().code, "InvalidContentType");
        assert!(record(&config, &message(&"x".repeat(255), &"h".repeat(255), 10)).is_ok());
    }
}
