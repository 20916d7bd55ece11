//! A message as NATS carries it: subject and headers.

use std::fmt::Write;

use async_nats::{HeaderMap, HeaderName, HeaderValue, jetstream::message::PublishMessage};
use outbox_core::{
    cloudevents,
    publisher::{Message, PublishError},
    replay::REPLAY_HEADER,
};

/// By what a stream recognises a message that it has already.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The longest subject, in bytes. A server ends the connection of a client that sends a line of more than 4
/// KiB (`max_control_line`), and with it what others have in flight; the line has the subject, the subject of
/// the answer and two sizes.
const SUBJECT_BYTES_MAX: usize = 2_048;

/// What is wrong with a topic as the subject of a message. `$` begins the subjects of the server's own
/// interfaces: a message there would be an order.
pub(crate) fn subject_problem(topic: &str) -> Option<String> {
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>';
    let words = topic.split('.').all(|word| !word.is_empty());
    let legal = words
        && topic.len() <= SUBJECT_BYTES_MAX
        && topic.chars().all(legal)
        && !topic.starts_with('$')
        && !topic.starts_with("_INBOX.");
    (!legal).then(|| {
        format!(
            "{topic:?} is not a valid subject for a message: use words with dots between them, at most \
             {SUBJECT_BYTES_MAX} bytes, without white space, *, > and a leading $"
        )
    })
}

/// The message, with the headers of the NATS binding's binary mode, then the event's own.
///
/// Binary mode is not yet in a released version of the binding; see
/// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md>, section
/// 3.1.
///
/// # Errors
/// What NATS cannot carry.
pub(crate) fn message(message: &Message) -> Result<PublishMessage, PublishError> {
    let mut headers = HeaderMap::new();
    let mut failure = None;
    let mut insert = |name: &str, value: &str| {
        if failure.is_none() {
            failure = insert(&mut headers, name, value).err();
        }
    };
    insert(MESSAGE_ID, &message_id(message));
    let mut name_buffer = String::with_capacity(24);
    let mut value_buffer = String::with_capacity(64);
    let mut attribute = |name: &str, value: &str| {
        name_buffer.clear();
        name_buffer.push_str("ce-");
        name_buffer.push_str(name);
        value_buffer.clear();
        percent_encode(value, &mut value_buffer);
        insert(&name_buffer, &value_buffer);
    };
    cloudevents::attributes(message, &mut String::with_capacity(64), &mut attribute);
    attribute("datacontenttype", cloudevents::content_type(message));
    for (name, value) in &message.event.headers {
        // Headers of this kind are orders to the stream: to expect something, to delete what was there
        // before.
        if name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")) {
            return Err(invalid_header(name, "has a name that is reserved to NATS"));
        }
        insert(name, value);
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(PublishMessage::build()
            .headers(headers)
            .payload(message.event.payload.clone().unwrap_or_default())),
    }
}

/// By what a stream takes a message for one that it has: not by the event alone, which another source may
/// have under the same id, which may go to another subject of the same stream, and which a replay sends once
/// more.
fn message_id(message: &Message) -> String {
    let mut id = String::with_capacity(96);
    id.push_str(message.event.id.hyphenated().encode_lower(&mut [0; 36]));
    let replay = message.event.headers.get(REPLAY_HEADER).map(String::as_str);
    for part in [Some(&*message.source), Some(&*message.topic), replay].into_iter().flatten() {
        id.push(' ');
        percent_encode(part, &mut id);
    }
    id
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), PublishError> {
    let Ok(header) = name.parse::<HeaderName>() else {
        return Err(invalid_header(name, "has a name that NATS cannot carry"));
    };
    if value.trim() != value {
        return Err(invalid_header(name, "has white space around its value, which NATS drops"));
    }
    let Ok(value) = value.parse::<HeaderValue>() else {
        return Err(invalid_header(name, "has a line break in its value, which NATS cannot carry"));
    };
    headers.insert(header, value);
    Ok(())
}

fn invalid_header(name: &str, problem: &str) -> PublishError {
    PublishError::permanent("InvalidHeader", format!("header {name:?} {problem}"))
}

/// The encoding that the binding demands for attributes (section 3.1.3.2).
fn percent_encode(text: &str, encoded: &mut String) {
    for byte in text.bytes() {
        if matches!(byte, b'!'..=b'~') && byte != b'"' && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_are_no_subjects_are_known() {
        for topic in [
            &*"x".repeat(SUBJECT_BYTES_MAX + 1),
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a.*",
            "a.>",
            "a*b",
            "a\tb",
            "a\0",
            "$JS.API",
            "_INBOX.x",
        ] {
            assert!(subject_problem(topic).is_some(), "{topic:?}");
        }
        for topic in ["orders", "orders.eu.placed", "grüße.a-b_c/d:e", "a.$b"] {
            assert!(subject_problem(topic).is_none(), "{topic:?}");
        }
    }

    #[test]
    fn attributes_are_encoded_as_in_the_bindings_own_example() {
        let mut encoded = String::new();
        percent_encode("Euro € 😀", &mut encoded);
        assert_eq!(encoded, "Euro%20%E2%82%AC%20%F0%9F%98%80");
    }

    #[test]
    fn headers_that_nats_cannot_carry_are_refused() {
        for (name, value) in [
            ("a:b", "v"),
            ("a b", "v"),
            ("ä", "v"),
            ("a", " v"),
            ("a", "v\u{a0}"),
            ("a", "v\nw"),
            ("a", "v\rw"),
        ] {
            let error = insert(&mut HeaderMap::new(), name, value).unwrap_err();
            assert_eq!(
                (&*error.code, error.kind),
                ("InvalidHeader", outbox_core::publisher::PublishErrorKind::Permanent)
            );
        }
        for (name, value) in [("traceparent", "00-a"), ("X", "größe\tx"), ("empty", "")] {
            assert!(insert(&mut HeaderMap::new(), name, value).is_ok(), "{name}");
        }
    }
}
