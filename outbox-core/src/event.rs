//! What a service writes beside its own change: [`Event`].

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

/// The content type of a payload whose writer named none.
pub const CONTENT_TYPE_DEFAULT: &str = "application/json";

/// The longest `aggregate_type`, `aggregate_id`, `event_type`, `topic`, `content_type` or header name, in
/// bytes.
///
/// 255 fits an indexed column of every supported database and an AMQP short string.
pub const NAME_BYTES_MAX: usize = 255;

/// The largest sum of all header names and values, in bytes. 16 KiB is well below the defaults of every
/// broker and leaves room for those that the relay adds.
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// The default limit of a payload, in bytes: what Apache Kafka accepts by default (`message.max.bytes`,
/// 1,048,588 bytes) less room for the key and the headers.
pub const PAYLOAD_BYTES_MAX_DEFAULT: usize = 1_000_000;

/// What is wrong with an event, by field. Nothing was written and the caller's transaction is still usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// A field that identifies or routes the event is empty.
    #[error("{field} is empty: give the event a {field}")]
    Empty {
        /// The name of the field.
        field: &'static str,
    },
    /// A field is longer than every database and broker can carry.
    #[error("{field} has {bytes} bytes, more than the limit of {bytes_max}")]
    TooLong {
        /// The name of the field; for the payload, `payload`.
        field: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit it broke.
        bytes_max: usize,
    },
    /// A text holds a control character, which a broker or a database refuses.
    #[error("{field} {text:?} holds a control character: remove it")]
    ControlCharacter {
        /// The name of the field.
        field: &'static str,
        /// The offending text.
        text: String,
    },
    /// A header that a broker cannot carry.
    #[error("header {name:?} {problem}")]
    Header {
        /// The header's name.
        name: String,
        /// What is wrong with it, and the remedy.
        problem: &'static str,
    },
    /// A version below one.
    #[error("version is {0}: the version of a payload schema starts at 1")]
    Version(i32),
    /// A value that cannot be written as a payload, such as a map whose keys are not texts.
    #[error(
        "payload cannot be written: {problem}; change how the type serialises, or give its bytes by `payload`"
    )]
    Payload {
        /// What the serialiser says of it.
        problem: String,
    },
    /// A time that not every database can store.
    #[error("time is {0}: it must lie within the years 1 to 9999")]
    Time(DateTime<Utc>),
}

/// An event to be written into the outbox, beside the change it tells of.
///
/// ```
/// use outbox_core::Event;
///
/// let event = Event::builder("order", "4711", "order.placed")
///     .payload(br#"{"total": 12}"#.to_vec())
///     .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
///     .build()?;
/// assert_eq!(event.version(), 1);
/// # Ok::<(), outbox_core::EventError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    version: i32,
    payload: Option<Bytes>,
    content_type: String,
    headers: BTreeMap<String, String>,
    topic: Option<String>,
    available_at: Option<DateTime<Utc>>,
}

impl Event {
    /// Starts an event of `event_type` (`order.placed`) about one aggregate (`order`, `4711`).
    pub fn builder(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
    ) -> EventBuilder {
        let event = Self {
            id: Uuid::now_v7(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            version: 1,
            payload: Some(Bytes::new()),
            content_type: CONTENT_TYPE_DEFAULT.to_owned(),
            headers: BTreeMap::new(),
            topic: None,
            available_at: None,
        };
        EventBuilder { event, problem: None }
    }

    /// Starts an event without a payload: it says that what the aggregate was is gone.
    ///
    /// Apache Kafka gets a record whose value is null, by which a compacted topic forgets the key; every
    /// other broker gets an empty body. The attribute `tombstone` marks it everywhere, so that a consumer can
    /// tell it from an event whose payload is empty.
    pub fn tombstone(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
    ) -> EventBuilder {
        let mut builder = Self::builder(aggregate_type, aggregate_id, event_type);
        builder.event.payload = None;
        builder
    }

    /// The idempotency key: unique among all events of the outbox. A UUIDv7 unless the caller gave one.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The type of the aggregate.
    pub fn aggregate_type(&self) -> &str {
        &self.aggregate_type
    }

    /// The id of the aggregate within its type.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }

    /// What happened.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The version of the payload's schema; 1 unless the caller gave one.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The payload, byte for byte as it will be published; `None` is a [`tombstone`](Self::tombstone).
    pub fn payload(&self) -> Option<&Bytes> {
        self.payload.as_ref()
    }

    /// The size of the payload, in bytes; zero for a tombstone.
    pub fn payload_len(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// The media type of the payload.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// Headers that travel with the message, such as `traceparent`.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }

    /// The destination, where it differs from what the relay's topic template gives.
    pub fn topic(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    /// The earliest time of publication; `None` is at once. For scheduling only, never touched by retries.
    pub fn available_at(&self) -> Option<DateTime<Utc>> {
        self.available_at
    }

    /// Checks the payload against the limit of the outbox it is written to. Called by every `enqueue`.
    pub fn check_payload(&self, payload_bytes_max: usize) -> Result<(), EventError> {
        check_bytes("payload", self.payload_len(), payload_bytes_max)
    }
}

/// Builds an [`Event`]; [`build`](Self::build) validates it.
#[derive(Debug, Clone)]
#[must_use = "an event is written only once it is built and enqueued"]
pub struct EventBuilder {
    event: Event,
    /// What went wrong on the way, kept for `build` so that the chain is not interrupted.
    problem: Option<EventError>,
}

impl EventBuilder {
    /// Sets the idempotency key. Give one when the same business fact may be written twice.
    pub fn id(mut self, id: Uuid) -> Self {
        self.event.id = id;
        self
    }

    /// Sets the version of the payload's schema, from 1.
    pub fn version(mut self, version: i32) -> Self {
        self.event.version = version;
        self
    }

    /// Sets the payload, any bytes.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.event.payload = Some(payload.into());
        self
    }

    /// Sets the payload to `value` as JSON. A value that is not JSON, such as a map whose keys are not texts,
    /// is reported by [`build`](Self::build).
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(payload) => self.payload(payload).content_type(CONTENT_TYPE_DEFAULT),
            Err(error) => self.problem(EventError::Payload { problem: error.to_string() }),
        }
    }

    /// Sets the media type of the payload.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.event.content_type = content_type.into();
        self
    }

    /// Adds a header, replacing one of the same name.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.event.headers.insert(name.into(), value.into());
        self
    }

    /// Adds headers, each replacing one of the same name.
    pub fn headers<N: Into<String>, V: Into<String>>(
        mut self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.event.headers.extend(headers.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sends this event to `topic` instead of where the relay's template says.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.event.topic = Some(topic.into());
        self
    }

    /// Publishes the event no sooner than `at`, by the database's clock.
    pub fn available_at(mut self, at: DateTime<Utc>) -> Self {
        self.event.available_at = Some(at);
        self
    }

    /// Keeps the first problem for [`build`](Self::build).
    pub(crate) fn problem(mut self, problem: EventError) -> Self {
        self.problem.get_or_insert(problem);
        self
    }

    /// The event, if all of it can be stored and carried by every broker.
    ///
    /// # Errors
    /// The first thing that is wrong with it, whichever call of the chain brought it in.
    pub fn build(self) -> Result<Event, EventError> {
        let Self { event, problem } = self;
        if let Some(problem) = problem {
            return Err(problem);
        }
        check_name("aggregate_type", &event.aggregate_type)?;
        check_name("aggregate_id", &event.aggregate_id)?;
        check_name("event_type", &event.event_type)?;
        check_name("content_type", &event.content_type)?;
        if let Some(topic) = &event.topic {
            check_name("topic", topic)?;
        }
        if event.version < 1 {
            return Err(EventError::Version(event.version));
        }
        check_headers(&event.headers)?;
        Ok(event)
    }
}

/// Checks headers against what every broker can carry.
///
/// Names follow the token rule of HTTP field names (RFC 9110, section 5.6.2), which NATS and CloudEvents
/// bindings share; values are without control characters; the `ce_`, `ce-`, `cloudEvents:`, `cloudEvents_`
/// and `outbox-` prefixes and `content-type` belong to the relay.
pub fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), EventError> {
    let problem = |name: &str, problem| Err(EventError::Header { name: name.to_owned(), problem });
    let mut bytes = 0;
    for (name, value) in headers {
        bytes += name.len() + value.len();
        if name.is_empty() {
            return problem(name, "has an empty name: name it");
        }
        if name.len() > NAME_BYTES_MAX {
            return problem(name, "has a name of more than 255 bytes: shorten it");
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
            return problem(
                name,
                "has a character that no HTTP field name may have: use letters, digits, - and _",
            );
        }
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("ce_")
            || lower.starts_with("ce-")
            || lower.starts_with("cloudevents_")
            || lower.starts_with("outbox-")
            || lower == "content-type"
        {
            return problem(name, "has a name that the relay sets itself: choose another");
        }
        if value.chars().any(char::is_control) {
            return problem(name, "has a control character in its value: encode it");
        }
    }
    check_bytes("headers", bytes, HEADERS_BYTES_MAX)
}

pub(crate) fn check_name(field: &'static str, text: &str) -> Result<(), EventError> {
    if text.is_empty() {
        return Err(EventError::Empty { field });
    }
    check_bytes(field, text.len(), NAME_BYTES_MAX)?;
    if text.chars().any(char::is_control) {
        return Err(EventError::ControlCharacter { field, text: text.to_owned() });
    }
    Ok(())
}

fn check_bytes(field: &'static str, bytes: usize, bytes_max: usize) -> Result<(), EventError> {
    if bytes > bytes_max { Err(EventError::TooLong { field, bytes, bytes_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_a_name_is_refused_by_field() {
        let empty = |t: &str, i: &str, e: &str| Event::builder(t, i, e).build().unwrap_err();
        assert_eq!(empty("", "1", "e"), EventError::Empty { field: "aggregate_type" });
        assert_eq!(empty("t", "", "e"), EventError::Empty { field: "aggregate_id" });
        assert_eq!(empty("t", "1", ""), EventError::Empty { field: "event_type" });
        assert_eq!(
            Event::builder("t", "1", "e").topic("").build().unwrap_err(),
            EventError::Empty { field: "topic" }
        );
    }

    #[test]
    fn limits_are_named_with_the_size_that_broke_them() {
        let error = Event::builder("t", "x".repeat(256), "e").build().unwrap_err();
        assert_eq!(error.to_string(), "aggregate_id has 256 bytes, more than the limit of 255");
        let event = Event::builder("t", "1", "e").payload(vec![0; 11]).build().unwrap();
        assert!(event.check_payload(11).is_ok());
        assert_eq!(
            event.check_payload(10).unwrap_err().to_string(),
            "payload has 11 bytes, more than the limit of 10"
        );
    }

    #[test]
    fn a_value_that_is_not_json_is_reported_at_the_end_of_the_chain() {
        let keys_that_are_not_texts = BTreeMap::from([(vec![1], 1)]);
        let error =
            Event::builder("t", "1", "e").json(&keys_that_are_not_texts).version(2).build().unwrap_err();
        assert_eq!(error, EventError::Payload { problem: "key must be a string".to_owned() });
        let event =
            Event::builder("t", "1", "e").json(&[1]).headers([("a", "1"), ("b", "2")]).build().unwrap();
        assert_eq!((event.payload().unwrap(), event.headers().len()), (&Bytes::from("[1]"), 2));
    }

    #[test]
    fn headers_that_a_broker_cannot_carry_are_refused() {
        for (name, value) in [
            ("", "v"),
            ("a b", "v"),
            ("ä", "v"),
            ("ok", "line\nbreak"),
            ("ce_id", "v"),
            ("cloudEvents_id", "v"),
            ("Content-Type", "v"),
        ] {
            let error = Event::builder("t", "1", "e").header(name, value).build().unwrap_err();
            assert!(matches!(error, EventError::Header { .. }), "{name:?}: {error}");
        }
        assert!(Event::builder("t", "1", "e").header("traceparent", "00-ä").build().is_ok());
    }
}
