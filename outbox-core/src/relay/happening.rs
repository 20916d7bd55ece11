//! What the tasks around the engine tell its loop: [`Happening`].

use std::time::Duration;

use super::StoreWork;
use crate::{
    StoreError,
    clock::Monotonic,
    store::{Claimed, Fetched, Lease, Partition, Purged, RelayId, Settled, Settlement, Unhold},
};

/// Something that happened outside the engine.
#[derive(Debug)]
pub(crate) enum Happening {
    Standing(Standing),
    /// The table was read, after so long.
    Fetched(Fetched, Duration),
    /// It was not, and is not to be read again before that time.
    FetchFailed(StoreError, Monotonic),
    /// Outcomes were recorded, or refused.
    Settled(Box<Written>),
    /// An attempt was recorded (`false`: fenced), or refused.
    AttemptBegun(Result<bool, StoreError>),
    PublishEnded(u64, &'static str),
    Purged(Purged),
    Trouble(StoreWork, StoreError),
}

/// What the steward tells the engine.
#[derive(Debug)]
pub(crate) enum Standing {
    Joined(RelayId, Monotonic),
    Renewed(Monotonic),
    Buried,
    /// The partitions and their owners were looked at, for the first time or after trouble.
    Looked,
    Claimed(Vec<Claimed>),
    Lost(Vec<Lease>),
    Drain(Vec<Partition>),
    PausedTopics(Vec<String>),
    Trouble(StoreWork, StoreError),
}

/// What a settle recorded, and what the store refused.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// What was fenced; all else is recorded, less what is refused.
    pub(crate) settled: Settled,
    /// Outcomes that the store refuses, each by itself.
    pub(crate) refused: Vec<(Settlement, StoreError)>,
    /// Outcomes that are recorded in their plainest form, since the store refused them as they were.
    pub(crate) plain: Vec<(Settlement, StoreError)>,
    /// Holds that the store refuses to remove.
    pub(crate) unholds: Vec<(Unhold, StoreError)>,
    /// How long the store took, attempts that failed not counted.
    pub(crate) took: Duration,
}
