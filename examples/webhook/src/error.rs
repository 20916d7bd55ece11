//! What a relay should do about each answer, and about none: [`classify`].

use std::error::Error as _;

use outbox::publisher::{
    PublishError,
    PublishErrorKind::{self, Permanent, Transient, Unavailable},
    PublishErrorScope::{self, Destination, Message},
    Stored::{self, No, Unknown},
};
use reqwest::StatusCode;

/// The meaning of an answer that is not a success.
///
/// 4xx: the receiver refused, so it has stored nothing. 5xx: it may have failed after it stored.
pub(crate) fn classify(status: StatusCode) -> (PublishErrorKind, PublishErrorScope, Stored) {
    match status.as_u16() {
        401 | 403 | 404 | 405 | 410 | 429 | 300..=399 => (Unavailable, Destination, No),
        502..=504 => (Unavailable, Destination, Unknown),
        408 | 409 | 425 => (Transient, Message, Unknown),
        400..=499 => (Permanent, Message, No),
        _ => (Transient, Message, Unknown),
    }
}

/// An answer that is not a success, with what it says about when to come back.
pub(crate) fn refusal(status: StatusCode, retry_after: Option<&str>) -> PublishError {
    let (kind, scope, stored) = classify(status);
    let mut detail = format!("the endpoint answered {status}");
    if let Some(retry_after) = retry_after {
        detail.push_str(&format!(", and to come back after {retry_after:?}"));
    }
    PublishError::new(kind, scope, stored, format!("http-{}", status.as_u16()), detail)
}

/// No answer. Only what failed while it connected has certainly not been sent.
pub(crate) fn no_answer(error: reqwest::Error) -> PublishError {
    let (code, stored) = if error.is_connect() { ("no-connection", No) } else { ("no-answer", Unknown) };
    // The URL is left out: the receiver may have put a token into it.
    let error = error.without_url();
    let mut detail = format!("no answer: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    PublishError::unavailable(code, detail).stored(stored)
}

/// The time for an answer has passed.
pub(crate) fn timed_out() -> PublishError {
    PublishError::unavailable("timeout", "no answer within the delivery timeout")
}

/// The message is refused before it is sent.
pub(crate) fn unsendable(code: &'static str, detail: String) -> PublishError {
    PublishError::permanent(code, detail).scope(Message)
}

/// A topic whose name makes no URL, whatever the receiver does about it.
pub(crate) fn bad_topic(topic: &str) -> PublishError {
    let detail =
        format!("topic {topic:?} is not a path of a URL: use segments that are neither empty nor dots");
    unsendable("bad-topic", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_that_matters_is_classified_as_documented() {
        for (status, expected) in [
            (302, (Unavailable, Destination, No)),
            (400, (Permanent, Message, No)),
            (401, (Unavailable, Destination, No)),
            (403, (Unavailable, Destination, No)),
            (404, (Unavailable, Destination, No)),
            (405, (Unavailable, Destination, No)),
            (408, (Transient, Message, Unknown)),
            (409, (Transient, Message, Unknown)),
            (410, (Unavailable, Destination, No)),
            (413, (Permanent, Message, No)),
            (415, (Permanent, Message, No)),
            (422, (Permanent, Message, No)),
            (425, (Transient, Message, Unknown)),
            (429, (Unavailable, Destination, No)),
            (431, (Permanent, Message, No)),
            (500, (Transient, Message, Unknown)),
            (502, (Unavailable, Destination, Unknown)),
            (503, (Unavailable, Destination, Unknown)),
            (504, (Unavailable, Destination, Unknown)),
            (507, (Transient, Message, Unknown)),
        ] {
            assert_eq!(classify(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn the_receivers_wish_is_told() {
        let error = refusal(StatusCode::SERVICE_UNAVAILABLE, Some("120"));
        assert_eq!(
            error.to_string(),
            "http-503: the endpoint answered 503 Service Unavailable, and to come back after \"120\""
        );
    }
}
