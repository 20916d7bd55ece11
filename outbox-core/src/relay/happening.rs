//! What the tasks around the engine tell its loop: [`Happening`].

use std::time::Duration;

use super::{StoreWork, writing::Written};
use crate::{
    StoreError,
    clock::Monotonic,
    store::{Claimed, Fetched, Lease, Partition, Purged, RelayId},
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
