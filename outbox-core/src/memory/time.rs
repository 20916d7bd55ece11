//! Times of the store in memory.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// A time by the store's own clock.
pub(super) type Time = DateTime<Utc>;

/// `time` and `duration` later, or the end of time.
pub(super) fn after(time: Time, duration: Duration) -> Time {
    TimeDelta::from_std(duration)
        .ok()
        .and_then(|duration| time.checked_add_signed(duration))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// How long it is from `start` to `end`; zero if that is in the past.
pub(super) fn between(start: Time, end: Time) -> Duration {
    (end - start).to_std().unwrap_or(Duration::ZERO)
}
