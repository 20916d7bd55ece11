//! What becomes of rows whose event has come to its end.

use std::time::Duration;

use crate::with::with;

/// What becomes of a row whose event is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenSent {
    /// It stays, with status `sent`, until retention removes it.
    #[default]
    Keep,
    /// It is deleted by the settle itself.
    Delete,
    /// It is moved to the archive by the settle itself.
    Archive,
}

/// What retention does with rows of a final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposal {
    /// Delete them.
    Delete,
    /// Move them to the archive table.
    Archive,
}

/// Which rows of which age retention removes; one small batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeRequest {
    /// Sent rows older than this, counted from `sent_at`.
    pub sent: Option<(Duration, Disposal)>,
    /// Failed rows older than this, counted from the failure.
    pub failed: Option<(Duration, Disposal)>,
    /// The most rows of each state to remove in this call.
    pub rows_max: u32,
}

impl PurgeRequest {
    /// A request that removes nothing yet.
    pub fn new(rows_max: u32) -> Self {
        Self { sent: None, failed: None, rows_max }
    }
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Sent rows removed.
    pub sent: u64,
    /// Failed rows removed.
    pub failed: u64,
}

with!(PurgeRequest {
    with_sent sent: Option<(Duration, Disposal)>,
    with_failed failed: Option<(Duration, Disposal)>,
});

with!(Purged { with_sent sent: u64, with_failed failed: u64 });
