//! What the tasks around the engine tell its loop: [`Happening`].

use std::time::Duration;

use super::StoreWork;
use crate::{
    StoreError,
    clock::Monotonic,
    store::{Claimed, Fetched, Lease, Partition, Purged, RelayId, Settled},
};

/// Something that happened outside the engine.
#[derive(Debug)]
pub(crate) enum Happening {
    Standing(Standing),
    /// The table was read, after so long.
    Fetched(Fetched, Duration),
    /// It was not, and is not to be read again before that time.
    FetchFailed(StoreError, Monotonic),
    /// Outcomes were recorded, after so long.
    Settled(Settled, Duration),
    AttemptBegun(bool),
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
    Trouble(StoreError),
}
