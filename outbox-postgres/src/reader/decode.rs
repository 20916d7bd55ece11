//! From a row of the table to a [`Row`]: whatever stands in it, and never an error, so that an undecodable
//! event fails alone.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use outbox_core::{
    AggregateKey, store,
    store::{Row, Sequence, StoredEvent},
};
use sqlx::{Row as _, ValueRef as _, postgres::PgRow};
use uuid::Uuid;

use crate::codec::{Micros, partition_of};

/// Payloads up to 8 KiB are read with their rows; larger ones by a second statement, and only as many as
/// fit. So a batch of rows that turn out large costs little memory, and little traffic that is thrown away.
/// Their size is null for a tombstone, and [`TWO_PAYLOADS`] for a row that has both kinds.
///
/// These are the columns of a read, in the order in which [`decode`] takes them.
pub(super) const COLUMNS: &str = "o.sequence, o.partition, o.aggregate_type, o.aggregate_id, o.attempts, o.id, \
     o.event_type, o.version, CASE WHEN octet_length(o.payload) <= 8192 THEN o.payload END AS payload, \
     CASE WHEN octet_length(o.payload_binary) <= 8192 THEN o.payload_binary END AS payload_binary, \
     CASE WHEN o.payload_binary IS NULL THEN octet_length(o.payload) \
          WHEN o.payload IS NULL THEN octet_length(o.payload_binary) ELSE -1 END AS payload_bytes, \
     o.content_type, o.headers, o.topic, o.created_at";

/// Placeholders for the same columns, for a result row that carries no event.
pub(super) const NO_COLUMNS: &str = "0::bigint, 0::smallint, NULL::text, NULL::text, NULL::integer, NULL::uuid, \
     NULL::text, NULL::integer, NULL::text, NULL::bytea, NULL::integer, NULL::text, NULL::jsonb, NULL::text, \
     NULL::timestamptz";

/// How many columns that are.
pub(super) const COLUMN_COUNT: usize = 15;

/// The size of the payload of a row that has both kinds of it.
const TWO_PAYLOADS: i32 = -1;

/// A row that was read, perhaps still without its payload.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) row: Row,
    /// The size of a payload that is still to be read.
    pub(super) missing_bytes: usize,
}

impl Read {
    /// The memory of the row with its payload.
    pub(super) fn bytes(&self) -> usize {
        self.row.bytes() + self.missing_bytes
    }
}

/// The row, whatever stands in it. `now` is the server's.
///
/// Numbers are taken from the bytes on the wire, which are big-endian: asking sqlx for a value compares its
/// type each time.
pub(super) fn decode(row: &PgRow, now: Micros) -> Result<Read, sqlx::Error> {
    let aggregate_type = String::from_utf8_lossy(bytes(row, 2)?.unwrap_or_default());
    let aggregate_id = String::from_utf8_lossy(bytes(row, 3)?.unwrap_or_default());
    let created_at = Micros(i64::from_be_bytes(number(row, 14)?));
    let (payload, missing_bytes) = inline_payload(row)?;
    let content = match name("aggregate_type", &aggregate_type).and(name("aggregate_id", &aggregate_id)) {
        Ok(()) => event(row, payload, created_at)?,
        Err(problem) => Err(problem),
    };
    let missing_bytes = if content.is_ok() { missing_bytes } else { 0 };
    Ok(Read {
        row: Row::new(
            Sequence::from_be_bytes(number(row, 0)?),
            partition_of(i16::from_be_bytes(number(row, 1)?)),
            AggregateKey::new(&aggregate_type, &aggregate_id),
            content,
        )
        .with_attempts(u32::try_from(i32::from_be_bytes(number(row, 4)?)).unwrap_or_default())
        .with_age(now.since(created_at)),
        missing_bytes,
    })
}

/// A payload as it is on the wire, `None` for a tombstone; or what is wrong with it.
type Payload<'r> = Result<Option<&'r [u8]>, String>;

/// The payload that came with the row, and the size of one that is still to be read.
fn inline_payload(row: &PgRow) -> Result<(Payload<'_>, usize), sqlx::Error> {
    let size = i32::from_be_bytes(number(row, 10)?);
    if size == TWO_PAYLOADS {
        return Ok((Err(BOTH.to_owned()), 0));
    }
    let payload = match bytes(row, 8)? {
        Some(text) => Some(text),
        None => bytes(row, 9)?,
    };
    // The size of a tombstone is null, so that none of it is missing.
    let missing = if payload.is_none() { size } else { 0 };
    Ok((Ok(payload), usize::try_from(missing).unwrap_or_default()))
}

/// A payload that did not come with its row, and of which row it is. A text comes as its bytes.
pub(super) fn decode_payload(row: &PgRow) -> Result<(Sequence, Result<Option<Bytes>, String>), sqlx::Error> {
    let payload = match (bytes(row, 1)?, bytes(row, 2)?) {
        (Some(_), Some(_)) => Err(BOTH.to_owned()),
        (text, binary) => Ok(text.or(binary).map(Bytes::copy_from_slice)),
    };
    Ok((Sequence::from_be_bytes(number(row, 0)?), payload))
}

const BOTH: &str = "payload and payload_binary are both set: an event has one of them, or neither";

fn bytes(row: &PgRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(None);
    }
    value.as_bytes().map(Some).map_err(sqlx::Error::Decode)
}

/// The bytes of a value of fixed length; zeros for NULL.
fn number<const LENGTH: usize>(row: &PgRow, index: usize) -> Result<[u8; LENGTH], sqlx::Error> {
    let bytes = bytes(row, index)?.map_or(Ok([0; LENGTH]), <[u8; LENGTH]>::try_from);
    bytes.map_err(|error| sqlx::Error::Decode(error.into()))
}

/// What is wrong with a name of the aggregate, which was replaced, and so is owned, where it is not UTF-8.
#[allow(clippy::ptr_arg, reason = "whether the text is borrowed is what is asked")]
fn name(column: &str, text: &Cow<'_, str>) -> Result<(), String> {
    match text {
        Cow::Owned(_) => Err(format!("{column} is not UTF-8")),
        Cow::Borrowed("") => Err(format!("{column} is empty")),
        Cow::Borrowed(_) => Ok(()),
    }
}

fn event(
    row: &PgRow,
    payload: Payload<'_>,
    created_at: Micros,
) -> Result<Result<StoredEvent, String>, sqlx::Error> {
    let id = Uuid::from_bytes(number(row, 5)?);
    let version = i32::from_be_bytes(number(row, 7)?);
    let (event_type, content_type) = (bytes(row, 6)?, bytes(row, 11)?);
    let (headers, topic) = (bytes(row, 12)?, bytes(row, 13)?);
    let text = |column: &str, text: Option<&[u8]>| -> Result<Option<String>, String> {
        let text = text.map(|text| std::str::from_utf8(text).map(str::to_owned)).transpose();
        text.map_err(|_| format!("{column} is not UTF-8"))
    };
    let decode = || {
        let payload = payload?;
        let event_type = text("event_type", event_type)?.filter(|name| !name.is_empty());
        if version < 1 {
            return Err(format!("version is {version}: the version of a payload schema starts at 1"));
        }
        Ok(StoredEvent::new(
            id,
            event_type.ok_or("event_type is empty")?,
            Bytes::new(),
            created_at.utc().ok_or("created_at is outside the range of a time")?,
        )
        .with_payload(payload.map(Bytes::copy_from_slice))
        .with_version(version)
        .with_content_type(text("content_type", content_type)?)
        .with_headers(headers.map_or_else(|| Ok(BTreeMap::new()), decode_headers)?)
        .with_topic(text("topic", topic)?))
    };
    Ok(decode())
}

/// `jsonb` on the wire is a version, 1, and the text.
fn decode_headers(jsonb: &[u8]) -> Result<BTreeMap<String, String>, String> {
    match jsonb {
        [1, json @ ..] => store::decode_headers(json),
        _ => Err("headers are of an unknown version of jsonb".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_none_has_as_many_columns() {
        assert_eq!(NO_COLUMNS.split(", ").count(), COLUMN_COUNT);
    }

    #[test]
    fn headers_of_an_unknown_version_of_jsonb_are_named() {
        assert_eq!(decode_headers(b"\x01{\"a\":\"b\"}").unwrap().len(), 1);
        assert!(decode_headers(b"\x02{}").unwrap_err().contains("unknown version of jsonb"));
    }
}
