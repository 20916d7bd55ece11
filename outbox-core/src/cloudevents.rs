//! A [`Message`] as a CloudEvent 1.0: attributes for the binary mode of a broker's binding, and the JSON
//! event format.
//!
//! | attribute | value |
//! |---|---|
//! | `specversion` | `1.0` |
//! | `id` | the event's id |
//! | `source` | the relay's `source` |
//! | `type` | the event type |
//! | `time` | `created_at`, RFC 3339, UTC, microseconds |
//! | `subject` | the aggregate, `type/id` |
//! | `sequence` | the sequence, in 19 digits, because that extension asks for text which sorts as it counts |
//! | `attempt` | the attempt, from the second one on |
//! | `dataversion` | the version of the payload's schema, where it is not 1 |
//! | `tombstone` | `true`, where the event has no payload |
//! | `datacontenttype` | the content type; in binary mode a header or property of its own |
//!
//! No more, because headers are dear: nine cost 20 % of a whole relay's throughput, three nothing measurable.
//!
//! # Headers of the event
//! In binary mode they are headers of the message under their own names. The JSON format has no headers:
//! those whose name is an attribute name (lower-case letters and digits, such as `traceparent`, and none of
//! the above, `data`, `data_base64`, `dataschema` or `headers`) become extension attributes; the others are
//! kept together in the extension attribute `headers`, whose value is a *text* holding a JSON object, since
//! an attribute's value must not be an object itself.

use std::{collections::BTreeMap, fmt::Write};

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use serde::de::IgnoredAny;

use crate::{event::CONTENT_TYPE_DEFAULT, publisher::Message};

/// The attribute that marks an event without a payload.
pub const TOMBSTONE: &str = "tombstone";

/// Names that a header of an event must not take in the JSON format.
const RESERVED: [&str; 14] = [
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "subject",
    "sequence",
    "attempt",
    "dataversion",
    TOMBSTONE,
    "datacontenttype",
    "dataschema",
    "data",
    "headers",
];

/// The media type of the payload: what the writer named, else [`CONTENT_TYPE_DEFAULT`].
pub fn content_type(message: &Message) -> &str {
    message.event.content_type.as_deref().unwrap_or(CONTENT_TYPE_DEFAULT)
}

/// Calls `visit` with the name and the value of each attribute, `datacontenttype` excepted.
///
/// `scratch` is where values are put together; one that is used again and again saves an allocation per
/// message.
pub fn attributes(message: &Message, scratch: &mut String, mut visit: impl FnMut(&'static str, &str)) {
    let event = &message.event;
    visit("specversion", "1.0");
    visit("id", event.id.hyphenated().encode_lower(&mut [0; 36]));
    visit("source", &message.source);
    visit("type", &event.event_type);
    visit("time", written(scratch, |text| push_time(text, event.created_at)));
    let subject = [message.key.aggregate_type(), "/", message.key.aggregate_id()];
    visit("subject", written(scratch, |text| text.extend(subject)));
    let sequence = u64::try_from(message.sequence).unwrap_or_default();
    visit("sequence", written(scratch, |text| push_digits(text, sequence, 19)));
    if message.attempt > 1 {
        visit("attempt", written(scratch, |text| text.push_str(&message.attempt.to_string())));
    }
    if event.version != 1 {
        visit("dataversion", written(scratch, |text| text.push_str(&event.version.to_string())));
    }
    if event.payload.is_none() {
        visit(TOMBSTONE, "true");
    }
}

/// The message in the JSON event format, as one line without its line feed.
///
/// The payload is `data`, character for character, when the content type is JSON and the payload is too, with
/// line feeds between its tokens made spaces; else it is `data_base64`.
pub fn to_json(message: &Message) -> Vec<u8> {
    let mut json = String::with_capacity(512 + message.event.payload_len() * 4 / 3);
    json.push('{');
    attributes(message, &mut String::new(), |name, value| {
        push_name(&mut json, name);
        // Integers and a boolean in CloudEvents' type system, and JSON has those.
        if matches!(name, "attempt" | "dataversion" | TOMBSTONE) {
            json.push_str(value);
        } else {
            push_text(&mut json, value);
        }
    });
    push_name(&mut json, "datacontenttype");
    push_text(&mut json, content_type(message));
    push_headers(&mut json, &message.event.headers);
    match json_text(message) {
        _ if message.event.payload.is_none() => {}
        Some(text) => {
            push_name(&mut json, "data");
            // A line feed in JSON is always between tokens: inside a text it is written as an escape.
            json.extend(text.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
        }
        None => {
            push_name(&mut json, "data_base64");
            json.push('"');
            push_base64(&mut json, message.event.body());
            json.push('"');
        }
    }
    json.push('}');
    json.into_bytes()
}

fn written(scratch: &mut String, write: impl FnOnce(&mut String)) -> &str {
    scratch.clear();
    write(scratch);
    scratch
}

/// RFC 3339 with microseconds. chrono formats by a pattern that it reads anew each time, which took 2 % of a
/// whole relay; it is left to the years that RFC 3339 has no text for.
fn push_time(text: &mut String, time: DateTime<Utc>) {
    let year = match u32::try_from(time.year()) {
        Ok(year @ 0..=9999) => year,
        _ => return text.push_str(&time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()),
    };
    let micros = time.nanosecond() / 1_000 % 1_000_000;
    for (value, digits, end) in [
        (year, 4, '-'),
        (time.month(), 2, '-'),
        (time.day(), 2, 'T'),
        (time.hour(), 2, ':'),
        (time.minute(), 2, ':'),
        (time.second(), 2, '.'),
        (micros, 6, 'Z'),
    ] {
        push_digits(text, u64::from(value), digits);
        text.push(end);
    }
}

/// The last `digits` decimal digits, at most 19, with leading zeros.
fn push_digits(text: &mut String, mut value: u64, digits: usize) {
    let mut buffer = [b'0'; 19];
    let buffer = &mut buffer[..digits];
    for digit in buffer.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text.extend(buffer.iter().copied().map(char::from));
}

fn push_name(json: &mut String, name: &str) {
    if !json.ends_with('{') {
        json.push(',');
    }
    push_text(json, name);
    json.push(':');
}

fn push_text(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

fn push_headers(json: &mut String, headers: &BTreeMap<String, String>) {
    let is_attribute = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && !RESERVED.contains(&name)
    };
    let mut others = String::from("{");
    for (name, value) in headers {
        let target = if is_attribute(name) { &mut *json } else { &mut others };
        push_name(target, name);
        push_text(target, value);
    }
    if others.len() > 1 {
        others.push('}');
        push_name(json, "headers");
        push_text(json, &others);
    }
}

/// The payload as text, if it is JSON by its content type (the rule of the JSON format's section 3.1) and in
/// fact.
fn json_text(message: &Message) -> Option<&str> {
    if !is_json(content_type(message)) || check_json(message.event.body()).is_err() {
        return None;
    }
    std::str::from_utf8(message.event.body()).ok()
}

/// The content type is that of JSON: `application/json`, or any that ends in `+json`.
pub(crate) fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.split_once('/').is_some_and(|(_, subtype)| {
        let ends = |end: &str| {
            let at = subtype.len().checked_sub(end.len());
            at.and_then(|at| subtype.get(at..)).is_some_and(|text| text.eq_ignore_ascii_case(end))
        };
        subtype.eq_ignore_ascii_case("json") || ends("+json")
    })
}

/// Reads a payload as JSON, of any depth.
pub(crate) fn check_json(payload: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(payload).map(drop)
}

fn push_base64(json: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i)) as usize & 63];
            json.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::{AggregateKey, store::StoredEvent};

    fn message(payload: &[u8], content_type: Option<&str>, headers: &[(&str, &str)]) -> Message {
        Message {
            topic: Arc::from("orders"),
            key: AggregateKey::new("order", "47/11"),
            sequence: 42,
            attempt: 1,
            source: Arc::from("/shop"),
            event: StoredEvent {
                id: Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001),
                event_type: "order.placed".to_owned(),
                version: 1,
                payload: Some(payload.to_vec().into()),
                content_type: content_type.map(str::to_owned),
                headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
                topic: None,
                created_at: DateTime::from_timestamp_micros(1_790_000_000_000_001).unwrap(),
            },
        }
    }

    fn visited(message: &Message) -> Vec<(&'static str, String)> {
        let mut seen = Vec::new();
        attributes(message, &mut String::from("left over"), |name, value| {
            seen.push((name, value.to_owned()));
        });
        seen
    }

    fn parsed(message: &Message) -> Value {
        let line = to_json(message);
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'), "one line");
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn the_attributes_of_a_first_attempt_are_the_required_and_the_useful_ones() {
        let expected = [
            ("specversion", "1.0"),
            ("id", "01990000-0000-7000-8000-000000000001"),
            ("source", "/shop"),
            ("type", "order.placed"),
            ("time", "2026-09-21T14:13:20.000001Z"),
            ("subject", "order/47/11"),
            ("sequence", "0000000000000000042"),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        assert_eq!(visited(&message(b"{}", None, &[])), expected);
    }

    #[test]
    fn times_are_written_as_chrono_writes_them() {
        for micros in [
            0,
            1,
            -1,
            951_782_400_000_000,
            253_402_300_799_999_999,
            253_402_300_800_000_000,
            -62_167_219_200_000_001,
        ] {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            let mut text = String::new();
            push_time(&mut text, time);
            assert_eq!(text, time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
    }

    #[test]
    fn attempt_and_dataversion_appear_where_they_say_something() {
        let mut again = message(b"{}", None, &[]);
        again.attempt = 3;
        again.event.version = 2;
        let seen = visited(&again);
        assert_eq!(seen[7..], [("attempt", "3".to_owned()), ("dataversion", "2".to_owned())]);
        assert_eq!(parsed(&again)["attempt"], json!(3));
        assert_eq!(parsed(&again)["dataversion"], json!(2));
    }

    #[test]
    fn sequences_sort_as_text() {
        let text = |sequence| {
            let mut message = message(b"", None, &[]);
            message.sequence = sequence;
            visited(&message)[6].1.clone()
        };
        assert!(text(9) < text(10) && text(10) < text(i64::MAX));
    }

    #[test]
    fn a_json_payload_is_data_and_keeps_its_digits() {
        let json = message(b"{\r\n \"total\": 12345678901234567890.10, \"t\": \"a\\nb\"\n}", None, &[]);
        let line = String::from_utf8(to_json(&json)).unwrap();
        assert!(line.ends_with(r#""data":{   "total": 12345678901234567890.10, "t": "a\nb" }}"#), "{line}");
        assert_eq!(parsed(&json)["datacontenttype"], "application/json");
        for named in ["text/json", "application/vnd.api+json; charset=utf-8", "APPLICATION/JSON"] {
            assert_eq!(parsed(&message(b"[1]", Some(named), &[]))["data"], json!([1]), "{named}");
        }
    }

    #[test]
    fn any_other_payload_is_base64() {
        for (payload, content_type, encoded) in [
            (&b""[..], None, ""),
            (b"f", Some("text/plain"), "Zg=="),
            (b"fo", Some("text/plain"), "Zm8="),
            (b"foobar", Some("text/plain"), "Zm9vYmFy"),
            (b"{}", Some("application/jsonlines"), "e30="),
            (b"{", None, "ew=="),
            (b"\"\xff\xfe\"", None, "Iv/+Ig=="),
            (b"\"a\nb\"", None, "ImEKYiI="),
        ] {
            let value = parsed(&message(payload, content_type, &[]));
            assert_eq!(value["data_base64"], encoded, "{payload:?}");
            assert!(value.get("data").is_none(), "{payload:?}");
        }
    }

    #[test]
    fn headers_are_attributes_where_their_names_allow_and_together_elsewhere() {
        let value = parsed(&message(
            b"1",
            None,
            &[
                ("traceparent", "00-ä-\"\\"),
                ("X-Tenant", "a"),
                ("id", "mine"),
                ("headers", "b"),
                ("data_base64", "c"),
            ],
        ));
        assert_eq!(value["traceparent"], "00-ä-\"\\");
        assert_eq!(value["id"], "01990000-0000-7000-8000-000000000001");
        let others: Value = serde_json::from_str(value["headers"].as_str().unwrap()).unwrap();
        assert_eq!(others, json!({"X-Tenant": "a", "id": "mine", "headers": "b", "data_base64": "c"}));
        assert!(parsed(&message(b"1", None, &[])).get("headers").is_none());
    }

    #[test]
    fn every_character_of_a_text_survives() {
        let mut odd = message(b"1", None, &[]);
        odd.event.event_type = (0..0x250).filter_map(char::from_u32).collect();
        assert_eq!(parsed(&odd)["type"], odd.event.event_type.as_str());
    }

    #[test]
    fn json_is_told_by_its_content_type_and_read_to_any_depth() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/cloudevents+JSON", true),
            ("text/plain", false),
            ("json", false),
            ("application/jsonl", false),
            ("application/ä+json", true),
        ] {
            assert_eq!(is_json(content_type), expected, "{content_type}");
        }
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(check_json(deep.as_bytes()).is_ok());
        for payload in [&b""[..], b"{", b"{}{}", b"nul", b"\xff", b"{'a': 1}", b"\\x7b7d"] {
            assert!(check_json(payload).is_err(), "{payload:?}");
        }
    }
}
