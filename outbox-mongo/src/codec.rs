//! Values of the core as they are in the database, and back: times here, events and their positions in rooms
//! of their own.

pub(crate) mod document;
pub(crate) mod sequence;

use std::time::Duration;

use mongodb::bson::DateTime as BsonDateTime;

/// A duration as the server's milliseconds.
pub(crate) fn millis(duration: Duration) -> i64 {
    // A thousand years: what is further ahead than the calendar cannot be added to now.
    const MILLIS_MAX: i64 = 1000 * 365 * 86_400 * 1000;
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(MILLIS_MAX)
}

/// `duration` later.
pub(crate) fn after(now: BsonDateTime, duration: Duration) -> BsonDateTime {
    BsonDateTime::from_millis(now.timestamp_millis().saturating_add(millis(duration)))
}
