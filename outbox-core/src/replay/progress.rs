//! How far a replay is: [`ReplayProgress`].

use uuid::Uuid;

use crate::{relay::Phase, store::Sequence};

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayProgress {
    /// Where it is in its life.
    pub phase: Phase,
    /// Events that the broker has acknowledged.
    pub sent: u64,
    /// Events that were given up. They can be replayed by their ids.
    pub refused: u64,
    /// Why, of the first twenty of them.
    pub refusals: Vec<Refusal>,
    /// Attempts that failed and were repeated.
    pub retried: u64,
    /// All that the filter means up to here has been sent or refused:
    /// [`EventFilter::after`](crate::EventFilter::after) of a replay that resumes this one. `None` before the
    /// first.
    pub position: Option<Sequence>,
    /// What it is waiting for, while the store or the broker is unavailable.
    pub waiting_for: Option<String>,
}

/// An event that is not part of the replay although the filter means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its position.
    pub sequence: Sequence,
    /// Its id, where it has one that can be read.
    pub id: Option<Uuid>,
    /// What is wrong.
    pub error: String,
}
