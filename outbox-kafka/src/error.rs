//! What a caller should do about each of Kafka's errors: [`classify`].

use outbox_core::publisher::{
    PublishError,
    PublishErrorKind::{self, Permanent, Transient, Unavailable},
    PublishErrorScope::{self, Batch, Broker, Destination, Message},
    Stored::{self, No, Unknown},
};
use rdkafka::types::RDKafkaErrorCode as Code;

/// The meaning of an error that was reported for a message.
///
/// `answered`: a broker has answered since all of them were last known to be down. A message that timed out
/// then says something of its topic (a partition without a leader, too few replicas), else of the broker.
/// Either way it is nothing that the message has done, so no attempt is spent on it.
///
/// librdkafka repeats by itself, until the delivery timeout, whatever may go away within moments (leader
/// elections, `NotEnoughReplicas`); such a code arrives here only where it stopped repeating.
pub(crate) fn classify(code: Code, answered: bool) -> (PublishErrorKind, PublishErrorScope, Stored) {
    match code {
        // Of a whole request, which a single message spoils: alone it will show which one. Refused before
        // sending, it is this very message; see `refused`.
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::UnsupportedForMessageFormat => (Permanent, Batch, No),
        // Was beside such a message, and is itself well.
        Code::InvalidDifferentRecord => (Transient, Batch, No),

        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::PolicyViolation
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks
        | Code::NotEnoughReplicas => (Unavailable, Destination, No),
        Code::NotEnoughReplicasAfterAppend => (Unavailable, Destination, Unknown),
        Code::MessageTimedOut if answered => (Unavailable, Destination, Unknown),

        Code::MessageTimedOut
        | Code::AllBrokersDown
        | Code::BrokerTransportFailure
        | Code::BrokerDestroy
        | Code::DestroyBroker
        | Code::BrokerNotAvailable
        | Code::Resolve
        | Code::CriticalSystemResource
        | Code::RebootstrapRequired => (Unavailable, Broker, Unknown),
        Code::Authentication
        | Code::SSL
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::QueueFull => (Unavailable, Broker, No),
        // The producer is at its end; the next call has a new one.
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::State
        | Code::Fenced
        | Code::ProducerFenced
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId => (Unavailable, Broker, Unknown),

        // Given up before librdkafka did, while there was no broker to take it.
        Code::PurgeQueue if !answered => (Unavailable, Broker, No),
        Code::PurgeInflight if !answered => (Unavailable, Broker, Unknown),
        Code::PurgeQueue | Code::TimedOutQueue | Code::ThrottlingQuotaExceeded | Code::InvalidMessage => {
            (Transient, Message, No)
        }
        _ => (Transient, Message, Unknown),
    }
}

/// The meaning of an error with which librdkafka refused a message instead of queueing it.
pub(crate) fn refused(code: Code) -> (PublishErrorKind, PublishErrorScope, Stored) {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidArgument => (Permanent, Message, No),
        _ => {
            let (kind, scope, _) = classify(code, true);
            (kind, scope, No)
        }
    }
}

/// A classified error with librdkafka's own name of it, the same for the same cause.
pub(crate) fn publish_error(
    (kind, scope, stored): (PublishErrorKind, PublishErrorScope, Stored),
    code: Code,
    detail: String,
) -> PublishError {
    // What the brokers say the first time, librdkafka says from memory the next time.
    let code = if code == Code::UnknownTopic { Code::UnknownTopicOrPartition } else { code };
    PublishError::new(kind, scope, stored, format!("{code:?}"), detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_matters_is_classified_as_documented() {
        for (code, expected) in [
            (Code::MessageSizeTooLarge, (Permanent, Batch, No)),
            (Code::MessageBatchTooLarge, (Permanent, Batch, No)),
            (Code::InvalidRecord, (Permanent, Batch, No)),
            (Code::InvalidTimestamp, (Permanent, Batch, No)),
            (Code::InvalidDifferentRecord, (Transient, Batch, No)),
            (Code::UnknownTopic, (Unavailable, Destination, No)),
            (Code::UnknownTopicOrPartition, (Unavailable, Destination, No)),
            (Code::UnknownPartition, (Unavailable, Destination, No)),
            (Code::InvalidTopic, (Unavailable, Destination, No)),
            (Code::TopicAuthorizationFailed, (Unavailable, Destination, No)),
            (Code::NotEnoughReplicas, (Unavailable, Destination, No)),
            (Code::NotEnoughReplicasAfterAppend, (Unavailable, Destination, Unknown)),
            (Code::AllBrokersDown, (Unavailable, Broker, Unknown)),
            (Code::BrokerTransportFailure, (Unavailable, Broker, Unknown)),
            (Code::Resolve, (Unavailable, Broker, Unknown)),
            (Code::Authentication, (Unavailable, Broker, No)),
            (Code::SaslAuthenticationFailed, (Unavailable, Broker, No)),
            (Code::SSL, (Unavailable, Broker, No)),
            (Code::ClusterAuthorizationFailed, (Unavailable, Broker, No)),
            (Code::QueueFull, (Unavailable, Broker, No)),
            (Code::Fatal, (Unavailable, Broker, Unknown)),
            (Code::OutOfOrderSequenceNumber, (Unavailable, Broker, Unknown)),
            (Code::UnknownProducerId, (Unavailable, Broker, Unknown)),
            (Code::NotLeaderForPartition, (Transient, Message, Unknown)),
            (Code::LeaderNotAvailable, (Transient, Message, Unknown)),
            (Code::RequestTimedOut, (Transient, Message, Unknown)),
            (Code::NetworkException, (Transient, Message, Unknown)),
            (Code::KafkaStorageError, (Transient, Message, Unknown)),
            (Code::Unknown, (Transient, Message, Unknown)),
        ] {
            assert_eq!(classify(code, true), expected, "{code:?}");
            assert_eq!(classify(code, false), expected, "{code:?}, unanswered");
        }
    }

    #[test]
    fn what_is_given_up_while_no_broker_answers_spends_no_attempt() {
        assert_eq!(classify(Code::PurgeQueue, true), (Transient, Message, No));
        assert_eq!(classify(Code::PurgeQueue, false), (Unavailable, Broker, No));
        assert_eq!(classify(Code::PurgeInflight, true), (Transient, Message, Unknown));
        assert_eq!(classify(Code::PurgeInflight, false), (Unavailable, Broker, Unknown));
    }

    #[test]
    fn a_timeout_is_the_topics_or_the_brokers() {
        assert_eq!(classify(Code::MessageTimedOut, true), (Unavailable, Destination, Unknown));
        assert_eq!(classify(Code::MessageTimedOut, false), (Unavailable, Broker, Unknown));
    }

    #[test]
    fn what_was_refused_before_it_was_queued_is_certainly_not_stored() {
        assert_eq!(refused(Code::MessageSizeTooLarge), (Permanent, Message, No));
        assert_eq!(refused(Code::InvalidArgument), (Permanent, Message, No));
        assert_eq!(refused(Code::UnknownTopic), (Unavailable, Destination, No));
        assert_eq!(refused(Code::Fatal), (Unavailable, Broker, No));
    }

    #[test]
    fn the_code_is_named_as_librdkafka_names_it() {
        let error =
            publish_error(classify(Code::InvalidRecord, true), Code::InvalidRecord, "text".to_owned());
        assert_eq!(error.to_string(), "InvalidRecord: text");
    }
}
