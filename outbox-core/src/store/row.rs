//! A row of the outbox as a relay reads it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Partition;
use crate::{AggregateKey, Event, with::with};

/// The position of an event in its store: given by the store, unique, and ascending within an aggregate whose
/// changes are serialised (locked or version-checked) by the service. Zero and below are never valid.
pub type Sequence = i64;

/// A pending row as a relay reads it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// Its position.
    pub sequence: Sequence,
    /// The partition that the store computed for its aggregate.
    pub partition: Partition,
    /// The aggregate, as far as it can be read. A row whose aggregate is not UTF-8 has it with replacement
    /// characters.
    pub key: AggregateKey,
    /// Attempts that are already recorded.
    pub attempts: u32,
    /// Now less `created_at`, both by the database's clock, at the time of the read. Zero if in the future.
    pub age: Duration,
    /// The event, or why the row cannot be decoded.
    pub content: Result<StoredEvent, String>,
}

impl Row {
    /// A row without recorded attempts, written just now.
    pub fn new(
        sequence: Sequence,
        partition: Partition,
        key: AggregateKey,
        content: Result<StoredEvent, String>,
    ) -> Self {
        Self { sequence, partition, key, attempts: 0, age: Duration::ZERO, content }
    }

    /// The memory this row holds, roughly, in bytes; what `bytes_max` of a fetch and of the relay's buffer
    /// count.
    pub fn bytes(&self) -> usize {
        let content = match &self.content {
            Ok(event) => {
                event.payload_len()
                    + event.event_type.len()
                    + event.headers.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>()
            }
            Err(error) => error.len(),
        };
        content + std::mem::size_of::<Self>() + self.key.bytes()
    }
}

/// The content of a pending row: all that a message is made of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredEvent {
    /// The idempotency key.
    pub id: Uuid,
    /// What happened.
    pub event_type: String,
    /// The version of the payload's schema.
    pub version: i32,
    /// The payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The media type of the payload; `None` is [`CONTENT_TYPE_DEFAULT`](crate::event::CONTENT_TYPE_DEFAULT).
    pub content_type: Option<String>,
    /// Headers that travel with the message.
    pub headers: BTreeMap<String, String>,
    /// The destination, where the writer chose one.
    pub topic: Option<String>,
    /// When the event was written, by the database's clock.
    pub created_at: DateTime<Utc>,
}

impl StoredEvent {
    /// An event of version 1 without a content type, headers and a topic of its own.
    pub fn new(
        id: Uuid,
        event_type: impl Into<String>,
        payload: impl Into<Bytes>,
        created_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id,
            event_type: event_type.into(),
            version: 1,
            payload: Some(payload.into()),
            content_type: None,
            headers: BTreeMap::new(),
            topic: None,
            created_at,
        }
    }

    /// An event as it is read back from a store that wrote it at `created_at`.
    pub fn of(event: &Event, created_at: DateTime<Utc>) -> Self {
        Self {
            id: event.id(),
            event_type: event.event_type().to_owned(),
            version: event.version(),
            payload: event.payload().cloned(),
            content_type: Some(event.content_type().to_owned()),
            headers: event.headers().clone(),
            topic: event.topic().map(str::to_owned),
            created_at,
        }
    }

    /// The bytes of the payload; none for a tombstone, which has the [`payload`](Self::payload) `None`.
    pub fn body(&self) -> &[u8] {
        self.payload.as_deref().unwrap_or_default()
    }

    /// The size of the payload, in bytes; zero for a tombstone.
    pub fn payload_len(&self) -> usize {
        self.body().len()
    }
}

with!(Row { with_sequence sequence: Sequence, with_partition partition: Partition, with_attempts attempts: u32, with_age age: Duration });

with!(StoredEvent {
    with_payload payload: Option<Bytes>,
    with_version version: i32,
    with_content_type content_type: Option<String>,
    with_headers headers: BTreeMap<String, String>,
    with_topic topic: Option<String>,
});
