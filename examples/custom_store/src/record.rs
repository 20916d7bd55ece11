//! What is kept of an event and of a hold, as JSON.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey, Event,
    store::{
        EventRecord, FailureCause, HoldReason, Row, Sequence, Status, StoredEvent, check_headers,
        readable_headers,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

/// The one partition of this store.
pub(crate) const PARTITION: u16 = 0;

/// An event but for its payload. Times are in microseconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    /// A [`Content`], if it can be read as one: that is found out when it is fetched.
    pub(crate) content: Value,
    pub(crate) created_at: i64,
    pub(crate) available_at: Option<i64>,
    pub(crate) status: Status,
    pub(crate) attempts: u32,
    pub(crate) last_error: Option<String>,
    pub(crate) cause: Option<FailureCause>,
    /// When it was sent or failed.
    pub(crate) done_at: Option<i64>,
}

/// What a message is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Content {
    id: String,
    event_type: String,
    version: i32,
    content_type: Option<String>,
    headers: BTreeMap<String, String>,
    topic: Option<String>,
}

impl Content {
    pub(crate) fn of(event: &Event) -> Value {
        let content = Self {
            id: event.id().to_string(),
            event_type: event.event_type().to_owned(),
            version: event.version(),
            content_type: Some(event.content_type().to_owned()),
            headers: event.headers().clone(),
            topic: event.topic().map(str::to_owned),
        };
        serde_json::to_value(content).unwrap_or_default()
    }
}

impl Record {
    pub(crate) fn pending(event: &Event, content: Value, now: i64) -> Self {
        Self {
            aggregate_type: event.aggregate_type().to_owned(),
            aggregate_id: event.aggregate_id().to_owned(),
            content,
            created_at: now,
            available_at: event.available_at().map(|at| at.timestamp_micros()),
            status: Status::Pending,
            attempts: 0,
            last_error: None,
            cause: None,
            done_at: None,
        }
    }

    pub(crate) fn key(&self) -> AggregateKey {
        AggregateKey::new(&self.aggregate_type, &self.aggregate_id)
    }

    pub(crate) fn is_pending_and_due(&self, now: i64) -> bool {
        self.status == Status::Pending && self.available_at.is_none_or(|at| at <= now)
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        self.content.get("id").and_then(Value::as_str).and_then(|id| Uuid::parse_str(id).ok())
    }

    pub(crate) fn event_type(&self) -> &str {
        self.content.get("event_type").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn to_row(&self, sequence: Sequence, payload: Option<Bytes>, now: i64) -> Row {
        Row::new(sequence, PARTITION, self.key(), self.to_event(payload))
            .with_attempts(self.attempts)
            .with_age(micros(now.saturating_sub(self.created_at)))
    }

    fn to_event(&self, payload: Option<Bytes>) -> Result<StoredEvent, String> {
        let content = Content::deserialize(&self.content).map_err(|error| error.to_string())?;
        check_headers(&content.headers).map_err(|error| error.to_string())?;
        Ok(StoredEvent::new(
            Uuid::parse_str(&content.id).map_err(|error| format!("the id is not a UUID: {error}"))?,
            content.event_type,
            Bytes::new(),
            utc(self.created_at),
        )
        .with_payload(payload)
        .with_version(content.version)
        .with_content_type(content.content_type)
        .with_headers(content.headers)
        .with_topic(content.topic))
    }

    pub(crate) fn to_event_record(&self, sequence: Sequence, payload: Option<Bytes>) -> EventRecord {
        // Field by field, so that what can be read of an undecodable event is shown.
        let text = |name: &str| self.content.get(name).and_then(Value::as_str).map(str::to_owned);
        let version = self.content.get("version").and_then(Value::as_i64).and_then(|n| n.try_into().ok());
        let headers = self.content.get("headers").cloned().unwrap_or_default();
        EventRecord::new(sequence, PARTITION, self.key(), self.status, utc(self.created_at))
            .with_id(self.id())
            .with_event_type(self.event_type().to_owned())
            .with_version(version.unwrap_or(1))
            .with_payload(payload)
            .with_content_type(text("content_type"))
            .with_headers(readable_headers(headers.to_string().as_bytes()))
            .with_topic(text("topic"))
            .with_available_at(self.available_at.map(utc))
            .with_attempts(self.attempts)
            .with_last_error(self.last_error.clone())
            .with_cause(self.cause)
            .with_sent_at(self.done_at.filter(|_| self.status == Status::Sent).map(utc))
            .with_failed_at(self.done_at.filter(|_| self.status == Status::Failed).map(utc))
    }
}

/// A hold whose times are in microseconds since 1970. Its rules are the core's.
pub(crate) type Hold = outbox_core::store::Hold<i64>;

/// A [`Hold`] as it is kept.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeptHold {
    sequence: Option<Sequence>,
    until: Option<i64>,
    /// The word of a [`HoldReason`].
    reason: String,
    paused_at: Option<i64>,
}

impl From<Hold> for KeptHold {
    fn from(hold: Hold) -> Self {
        let reason = hold.reason.as_str().to_owned();
        Self { sequence: hold.sequence, until: hold.until, reason, paused_at: hold.paused_at }
    }
}

impl From<KeptHold> for Hold {
    fn from(kept: KeptHold) -> Self {
        Self::new(kept.sequence, kept.until, HoldReason::of(&kept.reason), kept.paused_at)
    }
}

/// Microseconds as a duration; negative ones are zero.
pub(crate) fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// `now` and a duration later, or the end of time.
pub(crate) fn after(now: i64, duration: Duration) -> i64 {
    now.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

pub(crate) fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn utc(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
