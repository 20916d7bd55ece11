//! How often an idle table is read: a pure function of what the last reads found.

use std::time::Duration;

use crate::clock::Monotonic;

/// How long after the last event the table is read at the shortest interval: long enough that a steady
/// hundred events a second are never met by a sleeping relay.
const BUSY: Duration = Duration::from_millis(500);

/// Decides when to read next. Reads often while events come, and ever less often once they do not.
#[derive(Debug)]
pub(crate) struct Polling {
    min: Duration,
    max: Duration,
    interval: Duration,
    found_at: Option<Monotonic>,
    read_at: Monotonic,
    next: Monotonic,
}

impl Polling {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, interval: min, found_at: None, read_at: Duration::ZERO, next: Duration::ZERO }
    }

    /// A read has returned.
    pub(crate) fn read(&mut self, now: Monotonic, found: bool, more: bool, next_due: Option<Duration>) {
        self.read_at = now;
        if found {
            self.found_at = Some(now);
        }
        let busy = self.found_at.is_some_and(|at| now.saturating_sub(at) < BUSY);
        self.interval = if busy { self.min } else { (self.interval * 2).min(self.max) };
        let wait = match next_due {
            _ if more => Duration::ZERO,
            // A due time is never waited for more closely than the shortest interval: one that is always just
            // due would make the relay spin.
            Some(due) => self.interval.min(due.max(self.min)),
            None => self.interval,
        };
        self.next = now + wait;
    }

    /// A read has failed, or cannot be made before `at`.
    pub(crate) fn not_before(&mut self, at: Monotonic) {
        self.next = self.next.max(at);
    }

    /// There may be something new: read at once.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        self.next = now;
        self.interval = self.min;
    }

    /// There is more to be read, and time: read at the shortest interval, and not for every little thing.
    pub(crate) fn soon(&mut self) {
        self.next = self.next.min(self.read_at + self.min);
        self.interval = self.min;
    }

    /// When to read next.
    pub(crate) fn next(&self) -> Monotonic {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_interval_grows_only_when_nothing_has_come_for_a_while() {
        let mut polling = Polling::new(MS(2), MS(50));
        polling.read(MS(1000), true, false, None);
        assert_eq!(polling.next(), MS(1002));
        polling.read(MS(1400), false, false, None);
        assert_eq!(polling.next(), MS(1402));
        for (now, next) in
            [(1600, 1604), (1604, 1612), (1612, 1628), (1628, 1660), (1660, 1710), (1710, 1760)]
        {
            polling.read(MS(now), false, false, None);
            assert_eq!(polling.next(), MS(next));
        }
        polling.wake(MS(1715));
        assert_eq!(polling.next(), MS(1715));
    }

    #[test]
    fn soon_is_the_shortest_interval_after_the_last_read() {
        let mut polling = Polling::new(MS(2), MS(50));
        for now in [1000, 1100, 1200, 1300, 1400, 1500] {
            polling.read(MS(now), false, false, None);
        }
        assert_eq!(polling.next(), MS(1550));
        polling.soon();
        polling.soon();
        assert_eq!(polling.next(), MS(1502));
        polling.read(MS(1502), false, true, None);
        polling.soon();
        assert_eq!(polling.next(), MS(1502), "it puts nothing off");
    }

    #[test]
    fn more_is_read_at_once_and_a_due_time_is_met() {
        let mut polling = Polling::new(MS(2), MS(50));
        polling.read(MS(10), true, true, None);
        assert_eq!(polling.next(), MS(10));
        for now in [1000, 1100, 1200, 1300, 1400] {
            polling.read(MS(now), false, false, None);
        }
        polling.read(MS(1500), false, false, Some(MS(7)));
        assert_eq!(polling.next(), MS(1507));
        polling.read(MS(1500), false, false, Some(MS(0)));
        assert_eq!(polling.next(), MS(1502), "a hold that is always due does not make the relay spin");
    }
}
