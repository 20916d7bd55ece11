//! What a caller should do about each of NATS's errors: [`classify`].

use async_nats::{
    ConnectErrorKind,
    jetstream::{ErrorCode, context::PublishErrorKind as Publish},
};
use outbox_core::publisher::{
    PublishError,
    PublishErrorKind::{self, Permanent, Transient, Unavailable},
    PublishErrorScope::{self, Broker, Destination, Message},
    Stored::{self, No, Unknown},
};

/// Why a message was not acknowledged, in the words of NATS and of its client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Refusal {
    /// The client refused to send it, or no stream listens to its subject.
    Publish(Publish),
    /// The stream answered with an error.
    JetStream(ErrorCode),
    /// A client answered, but not a stream.
    NoStreamAnswered,
    /// The server says that this user may not send to the subject.
    PermissionsViolation,
    /// There is no connection, and none was made in time.
    Connect(ConnectErrorKind),
    /// No connection was made in time, and nothing is known of why.
    NotConnected,
    /// The connection was lost before the message was given to it.
    ConnectionLostBefore,
    /// The connection was lost before an answer came.
    ConnectionLost,
    /// No answer came in time, though the server gave others.
    TimedOut,
    /// No answer came in time, nor did any other.
    NobodyAnswers,
}

/// The meaning of a refusal.
///
/// An answer is from the stream and says that it has not stored the message. Without an answer a message may
/// be on its way, and then nothing is known. What is the server's or the stream's fault spends no attempt of
/// the message.
pub(crate) fn classify(refusal: Refusal) -> (PublishErrorKind, PublishErrorScope, Stored) {
    match refusal {
        Refusal::Publish(Publish::MaxPayloadExceeded)
        | Refusal::JetStream(
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM,
        ) => (Permanent, Message, No),

        // Also what a server answers that has just started and has not yet loaded its streams.
        Refusal::Publish(Publish::StreamNotFound)
        | Refusal::JetStream(
            ErrorCode::STREAM_NOT_FOUND
            | ErrorCode::STREAM_NOT_MATCH
            | ErrorCode::STREAM_MISMATCH
            | ErrorCode::STREAM_SEALED
            | ErrorCode::STREAM_OFFLINE
            // Full, and it takes nothing new until its consumers have caught up, or its disk failed.
            | ErrorCode::STREAM_STORE_FAILED
            | ErrorCode::CLUSTER_NOT_AVAILABLE
            | ErrorCode::CLUSTER_NOT_LEADER
            | ErrorCode::CLUSTER_INCOMPLETE
            | ErrorCode::CLUSTER_NO_PEERS
            | ErrorCode::RAFT_GENERAL
            | ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::MEMORY_RESOURCES_EXCEEDED,
        ) => (Unavailable, Destination, No),
        // Permissions may have changed after a message was stored, and before it was acknowledged.
        Refusal::NoStreamAnswered | Refusal::TimedOut | Refusal::PermissionsViolation => {
            (Unavailable, Destination, Unknown)
        }

        Refusal::JetStream(
            ErrorCode::JETSTREAM_NOT_ENABLED
            | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
            | ErrorCode::NO_ACCOUNT,
        )
        | Refusal::Connect(_)
        | Refusal::NotConnected
        | Refusal::ConnectionLostBefore => (Unavailable, Broker, No),
        Refusal::ConnectionLost | Refusal::NobodyAnswers | Refusal::Publish(Publish::BrokenPipe) => {
            (Unavailable, Broker, Unknown)
        }

        Refusal::Publish(
            Publish::WrongLastMessageId | Publish::WrongLastSequence | Publish::MaxAckPending,
        ) => (Transient, Message, No),
        Refusal::JetStream(_) | Refusal::Publish(Publish::TimedOut | Publish::Other) => {
            (Transient, Message, Unknown)
        }
    }
}

/// The error of a message, with NATS's or the client's own name of it.
pub(crate) fn publish_error(refusal: Refusal, detail: String) -> PublishError {
    let (kind, scope, stored) = classify(refusal);
    let code = match refusal {
        Refusal::Publish(kind) => format!("{kind:?}"),
        Refusal::Connect(kind) => format!("{kind:?}"),
        // The number is what the server's documentation lists.
        Refusal::JetStream(code) => format!("JetStream{}", code.0),
        other => format!("{other:?}"),
    };
    PublishError::new(kind, scope, stored, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_matters_is_classified_as_documented() {
        let js = |code| Refusal::JetStream(ErrorCode(code));
        for (refusal, code, expected) in [
            (Refusal::Publish(Publish::MaxPayloadExceeded), "MaxPayloadExceeded", (Permanent, Message, No)),
            (js(10054), "JetStream10054", (Permanent, Message, No)),
            (js(10097), "JetStream10097", (Permanent, Message, No)),
            (Refusal::Publish(Publish::StreamNotFound), "StreamNotFound", (Unavailable, Destination, No)),
            (js(10059), "JetStream10059", (Unavailable, Destination, No)),
            (js(10060), "JetStream10060", (Unavailable, Destination, No)),
            (js(10109), "JetStream10109", (Unavailable, Destination, No)),
            (js(10008), "JetStream10008", (Unavailable, Destination, No)),
            (js(10023), "JetStream10023", (Unavailable, Destination, No)),
            (js(10047), "JetStream10047", (Unavailable, Destination, No)),
            (Refusal::NoStreamAnswered, "NoStreamAnswered", (Unavailable, Destination, Unknown)),
            (Refusal::TimedOut, "TimedOut", (Unavailable, Destination, Unknown)),
            (Refusal::PermissionsViolation, "PermissionsViolation", (Unavailable, Destination, Unknown)),
            (js(10076), "JetStream10076", (Unavailable, Broker, No)),
            (js(10039), "JetStream10039", (Unavailable, Broker, No)),
            (
                Refusal::Connect(ConnectErrorKind::AuthorizationViolation),
                "AuthorizationViolation",
                (Unavailable, Broker, No),
            ),
            (Refusal::Connect(ConnectErrorKind::Io), "Io", (Unavailable, Broker, No)),
            (Refusal::NotConnected, "NotConnected", (Unavailable, Broker, No)),
            (Refusal::ConnectionLostBefore, "ConnectionLostBefore", (Unavailable, Broker, No)),
            (Refusal::ConnectionLost, "ConnectionLost", (Unavailable, Broker, Unknown)),
            (Refusal::Publish(Publish::BrokenPipe), "BrokenPipe", (Unavailable, Broker, Unknown)),
            (Refusal::NobodyAnswers, "NobodyAnswers", (Unavailable, Broker, Unknown)),
            (js(10077), "JetStream10077", (Unavailable, Destination, No)),
            (js(10999), "JetStream10999", (Transient, Message, Unknown)),
            (Refusal::Publish(Publish::Other), "Other", (Transient, Message, Unknown)),
        ] {
            assert_eq!(classify(refusal), expected, "{refusal:?}");
            assert_eq!(publish_error(refusal, String::new()).code, code);
        }
    }
}
