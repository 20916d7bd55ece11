//! Numbers of a store.

use std::time::Duration;

/// Numbers for a status page. Counting a large table is slow: not for the relay's loop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Pending events, due or not, held or not.
    pub pending: u64,
    /// The age of the oldest pending event, by the store's clock.
    pub oldest_pending_age: Option<Duration>,
    /// Sent events that are still in the table.
    pub sent: u64,
    /// Failed events.
    pub failed: u64,
    /// Aggregates with a hold.
    pub holds: u64,
    /// Relays that have not expired.
    pub relays_live: u32,
    /// Partitions that a live relay owns.
    pub partitions_owned: u32,
}
