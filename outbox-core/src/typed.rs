//! Typed events: [`OutboxEvent`], which a serde type implements to name its aggregate, its event type and its
//! version.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Event, EventBuilder, EventError, ReceivedEvent, event::CONTENT_TYPE_DEFAULT};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An event type with the version of its payload's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventKind {
    /// What happened, such as `order.placed`.
    pub event_type: &'static str,
    /// The version of the payload's schema, from 1.
    pub version: i32,
}

impl EventKind {
    /// A kind from its parts.
    pub const fn new(event_type: &'static str, version: i32) -> Self {
        Self { event_type, version }
    }
}

/// A serde type that is the content of events: it names the aggregate, the event type and the version, so
/// that a producer cannot swap them and a consumer reads what was meant.
///
/// The feature `derive` has a derive macro of the same name:
///
/// ```
/// # #[cfg(feature = "derive")] {
/// use outbox_core::{Event, OutboxEvent};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, OutboxEvent)]
/// #[outbox(crate = outbox_core)] // Not needed by a crate that depends on `outbox`.
/// #[outbox(aggregate_type = "order", event_type = "order.placed", version = 2)]
/// struct OrderPlaced {
///     #[outbox(aggregate_id)]
///     order: u64,
///     total: i64,
/// }
///
/// let event = OrderPlaced { order: 4711, total: 12 }.to_event()?;
/// assert_eq!((event.aggregate_id(), event.event_type(), event.version()), ("4711", "order.placed", 2));
/// // A builder, where the event needs more than its type says:
/// let event = Event::of(&OrderPlaced { order: 4711, total: 12 }).header("tenant", "acme").build()?;
/// # assert_eq!(event.headers()["tenant"], "acme");
/// # }
/// # Ok::<(), outbox_core::EventError>(())
/// ```
///
/// By hand, it is this much:
///
/// ```
/// use outbox_core::{EventKind, OutboxEvent};
///
/// #[derive(serde::Serialize)]
/// struct OrderPlaced { order: u64, total: i64 }
///
/// impl OutboxEvent for OrderPlaced {
///     const AGGREGATE_TYPE: &'static str = "order";
///     const KINDS: &'static [EventKind] = &[EventKind::new("order.placed", 2)];
///
///     fn kind(&self) -> EventKind {
///         Self::KINDS[0]
///     }
///
///     fn aggregate_id(&self) -> String {
///         self.order.to_string()
///     }
/// }
/// # assert_eq!(OrderPlaced { order: 1, total: 2 }.to_event()?.payload().unwrap(), r#"{"order":1,"total":2}"#);
/// # Ok::<(), outbox_core::EventError>(())
/// ```
///
/// # Enums
/// Each variant of an enum is an event type. The payload is what serde makes of the value: `#[serde(tag =
/// "type")]` puts the variant's name beside its fields, so that a consumer with a struct for one of them
/// reads it as well, while serde's default wraps the fields in an object of their own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a typed event",
    note = "derive it: `#[derive(serde::Serialize, outbox::OutboxEvent)]` (feature `derive`), or implement `OutboxEvent`"
)]
pub trait OutboxEvent: Serialize {
    /// The type of the aggregate, such as `order`.
    const AGGREGATE_TYPE: &'static str;

    /// All kinds that a value can have: one for a struct, one for each variant of an enum. A consumer
    /// compares a message with them before it reads the payload.
    const KINDS: &'static [EventKind];

    /// The media type of the payload. Change it together with [`payload`](Self::payload) and
    /// [`from_payload`](Self::from_payload).
    const CONTENT_TYPE: &'static str = CONTENT_TYPE_DEFAULT;

    /// The kind of this value, one of [`KINDS`](Self::KINDS).
    fn kind(&self) -> EventKind;

    /// The id of the aggregate within its type.
    fn aggregate_id(&self) -> String;

    /// The destination, where it differs from what the relay's topic template gives; a command names the
    /// topic of the service that it is for. Default: none.
    fn topic(&self) -> Option<&str> {
        None
    }

    /// The payload. Default: JSON.
    ///
    /// # Errors
    /// What the serialiser says of a value that it cannot write.
    fn payload(&self) -> Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(self)?.into())
    }

    /// Reads what [`payload`](Self::payload) wrote. Default: JSON.
    ///
    /// # Errors
    /// What the deserialiser says of a payload that is not of this type.
    fn from_payload(payload: &[u8]) -> Result<Self, BoxError>
    where
        Self: DeserializeOwned,
    {
        Ok(serde_json::from_slice(payload)?)
    }

    /// The event, with an id of its own.
    ///
    /// # Errors
    /// As [`EventBuilder::build`]; a payload that cannot be written is [`EventError::Payload`].
    fn to_event(&self) -> Result<Event, EventError> {
        Event::of(self).build()
    }
}

impl Event {
    /// Starts an event whose content is a typed one; the builder adds what the type does not say.
    pub fn of<T: OutboxEvent + ?Sized>(content: &T) -> EventBuilder {
        let EventKind { event_type, version } = content.kind();
        let mut builder = Self::builder(T::AGGREGATE_TYPE, content.aggregate_id(), event_type)
            .version(version)
            .content_type(T::CONTENT_TYPE);
        if let Some(topic) = content.topic() {
            builder = builder.topic(topic);
        }
        match content.payload() {
            Ok(payload) => builder.payload(payload),
            Err(error) => builder.problem(EventError::Payload { problem: error.to_string() }),
        }
    }
}

/// Why a message is not read as the typed event that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is an event of another type. Route by `event_type` before decoding, or ask
    /// [`ReceivedEvent::is`].
    #[error("the event type is {received:?}, and {expected} is read here: ask `is` before `decode`")]
    EventType {
        /// The message's event type.
        received: String,
        /// Those that the Rust type has.
        expected: String,
    },
    /// The event type is right and the version of its schema is another one.
    #[error(
        "{event_type} has version {received}, and {expected} is read here: add a type that reads version {received}"
    )]
    Version {
        /// The event type.
        event_type: String,
        /// The message's version.
        received: i32,
        /// Those that the Rust type has of this event type.
        expected: String,
    },
    /// It is a tombstone, which has no payload.
    #[error("{event_type} is a tombstone, which has no payload: ask `tombstone` before `decode`")]
    Tombstone {
        /// The event type.
        event_type: String,
    },
    /// The payload is written in another format.
    #[error("the payload of {event_type} is {received:?}, and {expected:?} is read here")]
    ContentType {
        /// The event type.
        event_type: String,
        /// The message's content type.
        received: String,
        /// That of the Rust type.
        expected: &'static str,
    },
    /// The payload does not fit the type that its event type and version promise.
    #[error("the payload of {event_type}, version {version}, cannot be read: see what its producer writes")]
    Payload {
        /// The event type.
        event_type: String,
        /// The version of its schema.
        version: i32,
        /// What the deserialiser says.
        source: BoxError,
    },
}

impl ReceivedEvent {
    /// Whether the message is of one of the kinds of `T`, by event type and version.
    pub fn is<T: OutboxEvent>(&self) -> bool {
        T::KINDS.iter().any(|kind| kind.event_type == self.event_type && kind.version == self.version)
    }

    /// Reads the payload as a `T`, after the message's event type, version and media type have been compared
    /// with those of `T`.
    ///
    /// # Errors
    /// A [`DecodeError`], which says what differs. The message is the same when it is delivered again: set it
    /// aside.
    pub fn decode<T: OutboxEvent + DeserializeOwned>(&self, payload: &[u8]) -> Result<T, DecodeError> {
        if !self.is::<T>() {
            return Err(self.other_kind(T::KINDS));
        }
        if self.tombstone {
            return Err(DecodeError::Tombstone { event_type: self.event_type.clone() });
        }
        if essence(&self.content_type) != essence(T::CONTENT_TYPE) {
            return Err(DecodeError::ContentType {
                event_type: self.event_type.clone(),
                received: self.content_type.clone(),
                expected: T::CONTENT_TYPE,
            });
        }
        let unreadable = |source| DecodeError::Payload {
            event_type: self.event_type.clone(),
            version: self.version,
            source,
        };
        let content = T::from_payload(payload).map_err(unreadable)?;
        // An enum may read the payload as another variant than the one that the message names.
        let EventKind { event_type, version } = content.kind();
        if event_type == self.event_type && version == self.version {
            return Ok(content);
        }
        Err(unreadable(format!("its content is that of {event_type}, version {version}").into()))
    }

    fn other_kind(&self, kinds: &[EventKind]) -> DecodeError {
        let versions: Vec<_> = kinds
            .iter()
            .filter(|kind| kind.event_type == self.event_type)
            .map(|kind| kind.version.to_string())
            .collect();
        if versions.is_empty() {
            let types: Vec<_> = kinds.iter().map(|kind| kind.event_type).collect();
            return DecodeError::EventType {
                received: self.event_type.clone(),
                expected: types.join(" or "),
            };
        }
        DecodeError::Version {
            event_type: self.event_type.clone(),
            received: self.version,
            expected: versions.join(" or "),
        }
    }
}

/// A media type without its parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
