//! How many events may be begun now: [`Pace`].

use std::{num::NonZeroU32, time::Duration};

use crate::clock::Monotonic;

/// For how long what was not used may be made up for, so that a late wake-up costs nothing and a pause no
/// burst.
const MADE_UP_MAX: Duration = Duration::from_millis(100);

/// A rate limit.
#[derive(Debug)]
pub(super) struct Pace {
    /// The time of one event; `None` without a limit.
    interval: Option<Duration>,
    /// Up to here the rate has been used.
    used_until: Monotonic,
}

impl Pace {
    pub(super) fn new(rate: Option<NonZeroU32>, now: Monotonic) -> Self {
        let interval = rate.map(|rate| Duration::from_secs(1) / rate.get());
        // The first event may begin at once.
        Self { interval, used_until: now.saturating_sub(interval.unwrap_or_default()) }
    }

    /// How many events may be begun now.
    pub(super) fn room(&mut self, now: Monotonic) -> usize {
        let Some(interval) = self.interval else { return usize::MAX };
        self.used_until = self.used_until.max(now.saturating_sub(MADE_UP_MAX.max(interval)));
        let room = now.saturating_sub(self.used_until).as_nanos() / interval.as_nanos().max(1);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// So many were begun.
    pub(super) fn begun(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.used_until += self.interval.unwrap_or_default().saturating_mul(count);
    }

    /// When the next event may be begun.
    pub(super) fn next(&self) -> Monotonic {
        self.interval.map_or(Monotonic::ZERO, |interval| self.used_until + interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Monotonic = Duration::from_secs(100);

    fn pace(rate: u32) -> Pace {
        Pace::new(NonZeroU32::new(rate), START)
    }

    #[test]
    fn the_first_may_begin_at_once_and_each_other_in_its_time() {
        let mut pace = pace(2);
        assert_eq!(pace.room(START), 1);
        pace.begun(1);
        assert_eq!(pace.room(START + Duration::from_millis(499)), 0);
        assert_eq!(pace.next(), START + Duration::from_millis(500));
        assert_eq!(pace.room(pace.next()), 1);
    }

    #[test]
    fn a_long_pause_is_not_made_up_for() {
        let mut pace = pace(1_000);
        assert_eq!(pace.room(START + Duration::from_secs(60)), 100);
    }

    #[test]
    fn over_a_minute_the_rate_is_kept() {
        for rate in [1, 3, 70, 5_000] {
            let mut pace = pace(rate);
            let (mut begun, mut now) = (0, START);
            while now < START + Duration::from_secs(60) {
                let room = pace.room(now);
                pace.begun(room);
                begun += room;
                now += Duration::from_millis(7);
            }
            let expected = rate as usize * 60;
            assert!((expected - expected / 50 - 1..=expected + 1).contains(&begun), "{rate}: {begun}");
        }
    }

    #[test]
    fn without_a_limit_there_is_none() {
        assert_eq!(Pace::new(None, START).room(START), usize::MAX);
    }
}
