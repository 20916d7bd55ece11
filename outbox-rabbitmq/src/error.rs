//! What a caller should do about each of RabbitMQ's errors: [`classify`].

use std::borrow::Cow;

use lapin::ErrorKind;
use outbox_core::publisher::{
    PublishError,
    PublishErrorKind::{self, Permanent, Transient, Unavailable},
    PublishErrorScope::{self, Batch, Broker, Destination, Message},
    Stored::{self, No, Unknown},
};

/// AMQP's reply codes, by their names (AMQP 0-9-1, section 1.2, and RabbitMQ's own use of them).
pub(crate) const NO_ROUTE: u16 = 312;
const CONTENT_TOO_LARGE: u16 = 311;
const NO_CONSUMERS: u16 = 313;
const CONNECTION_FORCED: u16 = 320;
pub(crate) const ACCESS_REFUSED: u16 = 403;
pub(crate) const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const FRAME_ERROR: u16 = 501;
const RESOURCE_ERROR: u16 = 506;
pub(crate) const NOT_ALLOWED: u16 = 530;
const INTERNAL_ERROR: u16 = 541;

/// Why a message was not confirmed, in the words of AMQP and of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The message came back with this code: no queue was there to take it.
    Returned(u16),
    /// The broker says that it does not take the message: a queue is full, or has failed.
    Nack,
    /// The channel or the connection was closed with this code, and nothing was confirmed.
    Closed(u16),
    /// The exchange could not be used, by this code, before anything was sent to it.
    NotOpened(u16),
    /// The broker takes nothing: it is short of memory or disk.
    ConnectionBlocked,
    /// The broker has taken nothing since the message was given to the client: it is short of memory or disk.
    ConnectionBlockedSince,
    /// There is no connection, and none was made in time.
    NotConnected,
    /// The broker refuses the login, by this code.
    NotLoggedIn(u16),
    /// The connection was lost before the message was given to it.
    ConnectionLostBefore,
    /// The connection was lost before a confirm came.
    ConnectionLost,
    /// No confirm came in time, though others did.
    TimedOut,
    /// No confirm came in time, nor did any other.
    NobodyAnswers,
}

/// The meaning of a refusal.
///
/// A channel has messages of one exchange, so what closes it says something of that exchange. What is the
/// broker's or the exchange's fault spends no attempt of the message.
pub(crate) fn classify(refusal: Refusal) -> (PublishErrorKind, PublishErrorScope, Stored) {
    match refusal {
        // Of whatever was on the channel, which a single message closes: alone it will show which one.
        Refusal::Closed(PRECONDITION_FAILED | CONTENT_TOO_LARGE | FRAME_ERROR) => (Permanent, Batch, Unknown),

        Refusal::Returned(_) | Refusal::NotOpened(_) => (Unavailable, Destination, No),
        Refusal::Closed(NOT_FOUND | ACCESS_REFUSED | RESOURCE_LOCKED) | Refusal::TimedOut => {
            (Unavailable, Destination, Unknown)
        }

        Refusal::ConnectionBlocked
        | Refusal::NotConnected
        | Refusal::NotLoggedIn(_)
        | Refusal::ConnectionLostBefore => (Unavailable, Broker, No),
        Refusal::Closed(_)
        | Refusal::ConnectionBlockedSince
        | Refusal::ConnectionLost
        | Refusal::NobodyAnswers => (Unavailable, Broker, Unknown),

        // Of several queues that a message goes to, others may have taken it.
        Refusal::Nack => (Transient, Message, Unknown),
    }
}

/// The error of a message, with AMQP's or the client's own name of it.
pub(crate) fn publish_error(refusal: Refusal, detail: String) -> PublishError {
    let (kind, scope, stored) = classify(refusal);
    let code: Cow<'static, str> = match refusal {
        Refusal::Returned(code)
        | Refusal::Closed(code)
        | Refusal::NotOpened(code)
        | Refusal::NotLoggedIn(code) => match reply_name(code) {
            Some(name) => name.into(),
            None => format!("AMQP{code}").into(),
        },
        Refusal::Nack => "NACK".into(),
        Refusal::ConnectionBlockedSince => "ConnectionBlocked".into(),
        other => format!("{other:?}").into(),
    };
    PublishError::new(kind, scope, stored, code, detail)
}

fn reply_name(code: u16) -> Option<&'static str> {
    Some(match code {
        CONTENT_TOO_LARGE => "CONTENT_TOO_LARGE",
        NO_ROUTE => "NO_ROUTE",
        NO_CONSUMERS => "NO_CONSUMERS",
        CONNECTION_FORCED => "CONNECTION_FORCED",
        ACCESS_REFUSED => "ACCESS_REFUSED",
        NOT_FOUND => "NOT_FOUND",
        RESOURCE_LOCKED => "RESOURCE_LOCKED",
        PRECONDITION_FAILED => "PRECONDITION_FAILED",
        FRAME_ERROR => "FRAME_ERROR",
        RESOURCE_ERROR => "RESOURCE_ERROR",
        NOT_ALLOWED => "NOT_ALLOWED",
        INTERNAL_ERROR => "INTERNAL_ERROR",
        _ => return None,
    })
}

/// The code with which the broker closed a channel or a connection, if it did.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// What it means that a message met this error of the client instead of a confirm.
pub(crate) fn unconfirmed(error: &lapin::Error) -> Refusal {
    reply_code(error).map_or(Refusal::ConnectionLost, Refusal::Closed)
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind};

    use super::*;

    #[test]
    fn every_code_that_matters_is_classified_as_documented() {
        for (refusal, code, expected) in [
            (Refusal::Closed(406), "PRECONDITION_FAILED", (Permanent, Batch, Unknown)),
            (Refusal::Closed(311), "CONTENT_TOO_LARGE", (Permanent, Batch, Unknown)),
            (Refusal::Closed(501), "FRAME_ERROR", (Permanent, Batch, Unknown)),
            (Refusal::Returned(312), "NO_ROUTE", (Unavailable, Destination, No)),
            (Refusal::Returned(313), "NO_CONSUMERS", (Unavailable, Destination, No)),
            (Refusal::NotOpened(404), "NOT_FOUND", (Unavailable, Destination, No)),
            (Refusal::NotOpened(403), "ACCESS_REFUSED", (Unavailable, Destination, No)),
            (Refusal::Closed(404), "NOT_FOUND", (Unavailable, Destination, Unknown)),
            (Refusal::Closed(403), "ACCESS_REFUSED", (Unavailable, Destination, Unknown)),
            (Refusal::Closed(405), "RESOURCE_LOCKED", (Unavailable, Destination, Unknown)),
            (Refusal::TimedOut, "TimedOut", (Unavailable, Destination, Unknown)),
            (Refusal::ConnectionBlocked, "ConnectionBlocked", (Unavailable, Broker, No)),
            (Refusal::ConnectionBlockedSince, "ConnectionBlocked", (Unavailable, Broker, Unknown)),
            (Refusal::NotConnected, "NotConnected", (Unavailable, Broker, No)),
            (Refusal::NotLoggedIn(403), "ACCESS_REFUSED", (Unavailable, Broker, No)),
            (Refusal::NotLoggedIn(530), "NOT_ALLOWED", (Unavailable, Broker, No)),
            (Refusal::ConnectionLostBefore, "ConnectionLostBefore", (Unavailable, Broker, No)),
            (Refusal::ConnectionLost, "ConnectionLost", (Unavailable, Broker, Unknown)),
            (Refusal::NobodyAnswers, "NobodyAnswers", (Unavailable, Broker, Unknown)),
            (Refusal::Closed(320), "CONNECTION_FORCED", (Unavailable, Broker, Unknown)),
            (Refusal::Closed(541), "INTERNAL_ERROR", (Unavailable, Broker, Unknown)),
            (Refusal::Closed(502), "AMQP502", (Unavailable, Broker, Unknown)),
            (Refusal::Nack, "NACK", (Transient, Message, Unknown)),
        ] {
            assert_eq!(classify(refusal), expected, "{refusal:?}");
            assert_eq!(publish_error(refusal, String::new()).code, code);
        }
    }

    #[test]
    fn an_error_of_the_client_is_the_brokers_code_or_a_lost_connection() {
        let closed = AMQPErrorKind::from_id(404).unwrap();
        let closed = ErrorKind::ProtocolError(AMQPError::new(closed, "no exchange".into())).into();
        assert_eq!(unconfirmed(&closed), Refusal::Closed(NOT_FOUND));
        assert_eq!(unconfirmed(&ErrorKind::MissingHeartbeatError.into()), Refusal::ConnectionLost);
    }
}
