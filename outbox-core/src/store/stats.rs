//! Numbers of a store: [`QuickStats`] to be asked often, [`StoreStats`] to be asked once.

use std::{fmt, time::Duration};

/// How far the numbers of [`QuickStats`] are counted: a hundred thousand waiting events are as clear an
/// answer as a million, and take a database a few hundredths of a second to count.
pub const COUNT_MAX: u64 = 100_000;

/// A number that is counted only so far, so that asking for it stays cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Count {
    /// So many there are at least.
    pub at_least: u64,
    /// There are more than these, or there may be.
    pub more: bool,
}

impl Count {
    /// Exactly so many.
    pub fn exactly(count: u64) -> Self {
        Self { at_least: count, more: false }
    }

    /// So many or more.
    pub fn at_least(count: u64) -> Self {
        Self { at_least: count, more: true }
    }

    /// What a count over at most `COUNT_MAX + 1` rows says: `counted` if that is no more than [`COUNT_MAX`].
    pub fn up_to_max(counted: u64) -> Self {
        if counted > COUNT_MAX { Self::at_least(COUNT_MAX) } else { Self::exactly(counted) }
    }
}

/// `12`, or `100000 or more`.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.at_least, if self.more { " or more" } else { "" })
    }
}

/// Numbers that cost little: the cost does not grow with the rows that were sent. For a metric that is
/// refreshed every few seconds, a probe, a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuickStats {
    /// Pending events, due or not, held or not.
    pub pending: Count,
    /// The age of the oldest pending event that was found, by the store's clock.
    pub oldest_pending_age: Option<Duration>,
    /// Failed events.
    pub failed: Count,
    /// Aggregates with a hold.
    pub holds: Count,
    /// Relays that have not expired.
    pub relays_live: u32,
    /// Partitions that a live relay owns.
    pub partitions_owned: u32,
}

/// Numbers that count every row. Counting a large table is slow: not for the relay's loop, nor for a metric.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_says_whether_there_may_be_more() {
        assert_eq!(Count::up_to_max(COUNT_MAX).to_string(), "100000");
        assert_eq!(Count::up_to_max(COUNT_MAX + 1).to_string(), "100000 or more");
        assert_eq!(Count::up_to_max(0), Count::default());
    }
}
