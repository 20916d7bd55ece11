//! What a consumer reads from a message: [`ReceivedEvent`].

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, Utc};

use crate::{
    AggregateKey, EventError, cloudevents::TOMBSTONE, event::CONTENT_TYPE_DEFAULT, inbox::EventIdentity,
    store::Sequence,
};

/// What stands before an attribute's name in the binding of Kafka, and in that of AMQP, which has two.
const PREFIXES: [&str; 3] = ["ce_", "cloudEvents:", "cloudEvents_"];

/// The same in the bindings of HTTP and NATS, in which the values of attributes are percent-encoded.
const PREFIX_ENCODED: &str = "ce-";

/// Why a message cannot be read as an event. It will be the same when it is delivered again: set it aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceivedEventError {
    /// An attribute that every CloudEvent has is not there.
    #[error(
        "the message has no CloudEvents attribute {0}: it was not published in binary mode, or is not a CloudEvent"
    )]
    Missing(&'static str),
    /// An attribute is there more than once, with different values.
    #[error("the message has the CloudEvents attribute {0} twice, with different values")]
    Ambiguous(String),
    /// An attribute has a value that it cannot have.
    #[error("the CloudEvents attribute {attribute} is {text:?}: {problem}")]
    Invalid {
        /// The attribute's name.
        attribute: String,
        /// Its value, with replacement characters for what is not UTF-8.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its identity cannot be kept in an inbox.
    #[error(transparent)]
    Identity(#[from] EventError),
}

/// All that a message in CloudEvents' binary mode says of its event, the payload excepted.
///
/// ```
/// use outbox_core::ReceivedEvent;
///
/// let event = ReceivedEvent::from_headers([
///     ("content-type", &b"application/json"[..]),
///     ("ce_specversion", b"1.0"),
///     ("ce_id", b"01997a4e-8d6c-7c53-a2b0-6b9f5a1d3c11"),
///     ("ce_source", b"/shop"),
///     ("ce_type", b"order.placed"),
///     ("ce_subject", b"order/4711"),
///     ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
/// ])?;
/// assert_eq!(event.event_type, "order.placed");
/// assert_eq!(event.aggregate().unwrap().aggregate_id(), "4711");
/// assert!(event.traceparent().is_some());
/// # Ok::<(), outbox_core::ReceivedEventError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// Source, id and time: what an [`Inbox`](crate::Inbox) is asked with.
    pub identity: EventIdentity,
    /// What happened.
    pub event_type: String,
    /// What it is about. A relay writes the aggregate: see [`aggregate`](Self::aggregate).
    pub subject: Option<String>,
    /// The media type of the payload; [`CONTENT_TYPE_DEFAULT`] if the message names none.
    pub content_type: String,
    /// The version of the payload's schema: the extension `dataversion`, 1 if there is none.
    pub version: i32,
    /// The event's position in its outbox, which ascends within an aggregate.
    pub sequence: Option<Sequence>,
    /// Which attempt to publish it this message is, from 1.
    pub attempt: u32,
    /// The event has no payload: what the aggregate was is gone. The message has an empty body, or a null
    /// value where the broker has such a thing.
    pub tombstone: bool,
    /// All other attributes, such as `partitionkey`, by their names without a prefix.
    pub extensions: BTreeMap<String, String>,
    /// The event's own headers, such as `traceparent`. What is not UTF-8 has replacement characters.
    pub headers: BTreeMap<String, String>,
}

impl ReceivedEvent {
    /// Reads the headers of a message, whatever the broker: attributes bear the prefix `ce_` (Kafka), `ce-`
    /// (NATS, HTTP, percent-encoded), `cloudEvents:` or `cloudEvents_` (AMQP), in any case of letters; all
    /// others are the event's own headers. Leave out those that a broker adds of its own, such as
    /// `Nats-Msg-Id`. The payload's media type is taken from a header `content-type`: where the protocol has
    /// a property for it, add it as one.
    ///
    /// # Errors
    /// A [`ReceivedEventError`] for a message that is not a CloudEvent in binary mode.
    pub fn from_headers<N: AsRef<str>, V: AsRef<[u8]>>(
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, ReceivedEventError> {
        let (mut attributes, mut own) = (BTreeMap::new(), BTreeMap::new());
        let mut content_type = None;
        for (name, value) in headers {
            let (name, value) = (name.as_ref(), value.as_ref());
            if let Some(attribute) = attribute_name(name) {
                let text = attribute_text(name, &attribute, value)?;
                let before = attributes.insert(attribute.clone(), text.clone());
                if before.is_some_and(|before| before != text) {
                    return Err(ReceivedEventError::Ambiguous(attribute));
                }
            } else if name.eq_ignore_ascii_case("content-type") {
                content_type = Some(String::from_utf8_lossy(value).into_owned());
            } else {
                own.insert(name.to_owned(), String::from_utf8_lossy(value).into_owned());
            }
        }
        Self::from_attributes(attributes, content_type, own)
    }

    fn from_attributes(
        mut attributes: BTreeMap<String, String>,
        content_type: Option<String>,
        headers: BTreeMap<String, String>,
    ) -> Result<Self, ReceivedEventError> {
        let mut required = |name| attributes.remove(name).ok_or(ReceivedEventError::Missing(name));
        let version = required("specversion")?;
        if version != "1.0" {
            return Err(invalid("specversion", &version, "1.0 is read"));
        }
        let (id, source, event_type) = (required("id")?, required("source")?, required("type")?);
        let time = match attributes.remove("time") {
            Some(text) => Some(parse_time(&text)?),
            None => None,
        };
        let named = attributes.remove("datacontenttype");
        Ok(Self {
            identity: EventIdentity::new(source, id, time)?,
            event_type,
            subject: attributes.remove("subject"),
            content_type: content_type.or(named).unwrap_or_else(|| CONTENT_TYPE_DEFAULT.to_owned()),
            version: take_number(&mut attributes, "dataversion").unwrap_or(1),
            sequence: take_number(&mut attributes, "sequence"),
            attempt: take_number(&mut attributes, "attempt").unwrap_or(1),
            tombstone: attributes.remove(TOMBSTONE).is_some_and(|text| text == "true"),
            extensions: attributes,
            headers,
        })
    }

    /// The aggregate, of a message that a relay published: the subject, parted at its first slash. A type
    /// that has a slash itself is not told from the id that follows it.
    pub fn aggregate(&self) -> Option<AggregateKey> {
        let (aggregate_type, aggregate_id) = self.subject.as_deref()?.split_once('/')?;
        Some(AggregateKey::new(aggregate_type, aggregate_id))
    }

    /// The W3C trace context that the writer of the event gave: the parent of what the consumer does. It is a
    /// header of the event or, from other producers, an attribute (CloudEvents' distributed tracing
    /// extension).
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.get("traceparent").or_else(|| self.extensions.get("traceparent")).map(String::as_str)
    }
}

/// The name of an attribute in a header's name, in lower case, as CloudEvents' names are.
fn attribute_name(header: &str) -> Option<String> {
    let prefix = PREFIXES.into_iter().chain([PREFIX_ENCODED]).find(|prefix| starts_with(header, prefix))?;
    Some(header[prefix.len()..].to_ascii_lowercase())
}

fn attribute_text(header: &str, attribute: &str, value: &[u8]) -> Result<String, ReceivedEventError> {
    let bytes =
        if starts_with(header, PREFIX_ENCODED) { percent_decoded(value) } else { Cow::Borrowed(value) };
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(invalid(attribute, &String::from_utf8_lossy(&bytes), "it is not UTF-8")),
    }
}

fn starts_with(header: &str, prefix: &str) -> bool {
    header.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Decoded once. A percent sign that begins no encoded byte stands for itself.
fn percent_decoded(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'%') {
        return Cow::Borrowed(value);
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, behind @ ..] = rest {
        let encoded = match behind {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match encoded {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    Cow::Owned(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, ReceivedEventError> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| invalid("time", text, "RFC 3339 is read"))?;
    Ok(time.to_utc())
}

/// Takes an attribute if it is a number; another producer may mean something else by the name.
fn take_number<T: std::str::FromStr>(attributes: &mut BTreeMap<String, String>, name: &str) -> Option<T> {
    let number = attributes.get(name)?.parse().ok()?;
    attributes.remove(name);
    Some(number)
}

fn invalid(attribute: &str, text: &str, problem: &'static str) -> ReceivedEventError {
    ReceivedEventError::Invalid { attribute: attribute.to_owned(), text: text.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::{cloudevents, publisher::Message, store::StoredEvent};

    const ID: &str = "01997a4e-8d6c-7c53-a2b0-6b9f5a1d3c11";

    fn message() -> Message {
        Message {
            topic: Arc::from("orders"),
            key: AggregateKey::new("order", "47/11 ä"),
            sequence: 42,
            attempt: 3,
            source: Arc::from("/shop"),
            event: StoredEvent {
                id: Uuid::parse_str(ID).unwrap(),
                event_type: "order.placed".to_owned(),
                version: 2,
                payload: Some("{}".into()),
                content_type: Some("text/plain".to_owned()),
                headers: [("traceparent", "00-0af7-b7ad-01"), ("X-Tenant", "größe")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                topic: None,
                created_at: "2026-09-21T14:13:20.000001Z".parse().unwrap(),
            },
        }
    }

    /// The headers that a publisher whose binding has this prefix writes.
    fn headers(message: &Message, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let mut headers =
            vec![("Content-Type".to_owned(), cloudevents::content_type(message).as_bytes().to_vec())];
        cloudevents::attributes(message, &mut String::new(), |name, value| {
            headers.push((format!("{prefix}{name}"), value.as_bytes().to_vec()));
        });
        headers.extend(
            message.event.headers.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec())),
        );
        headers
    }

    #[test]
    fn what_a_publisher_writes_is_read_back_in_every_binding() {
        let message = message();
        for prefix in ["ce_", "ce-", "Ce-", "cloudEvents:", "cloudEvents_"] {
            let event = ReceivedEvent::from_headers(headers(&message, prefix)).unwrap();
            let identity = EventIdentity::new("/shop", ID, Some(message.event.created_at)).unwrap();
            assert_eq!(event.identity, identity, "{prefix}");
            assert_eq!(event.event_type, "order.placed");
            assert_eq!(event.aggregate(), Some(message.key.clone()));
            assert_eq!(event.content_type, "text/plain");
            assert_eq!((event.version, event.sequence, event.attempt), (2, Some(42), 3));
            assert_eq!(event.headers, message.event.headers);
            assert_eq!(event.traceparent(), Some("00-0af7-b7ad-01"));
            assert_eq!(event.extensions, BTreeMap::new());
        }
    }

    fn read(headers: &[(&str, &str)]) -> Result<ReceivedEvent, ReceivedEventError> {
        ReceivedEvent::from_headers(headers.iter().copied())
    }

    #[test]
    fn attributes_are_percent_decoded_where_the_binding_encodes_them() {
        let with = |name: &str, value: &str| {
            let headers =
                [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/a%20b"), ("ce-type", "t")];
            read(&[&headers[..], &[(name, value)]].concat())
        };
        for (value, subject) in [
            ("order/Euro%20%E2%82%AC%20%F0%9F%98%80", "order/Euro € 😀"),
            ("100%25%2525", "100%%25"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%c3%A4", "%zzä"),
            ("größe", "größe"),
        ] {
            let event = with("ce-subject", value).unwrap();
            assert_eq!(event.subject.as_deref(), Some(subject));
            assert_eq!(event.identity.source(), "/a b");
            assert_eq!(with("Ce-Subject", value).unwrap().subject.as_deref(), Some(subject));
            // In the other bindings they stand as they are.
            assert_eq!(with("ce_subject", value).unwrap().subject.as_deref(), Some(value));
            // The event's own headers are not encoded.
            assert_eq!(with("tenant", value).unwrap().headers["tenant"], value);
        }
        assert!(matches!(with("ce-subject", "%ff").unwrap_err(), ReceivedEventError::Invalid { .. }));
    }

    const LEAST: [(&str, &str); 4] =
        [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/a"), ("ce_type", "t")];

    #[test]
    fn the_least_event_has_the_defaults_and_foreign_attributes_are_kept() {
        let event = read(&LEAST).unwrap();
        assert_eq!((event.version, event.sequence, event.attempt), (1, None, 1));
        assert_eq!((event.content_type.as_str(), event.subject.as_deref()), (CONTENT_TYPE_DEFAULT, None));
        assert_eq!((event.aggregate(), event.traceparent(), event.identity.time()), (None, None, None));
        let more =
            [("ce_sequence", "A-7"), ("ce_partitionkey", "k"), ("ce_traceparent", "00"), ("ce-id", "1")];
        let event = read(&[&LEAST[..], &more].concat()).unwrap();
        assert_eq!(event.sequence, None);
        assert_eq!(event.extensions["sequence"], "A-7");
        assert_eq!(event.extensions["partitionkey"], "k");
        assert_eq!(event.traceparent(), Some("00"));
    }

    #[test]
    fn what_is_no_cloudevent_is_refused_by_attribute() {
        for (i, name) in ["specversion", "id", "source", "type"].into_iter().enumerate() {
            let mut headers = LEAST.to_vec();
            headers.remove(i);
            assert_eq!(read(&headers).unwrap_err(), ReceivedEventError::Missing(name));
        }
        let with = |header| read(&[&LEAST[..], &[header]].concat()).unwrap_err();
        assert_eq!(with(("ce-id", "2")), ReceivedEventError::Ambiguous("id".to_owned()));
        assert!(matches!(with(("ce_time", "yesterday")), ReceivedEventError::Invalid { .. }));
        let headers = [("ce_specversion", "0.3"), ("ce_id", "1"), ("ce_source", "/a"), ("ce_type", "t")];
        assert!(matches!(read(&headers).unwrap_err(), ReceivedEventError::Invalid { .. }));
        let bytes = LEAST.map(|(name, value)| (name, value.as_bytes()));
        let error = ReceivedEvent::from_headers(bytes.into_iter().chain([("ce_subject", &b"\xff"[..])]));
        assert!(matches!(error.unwrap_err(), ReceivedEventError::Invalid { .. }));
        let long = "x".repeat(1024);
        let headers = [LEAST[0], ("ce_id", &long), LEAST[2], LEAST[3]];
        assert!(matches!(read(&headers).unwrap_err(), ReceivedEventError::Identity(_)));
    }
}
