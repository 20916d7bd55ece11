//! From a document to an event, or to the reason why it cannot be decoded.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use md5::{Digest as _, Md5};
use mongodb::bson::{
    Binary, Bson, DateTime as BsonDateTime, Document, RawBsonRef, RawDocument, doc, oid::ObjectId,
    spec::BinarySubtype,
};
use outbox_core::{
    AggregateKey,
    store::{
        EventRecord, FailureCause, NAME_BYTES_MAX, PARTITIONS, Partition, Row, Sequence, Status, StoredEvent,
        check_headers,
    },
};
use uuid::Uuid;

use crate::codec::sequence::{created_at, sequence_of};

/// What an event is filtered by that waits to be sent: a document without a status is one.
pub(crate) fn pending() -> Document {
    doc! { "status": { "$in": [0, Bson::Null] } }
}

/// The partition of an aggregate: the first byte of the MD5 of `aggregate_type/aggregate_id` modulo 64, as in
/// the other stores, since every language has MD5. Nothing here is a secret.
pub(crate) fn partition_of(key: &AggregateKey) -> Partition {
    let mut hash = Md5::new();
    hash.update(key.aggregate_type());
    hash.update("/");
    hash.update(key.aggregate_id());
    let first = hash.finalize().first().copied().unwrap_or_default();
    Partition::from(first) % PARTITIONS
}

/// How an event's id is stored.
pub(crate) fn id_of(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

/// All ways in which a writer may have stored the id.
pub(crate) fn spellings_of(id: Uuid) -> Vec<Bson> {
    let bytes = id.as_bytes();
    let mut spellings = vec![id_of(id), Bson::String(id.hyphenated().to_string())];
    if bytes[6..10] == OBJECT_ID_MARK {
        let mut object = [0; 12];
        object[..6].copy_from_slice(&bytes[..6]);
        object[6..].copy_from_slice(&bytes[10..]);
        spellings.push(Bson::ObjectId(ObjectId::from_bytes(object)));
    }
    spellings
}

/// What stands in the middle of a UUID that is made of an ObjectId: the version 8 and the variant of RFC
/// 9562, section 5.8, and zeros.
const OBJECT_ID_MARK: [u8; 4] = [0x80, 0, 0x80, 0];

/// The id of an event whose `_id` the driver has made up.
fn uuid_of(object: ObjectId) -> Uuid {
    let object = object.bytes();
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&object[..6]);
    bytes[6..10].copy_from_slice(&OBJECT_ID_MARK);
    bytes[10..].copy_from_slice(&object[6..]);
    Uuid::from_bytes(bytes)
}

/// The fields of an event as they stand in its document. Decoded only as far as they are asked for.
#[derive(Default)]
pub(crate) struct Stored<'a> {
    id: Option<RawBsonRef<'a>>,
    sequence: Option<Sequence>,
    partition: Option<RawBsonRef<'a>>,
    aggregate_type: Option<RawBsonRef<'a>>,
    aggregate_id: Option<RawBsonRef<'a>>,
    event_type: Option<RawBsonRef<'a>>,
    version: Option<RawBsonRef<'a>>,
    payload: Option<RawBsonRef<'a>>,
    content_type: Option<RawBsonRef<'a>>,
    headers: Option<RawBsonRef<'a>>,
    topic: Option<RawBsonRef<'a>>,
    created_at: Option<RawBsonRef<'a>>,
    available_at: Option<RawBsonRef<'a>>,
    status: Option<RawBsonRef<'a>>,
    attempts: Option<RawBsonRef<'a>>,
    last_error: Option<RawBsonRef<'a>>,
    cause: Option<RawBsonRef<'a>>,
    sent_at: Option<RawBsonRef<'a>>,
    failed_at: Option<RawBsonRef<'a>>,
}

impl<'a> Stored<'a> {
    /// A field that cannot be read, such as a text that is not UTF-8, counts as missing.
    pub(crate) fn of(document: &'a RawDocument) -> Self {
        let mut stored = Self::default();
        for (name, value) in document.into_iter().flatten() {
            // A null is what is not there.
            if matches!(value, RawBsonRef::Null | RawBsonRef::Undefined) {
                continue;
            }
            let field = match name.as_str() {
                "_id" => &mut stored.id,
                "sequence" => {
                    stored.sequence =
                        if let RawBsonRef::Timestamp(at) = value { sequence_of(at) } else { None };
                    continue;
                }
                "partition" => &mut stored.partition,
                "aggregate_type" => &mut stored.aggregate_type,
                "aggregate_id" => &mut stored.aggregate_id,
                "event_type" => &mut stored.event_type,
                "version" => &mut stored.version,
                "payload" => &mut stored.payload,
                "content_type" => &mut stored.content_type,
                "headers" => &mut stored.headers,
                "topic" => &mut stored.topic,
                "created_at" => &mut stored.created_at,
                "available_at" => &mut stored.available_at,
                "status" => &mut stored.status,
                "attempts" => &mut stored.attempts,
                "last_error" => &mut stored.last_error,
                "cause" => &mut stored.cause,
                "sent_at" => &mut stored.sent_at,
                "failed_at" => &mut stored.failed_at,
                _ => continue,
            };
            *field = Some(value);
        }
        stored
    }

    /// Its position; `None` where the server has not given it one.
    pub(crate) fn sequence(&self) -> Option<Sequence> {
        self.sequence
    }

    /// Whether its time has come. A value that is not a time never would: such an event is due at once, and
    /// undecodable.
    pub(crate) fn is_due(&self, now: BsonDateTime) -> bool {
        !matches!(self.available_at, Some(RawBsonRef::DateTime(at)) if at > now)
    }

    /// When it is scheduled for, where that is a time.
    pub(crate) fn available_at(&self) -> Option<BsonDateTime> {
        if let Some(RawBsonRef::DateTime(at)) = self.available_at { Some(at) } else { None }
    }

    /// The aggregate, and whether its names are valid. Those that are not equal no key that a hold could
    /// have, so such an event is an aggregate of its own.
    pub(crate) fn key(&self) -> (AggregateKey, bool) {
        let valid = text(self.aggregate_type).is_ok() && text(self.aggregate_id).is_ok();
        (AggregateKey::new(&lossy(self.aggregate_type), &lossy(self.aggregate_id)), valid)
    }

    /// The partition by which it is read and settled: that of the document, or, where it has none, of its
    /// aggregate.
    pub(crate) fn partition(&self, key: &AggregateKey) -> Partition {
        let given = self.partition.and_then(whole).and_then(|number| Partition::try_from(number).ok());
        given.filter(|partition| *partition < PARTITIONS).unwrap_or_else(|| partition_of(key))
    }

    pub(crate) fn row(&self, sequence: Sequence, key: AggregateKey, now: BsonDateTime) -> Row {
        let age = utc(now) - self.created_at(sequence);
        let (partition, content) = (self.partition(&key), self.content(sequence, &key));
        Row::new(sequence, partition, key, content)
            .with_attempts(self.attempts())
            .with_age(age.to_std().unwrap_or(Duration::ZERO))
    }

    /// All that is known of it, as far as it can be read.
    pub(crate) fn record(&self, sequence: Sequence) -> EventRecord {
        let (key, _) = self.key();
        let optional = |value: Option<RawBsonRef<'_>>| value.map(|_| lossy(value));
        EventRecord::new(sequence, self.partition(&key), key, self.status(), self.created_at(sequence))
            .with_id(uuid(self.id).ok())
            .with_event_type(lossy(self.event_type))
            .with_version(version(self.version).unwrap_or_default())
            .with_payload(payload(self.payload).unwrap_or_default())
            .with_content_type(optional(self.content_type))
            .with_headers(readable_headers(self.headers))
            .with_topic(optional(self.topic))
            .with_available_at(self.available_at().map(utc))
            .with_attempts(self.attempts())
            .with_last_error(optional(self.last_error))
            .with_cause(optional(self.cause).as_deref().and_then(FailureCause::parse))
            .with_sent_at(time(self.sent_at))
            .with_failed_at(time(self.failed_at))
    }

    /// When it was written.
    pub(crate) fn created_at(&self, sequence: Sequence) -> DateTime<Utc> {
        created_at(sequence, time(self.created_at))
    }

    fn status(&self) -> Status {
        let Some(status) = self.status else { return Status::Pending };
        // An unknown status is neither pending nor sent.
        let code = whole(status).and_then(|code| i16::try_from(code).ok());
        code.and_then(Status::from_code).unwrap_or(Status::Failed)
    }

    fn attempts(&self) -> u32 {
        let attempts = self.attempts.and_then(whole).unwrap_or_default();
        u32::try_from(attempts.max(0)).unwrap_or(u32::MAX)
    }

    fn content(&self, sequence: Sequence, key: &AggregateKey) -> Result<StoredEvent, String> {
        name("aggregate_type", self.aggregate_type)?;
        name("aggregate_id", self.aggregate_id)?;
        if let Some(given) = self.partition {
            let right = partition_of(key);
            if whole(given) != Some(i64::from(right)) {
                return Err(format!(
                    "partition is {}, but that of its aggregate is {right}",
                    lossy(self.partition)
                ));
            }
        }
        if let Some(value) = self.available_at
            && self.available_at().is_none()
        {
            return Err(format!("available_at is of type {:?}, not a date", value.element_type()));
        }
        Ok(StoredEvent::new(
            uuid(self.id)?,
            name("event_type", self.event_type)?.to_owned(),
            Bytes::new(),
            self.created_at(sequence),
        )
        .with_payload(payload(self.payload)?)
        .with_version(version(self.version)?)
        .with_content_type(optional_name("content_type", self.content_type)?)
        .with_headers(headers(self.headers)?)
        .with_topic(optional_name("topic", self.topic)?))
    }
}

/// A time as the rest of the program has it; what is beyond its calendar is the end of it.
pub(crate) fn utc(at: BsonDateTime) -> DateTime<Utc> {
    let end = if at.timestamp_millis() < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap_or(end)
}

/// A whole number, in whatever way a driver writes one.
pub(crate) fn whole(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        // The shell and some drivers know no other numbers.
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(number as i64),
        _ => None,
    }
}

/// What can be read of a name that is not one, for people.
fn lossy(value: Option<RawBsonRef<'_>>) -> String {
    match value {
        None => String::new(),
        Some(RawBsonRef::String(text)) => text.to_owned(),
        Some(other) => Bson::try_from(other).map(|value| value.to_string()).unwrap_or_default(),
    }
}

fn text(value: Option<RawBsonRef<'_>>) -> Result<&str, String> {
    match value {
        Some(RawBsonRef::String(text)) => Ok(text),
        Some(other) => Err(format!("is of type {:?}, not a string", other.element_type())),
        None => Err("is missing, or no UTF-8".to_owned()),
    }
}

fn name<'a>(field: &str, value: Option<RawBsonRef<'a>>) -> Result<&'a str, String> {
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

fn optional_name(field: &str, value: Option<RawBsonRef<'_>>) -> Result<Option<String>, String> {
    value.map(|_| name(field, value).map(str::to_owned)).transpose()
}

fn uuid(value: Option<RawBsonRef<'_>>) -> Result<Uuid, String> {
    match value {
        Some(RawBsonRef::Binary(binary)) => {
            Uuid::from_slice(binary.bytes).map_err(|error| format!("_id is not a UUID: {error}"))
        }
        Some(RawBsonRef::String(text)) => {
            Uuid::try_parse(text).map_err(|error| format!("_id {text:?} is not a UUID: {error}"))
        }
        Some(RawBsonRef::ObjectId(object)) => Ok(uuid_of(object)),
        Some(other) => Err(format!("_id is of type {:?}, not a UUID or an ObjectId", other.element_type())),
        None => Err("_id is missing".to_owned()),
    }
}

fn version(value: Option<RawBsonRef<'_>>) -> Result<i32, String> {
    let Some(value) = value else { return Ok(1) };
    whole(value).and_then(|version| i32::try_from(version).ok()).filter(|version| *version >= 1).ok_or_else(
        || format!("version is {}, not a whole number from 1 to {}", lossy(Some(value)), i32::MAX),
    )
}

/// The payload; one that is missing or null is a tombstone.
fn payload(value: Option<RawBsonRef<'_>>) -> Result<Option<Bytes>, String> {
    match value {
        Some(RawBsonRef::Binary(binary)) => Ok(Some(Bytes::copy_from_slice(binary.bytes))),
        Some(RawBsonRef::String(text)) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        Some(RawBsonRef::Null) | None => Ok(None),
        Some(other) => Err(format!("payload is of type {:?}, not binary or a string", other.element_type())),
    }
}

fn headers(value: Option<RawBsonRef<'_>>) -> Result<BTreeMap<String, String>, String> {
    let document = match value {
        None => return Ok(BTreeMap::new()),
        Some(RawBsonRef::Document(document)) => document,
        Some(other) => return Err(format!("headers are of type {:?}, not a document", other.element_type())),
    };
    let mut headers = BTreeMap::new();
    for header in document {
        let (name, value) = header.map_err(|error| format!("headers cannot be read: {error}"))?;
        let name = name.as_str();
        let RawBsonRef::String(value) = value else {
            return Err(format!("header {name:?} is of type {:?}, not a string", value.element_type()));
        };
        headers.insert(name.to_owned(), value.to_owned());
    }
    check_headers(&headers).map_err(|error| error.to_string())?;
    Ok(headers)
}

/// The headers that are texts.
fn readable_headers(value: Option<RawBsonRef<'_>>) -> BTreeMap<String, String> {
    let Some(RawBsonRef::Document(document)) = value else { return BTreeMap::new() };
    let texts = document.into_iter().flatten().filter_map(|(name, value)| match value {
        RawBsonRef::String(value) => Some((name.as_str().to_owned(), value.to_owned())),
        _ => None,
    });
    texts.collect()
}

fn time(value: Option<RawBsonRef<'_>>) -> Option<DateTime<Utc>> {
    if let Some(RawBsonRef::DateTime(at)) = value { Some(utc(at)) } else { None }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, Timestamp};

    use super::*;

    fn content(document: &Document) -> Result<StoredEvent, String> {
        let raw = RawDocumentBuf::try_from(document).unwrap();
        let stored = Stored::of(&raw);
        stored.row(stored.sequence().unwrap(), stored.key().0, BsonDateTime::now()).content
    }

    fn plain() -> Document {
        doc! {
            "_id": ObjectId::from_bytes([7; 12]), "sequence": Timestamp { time: 9, increment: 1 },
            "aggregate_type": "order", "aggregate_id": "4711", "event_type": "order.placed", "payload": "{}",
        }
    }

    #[test]
    fn a_document_with_the_least_is_an_event() {
        let event = content(&plain()).unwrap();
        assert_eq!((event.version, event.headers.len(), event.topic, event.content_type), (1, 0, None, None));
        assert_eq!(event.created_at.timestamp(), 9);
        assert_eq!(event.id.to_string(), "07070707-0707-8000-8000-070707070707");
        let object = Bson::ObjectId(ObjectId::from_bytes([7; 12]));
        assert!(spellings_of(event.id).contains(&object));
        assert!(!spellings_of(Uuid::now_v7()).iter().any(|id| matches!(id, Bson::ObjectId(_))));
    }

    #[test]
    fn numbers_are_taken_as_drivers_write_them() {
        let key = AggregateKey::new("order", "4711");
        for number in [Bson::Int32(2), Bson::Int64(2), Bson::Double(2.0)] {
            let mut document = plain();
            document.insert("version", number);
            document.insert("partition", f64::from(partition_of(&key)));
            assert_eq!(content(&document).unwrap().version, 2);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = u32::from(partition_of(&AggregateKey::new("order", "4711")) + 1) % 64;
        for (field, value, word) in [
            ("aggregate_id", Bson::Int32(4711), "aggregate_id is of type"),
            ("event_type", Bson::Null, "event_type is missing"),
            ("event_type", "a\nb".into(), "control character"),
            ("version", Bson::Double(1.5), "version is 1.5"),
            ("version", Bson::Int32(0), "version is 0"),
            ("payload", doc! { "total": 12 }.into(), "payload is of type"),
            ("headers", vec!["a"].into(), "headers are of type"),
            ("headers", doc! { "a": 1 }.into(), "header \"a\" is of type"),
            ("headers", doc! { "a b": "c" }.into(), "HTTP field name"),
            ("_id", Bson::Int32(5), "_id is of type"),
            ("_id", "4711".into(), "is not a UUID"),
            ("available_at", "tomorrow".into(), "available_at is of type"),
            ("partition", Bson::Int64(wrong.into()), "but that of its aggregate"),
        ] {
            let mut document = plain();
            document.insert(field, value);
            let error = content(&document).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_partition_is_that_of_the_other_stores() {
        // By `printf 'order/4711' | md5sum`: 5c…; `printf 'order/ä/ö' | md5sum`: see the test of PostgreSQL.
        let first = |text: &str| u16::from(Md5::digest(text)[0] & 63);
        assert_eq!(partition_of(&AggregateKey::new("order", "4711")), first("order/4711"));
        assert_eq!(partition_of(&AggregateKey::new("order", "ä/ö")), first("order/ä/ö"));
    }
}
