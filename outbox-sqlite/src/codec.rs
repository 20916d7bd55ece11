//! Values of the core as they are in the database, and back: from a row of the table to an event, or to the
//! reason why it cannot be decoded, and times.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey,
    store::{
        EventRecord, FailureCause, NAME_BYTES_MAX, Row, Sequence, Status, StoredEvent, decode_headers,
        readable_headers,
    },
};
use rusqlite::types::ValueRef;
use uuid::Uuid;

/// The database's clock: microseconds since 1970-01-01 UTC, with SQLite's own resolution of a millisecond.
///
/// `unixepoch('subsec')` would read better, but a writer may bring a library older than 3.42, where it is
/// null.
pub(crate) const NOW: &str = "(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)";

/// The one partition of this store.
pub(crate) const PARTITION: u16 = 0;

/// The columns that [`Pending`] reads, in its order.
pub(crate) const PENDING_COLUMNS: &str = "o.sequence, o.available_at, o.aggregate_type, o.aggregate_id, o.id, \
     o.event_type, o.version, o.payload, o.content_type, o.headers, o.topic, o.created_at, o.attempts";

/// A row of [`PENDING_COLUMNS`], decoded only as far as it is asked: a scan passes many rows by.
pub(crate) struct Pending<'a>(pub(crate) &'a rusqlite::Row<'a>);

impl Pending<'_> {
    pub(crate) fn sequence(&self) -> rusqlite::Result<Sequence> {
        self.0.get(0)
    }

    /// Whether its time has come. A time that is not a number never would: such a row is due at once and
    /// undecodable.
    pub(crate) fn due(&self, now: i64) -> rusqlite::Result<bool> {
        Ok(match self.0.get_ref(1)? {
            ValueRef::Integer(at) => at <= now,
            _ => true,
        })
    }

    /// The aggregate, and whether its names are valid. Those that are not equal no key that a hold could
    /// have, so such a row is an aggregate of its own.
    pub(crate) fn key(&self) -> rusqlite::Result<(AggregateKey, bool)> {
        let (aggregate_type, aggregate_id) = (self.0.get_ref(2)?, self.0.get_ref(3)?);
        let valid = text(aggregate_type).is_ok() && text(aggregate_id).is_ok();
        Ok((AggregateKey::new(&lossy(aggregate_type), &lossy(aggregate_id)), valid))
    }

    /// The whole row, whose key has been read already.
    pub(crate) fn row(&self, key: AggregateKey, now: i64) -> rusqlite::Result<Row> {
        let created_at = self.0.get_ref(11)?;
        Ok(Row::new(self.sequence()?, PARTITION, key, self.content()?)
            .with_attempts(self.attempts()?)
            .with_age(match created_at {
                ValueRef::Integer(at) => micros(now.saturating_sub(at)),
                _ => Duration::ZERO,
            }))
    }

    fn attempts(&self) -> rusqlite::Result<u32> {
        Ok(match self.0.get_ref(12)? {
            ValueRef::Integer(attempts) => u32::try_from(attempts.max(0)).unwrap_or(u32::MAX),
            _ => 0,
        })
    }

    fn content(&self) -> rusqlite::Result<Result<StoredEvent, String>> {
        let column = |index| self.0.get_ref(index);
        let (available_at, aggregate_type, aggregate_id) = (column(1)?, column(2)?, column(3)?);
        let (id, event_type, version, payload) = (column(4)?, column(5)?, column(6)?, column(7)?);
        let (content_type, headers, topic, created_at) = (column(8)?, column(9)?, column(10)?, column(11)?);
        // A closure, so that the first thing that is wrong with the row ends the reading of it.
        let decode = || {
            name("aggregate_type", aggregate_type)?;
            name("aggregate_id", aggregate_id)?;
            if !matches!(available_at, ValueRef::Null) {
                time("available_at", available_at)?;
            }
            Ok(StoredEvent::new(
                uuid(id)?,
                name("event_type", event_type)?.to_owned(),
                Bytes::new(),
                time("created_at", created_at)?,
            )
            .with_payload(payload_of(payload)?)
            .with_version(version_of(version)?)
            .with_content_type(optional_name("content_type", content_type)?)
            .with_headers(headers_of(headers)?)
            .with_topic(optional_name("topic", topic)?))
        };
        Ok(decode())
    }
}

/// The columns that [`record`] reads, in its order: all of an event's.
pub(crate) fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<EventRecord> {
    let optional_text = |index| -> rusqlite::Result<Option<String>> {
        Ok(match row.get_ref(index)? {
            ValueRef::Null => None,
            value => Some(lossy(value)),
        })
    };
    let optional_time = |index| Ok::<_, rusqlite::Error>(time("", row.get_ref(index)?).ok());
    Ok(EventRecord::new(
        row.get(0)?,
        PARTITION,
        AggregateKey::new(&lossy(row.get_ref(2)?), &lossy(row.get_ref(3)?)),
        row.get_ref(12)?.as_i64().ok().and_then(status_of).unwrap_or(Status::Failed),
        optional_time(10)?.unwrap_or_default(),
    )
    .with_id(uuid(row.get_ref(1)?).ok())
    .with_event_type(lossy(row.get_ref(4)?))
    .with_version(version_of(row.get_ref(5)?).unwrap_or(1))
    .with_payload(payload_of(row.get_ref(6)?).unwrap_or_default())
    .with_content_type(optional_text(7)?)
    .with_headers(row.get_ref(8)?.as_bytes().map(readable_headers).unwrap_or_default())
    .with_topic(optional_text(9)?)
    .with_available_at(optional_time(11)?)
    .with_attempts(row.get_ref(13)?.as_i64().map_or(0, |n| u32::try_from(n.max(0)).unwrap_or(u32::MAX)))
    .with_last_error(optional_text(14)?)
    .with_cause(optional_text(15)?.as_deref().and_then(FailureCause::parse))
    .with_sent_at(optional_time(16)?)
    .with_failed_at(optional_time(17)?))
}

/// Microseconds of the database's clock as a duration; negative ones are zero.
pub(crate) fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A duration in microseconds, as far as they go.
pub(crate) fn to_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn status_of(code: i64) -> Option<Status> {
    i16::try_from(code).ok().and_then(Status::from_code)
}

/// What can be read of a name that is not one, for people.
pub(crate) fn lossy(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn text(value: ValueRef<'_>) -> Result<&str, String> {
    match value {
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}")),
        other => Err(format!("is of type {}, not text", other.data_type())),
    }
}

fn name<'a>(field: &str, value: ValueRef<'a>) -> Result<&'a str, String> {
    let text = text(value).map_err(|problem| format!("{field} {problem}"))?;
    if text.is_empty() {
        return Err(format!("{field} is empty"));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("{field} has {} bytes, more than the limit of {NAME_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{field} {text:?} holds a control character"));
    }
    Ok(text)
}

fn optional_name(field: &str, value: ValueRef<'_>) -> Result<Option<String>, String> {
    if matches!(value, ValueRef::Null) {
        Ok(None)
    } else {
        name(field, value).map(|text| Some(text.to_owned()))
    }
}

fn uuid(value: ValueRef<'_>) -> Result<Uuid, String> {
    match value {
        ValueRef::Text(bytes) => Uuid::try_parse_ascii(bytes)
            .map_err(|error| format!("id {:?} is not a UUID: {error}", String::from_utf8_lossy(bytes))),
        ValueRef::Blob(bytes) => {
            Uuid::from_slice(bytes).map_err(|error| format!("id is not a UUID: {error}"))
        }
        other => {
            Err(format!("id is of type {}, not a UUID as text or as a blob of 16 bytes", other.data_type()))
        }
    }
}

fn version_of(value: ValueRef<'_>) -> Result<i32, String> {
    match value {
        ValueRef::Integer(version) => i32::try_from(version)
            .ok()
            .filter(|version| *version >= 1)
            .ok_or_else(|| format!("version is {version}, not from 1 to {}", i32::MAX)),
        other => Err(format!("version is of type {}, not an integer", other.data_type())),
    }
}

/// The payload; null is a tombstone.
fn payload_of(value: ValueRef<'_>) -> Result<Option<Bytes>, String> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(Some(Bytes::copy_from_slice(bytes))),
        ValueRef::Null => Ok(None),
        other => Err(format!("payload is of type {}, not a blob or a text", other.data_type())),
    }
}

fn headers_of(value: ValueRef<'_>) -> Result<BTreeMap<String, String>, String> {
    let bytes = match value {
        ValueRef::Null => return Ok(BTreeMap::new()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        other => return Err(format!("headers are of type {}, not a JSON object as text", other.data_type())),
    };
    decode_headers(bytes)
}

fn time(field: &str, value: ValueRef<'_>) -> Result<DateTime<Utc>, String> {
    match value {
        ValueRef::Integer(micros) => DateTime::from_timestamp_micros(micros)
            .ok_or_else(|| format!("{field} is {micros}, which is not a time in microseconds since 1970")),
        other => Err(format!(
            "{field} is of type {}, not an integer of microseconds since 1970",
            other.data_type()
        )),
    }
}
