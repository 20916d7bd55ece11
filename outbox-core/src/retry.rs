//! When a failed event is tried again, and when it is given up: [`RetryPolicy`], a pure function of what
//! happened.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    store::{FailureCause, Successors},
    with::with,
};

/// What happens to an event that is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GiveUp {
    /// Kept as `failed` with its cause, for investigation; its successors go on.
    #[default]
    Store,
    /// Kept as `failed` with the cause `discarded`, which retention usually removes sooner; its successors go
    /// on.
    Discard,
    /// Kept as `failed` with its cause; its successors wait until an operator acts.
    Park,
}

impl GiveUp {
    /// The cause and the successors' fate for an event that is given up because of `cause`.
    pub fn apply(self, cause: FailureCause) -> (FailureCause, Successors) {
        match self {
            Self::Store => (cause, Successors::Release),
            Self::Discard => (FailureCause::Discarded, Successors::Release),
            Self::Park => (cause, Successors::Park),
        }
    }
}

/// Exponential back-off with full jitter, bounded by attempts and by age.
///
/// Full jitter (a delay drawn evenly between nothing and the exponential bound) spreads the retries of many
/// aggregates that failed together better than any narrower spread.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first included. Default 10; with the other defaults, the last is about two and a
    /// half minutes after the first on average.
    pub attempts_max: u32,
    /// An event older than this, counted from `created_at` by the store's clock, is not tried again. Default:
    /// no limit.
    pub age_max: Option<Duration>,
    /// The bound of the first delay. Default 500 ms.
    pub delay_min: Duration,
    /// The bound that no delay exceeds. Default 60 s.
    pub delay_max: Duration,
    /// What happens after the last attempt, and to events that can never be published.
    pub give_up: GiveUp,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 10,
            age_max: None,
            delay_min: Duration::from_millis(500),
            delay_max: Duration::from_secs(60),
            give_up: GiveUp::Store,
        }
    }
}

/// What a policy says after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this long.
    After(Duration),
    /// Give it up for this reason.
    GiveUp(FailureCause),
}

with!(RetryPolicy {
    with_attempts_max attempts_max: u32,
    with_age_max age_max: Option<Duration>,
    with_delay_min delay_min: Duration,
    with_delay_max delay_max: Duration,
    with_give_up give_up: GiveUp,
});

impl RetryPolicy {
    /// Decides after `attempts` failed attempts (at least 1) of an event of this age. `random` is any number
    /// from 0 to 1.
    pub fn decide(&self, attempts: u32, age: Duration, random: f64) -> RetryDecision {
        if attempts >= self.attempts_max {
            return RetryDecision::GiveUp(FailureCause::Exhausted);
        }
        let after = backoff(self.delay_min, self.delay_max, attempts, random);
        match self.age_max {
            Some(age_max) if age + after >= age_max => RetryDecision::GiveUp(FailureCause::Expired),
            _ => RetryDecision::After(after),
        }
    }
}

/// A delay with full jitter after `failures` failures in a row (at least 1): between 1 ms and the lesser of
/// `max` and `min` doubled for every further failure.
pub(crate) fn backoff(min: Duration, max: Duration, failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let bound = min.saturating_mul(1 << doublings).min(max);
    bound.mul_f64(random.clamp(0.0, 1.0)).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let policy = RetryPolicy { attempts_max: 100, ..RetryPolicy::default() };
        let bounds: Vec<u64> = (1..=9)
            .map(|attempts| match policy.decide(attempts, Duration::ZERO, 1.0) {
                RetryDecision::After(after) => after.as_millis() as u64,
                RetryDecision::GiveUp(cause) => panic!("gave up: {cause:?}"),
            })
            .collect();
        assert_eq!(bounds, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(
            policy.decide(99, Duration::ZERO, 1.0),
            RetryDecision::After(Duration::from_secs(60)),
            "a large number of attempts does not overflow"
        );
    }

    #[test]
    fn attempts_and_age_are_bounded() {
        let policy =
            RetryPolicy { attempts_max: 3, age_max: Some(Duration::from_secs(10)), ..RetryPolicy::default() };
        assert_eq!(policy.decide(3, Duration::ZERO, 0.0), RetryDecision::GiveUp(FailureCause::Exhausted));
        assert_eq!(
            policy.decide(1, Duration::from_secs(10), 0.0),
            RetryDecision::GiveUp(FailureCause::Expired)
        );
        assert!(matches!(policy.decide(1, Duration::from_secs(1), 0.5), RetryDecision::After(_)));
    }

    #[test]
    fn giving_up_follows_the_policy() {
        let cause = FailureCause::Exhausted;
        assert_eq!(GiveUp::Store.apply(cause), (cause, Successors::Release));
        assert_eq!(GiveUp::Discard.apply(cause), (FailureCause::Discarded, Successors::Release));
        assert_eq!(GiveUp::Park.apply(cause), (cause, Successors::Park));
    }
}
