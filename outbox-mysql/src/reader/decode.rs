//! From a row of the table to a [`Row`]: whatever stands in it, and never an error, so that an undecodable
//! event fails alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::DateTime;
use outbox_core::{
    AggregateKey,
    store::{Partition, Row, Sequence, StoredEvent, decode_headers},
};
use sqlx::{Row as _, mysql::MySqlRow};
use uuid::Uuid;

use crate::codec::{duration, micros_of};

/// The columns of a read, in the order in which [`decode`] takes them. Times as numbers, which can be read
/// whatever stands there, and the age by the server's clock.
pub(super) fn columns() -> String {
    format!(
        "o.sequence, o.partition, o.aggregate_type, o.aggregate_id, o.attempts, o.id, o.event_type, o.version, \
         o.payload, o.content_type, o.headers, o.topic, {}, TIMESTAMPDIFF(MICROSECOND, o.created_at, UTC_TIMESTAMP(6)), \
         o.payload_binary",
        micros_of("o.created_at")
    )
}

/// The row, whatever stands in it.
pub(super) fn decode(row: &MySqlRow) -> Result<Row, sqlx::Error> {
    let sequence: Sequence = row.try_get(0)?;
    let part: u8 = row.try_get(1)?;
    let text = |index| Ok::<_, sqlx::Error>(String::from_utf8_lossy(bytes(row, index)?.unwrap_or_default()));
    let attempts: i32 = row.try_get(4)?;
    let age: Option<i64> = row.try_get(13)?;
    Ok(Row::new(sequence, Partition::from(part), AggregateKey::new(&text(2)?, &text(3)?), event(row)?)
        .with_attempts(u32::try_from(attempts).unwrap_or_default())
        .with_age(duration(age.unwrap_or_default())))
}

/// Unchecked, since what a column is called (JSON, LONGTEXT, VARBINARY) differs between the servers.
fn bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked(index)
}

fn event(row: &MySqlRow) -> Result<Result<StoredEvent, String>, sqlx::Error> {
    let id: Uuid = row.try_get(5)?;
    let version: i32 = row.try_get(7)?;
    let created_at: Option<i64> = row.try_get(12)?;
    let (aggregate_type, aggregate_id) = (bytes(row, 2)?, bytes(row, 3)?);
    let (event_type, payload, content_type) = (bytes(row, 6)?, bytes(row, 8)?, bytes(row, 9)?);
    let (headers, topic, payload_binary) = (bytes(row, 10)?, bytes(row, 11)?, bytes(row, 14)?);
    let sequence: Sequence = row.try_get(0)?;
    let text = |column: &str, text: Option<&[u8]>| -> Result<Option<String>, String> {
        let text = text.map(|text| std::str::from_utf8(text).map(str::to_owned)).transpose();
        text.map_err(|_| format!("{column} is not UTF-8"))
    };
    let name = |column: &str, name: Option<&[u8]>| {
        text(column, name)?.filter(|name| !name.is_empty()).ok_or_else(|| format!("{column} is empty"))
    };
    let decode = || {
        // The table cannot refuse it: no check may name a column that counts.
        if sequence < 1 {
            return Err(format!("sequence is {sequence}: leave it to its default, which starts at 1"));
        }
        if payload.is_some() && payload_binary.is_some() {
            return Err("payload and payload_binary are both set: write one of them".to_owned());
        }
        name("aggregate_type", aggregate_type)?;
        name("aggregate_id", aggregate_id)?;
        let event_type = name("event_type", event_type)?;
        if version < 1 {
            return Err(format!("version is {version}: the version of a payload schema starts at 1"));
        }
        Ok(StoredEvent::new(
            id,
            event_type,
            Bytes::new(),
            created_at
                .and_then(DateTime::from_timestamp_micros)
                .ok_or("created_at is not a time: leave it to its default")?,
        )
        .with_payload(payload.or(payload_binary).map(Bytes::copy_from_slice))
        .with_version(version)
        .with_content_type(text("content_type", content_type)?)
        .with_headers(headers.map_or_else(|| Ok(BTreeMap::new()), decode_headers)?)
        .with_topic(text("topic", topic)?))
    };
    Ok(decode())
}
