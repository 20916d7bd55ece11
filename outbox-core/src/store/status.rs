//! Where an event is in its life.

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
