//! What a store keeps of an event and of a hold in a word: where an event is in its life, why it failed, why
//! its aggregate is held.

use serde::{Deserialize, Serialize};

/// Where an event is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not yet acknowledged by the broker. Stored as 0.
    Pending,
    /// Acknowledged by the broker. Stored as 1.
    Sent,
    /// Given up, with a [`FailureCause`]; kept for investigation. Stored as 2.
    Failed,
}

impl Status {
    /// The number a store keeps for this status, the same in every store.
    pub fn code(self) -> i16 {
        match self {
            Self::Pending => 0,
            Self::Sent => 1,
            Self::Failed => 2,
        }
    }

    /// The status of a stored number.
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::Pending, Self::Sent, Self::Failed].into_iter().find(|status| status.code() == code)
    }
}

/// Why an event was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureCause {
    /// Its attempts are used up.
    Exhausted,
    /// The broker will never take it, whatever the number of attempts.
    Permanent,
    /// The row cannot be read as an event, or cannot be turned into a message.
    Undecodable,
    /// Given up by policy or by an operator.
    Discarded,
    /// It grew older than the retry policy's age.
    Expired,
}

impl FailureCause {
    /// The word a store keeps for this cause, the same in every store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
            Self::Discarded => "discarded",
            Self::Expired => "expired",
        }
    }

    /// The cause of a stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Exhausted, Self::Permanent, Self::Undecodable, Self::Discarded, Self::Expired]
            .into_iter()
            .find(|cause| cause.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_codes_and_words_are_read_back() {
        for status in [Status::Pending, Status::Sent, Status::Failed] {
            assert_eq!(Status::from_code(status.code()), Some(status));
        }
        assert_eq!(Status::from_code(7), None);
        assert_eq!(FailureCause::parse("expired"), Some(FailureCause::Expired));
        assert_eq!(FailureCause::parse("other"), None);
    }
}

/// Why an aggregate is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HoldReason {
    /// Its event failed and is tried again later.
    Backoff,
    /// The topic of its event is unavailable or paused; no attempt was spent.
    Topic,
    /// Its event was given up and policy keeps the successors waiting for an operator.
    Parked,
    /// An operator put a failed event back.
    Requeued,
    /// An operator paused the aggregate.
    Paused,
}

impl HoldReason {
    /// The word a store keeps for this reason, the same in every store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::Topic => "topic",
            Self::Parked => "parked",
            Self::Requeued => "requeued",
            Self::Paused => "paused",
        }
    }

    /// The reason of a stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Backoff, Self::Topic, Self::Parked, Self::Requeued, Self::Paused]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }

    /// The reason of a stored word. A word that this release does not know was written by a person or a later
    /// release, so the aggregate counts as paused.
    pub fn of(word: &str) -> Self {
        Self::parse(word).unwrap_or(Self::Paused)
    }
}
