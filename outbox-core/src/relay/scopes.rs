//! A broker or a topic that is unavailable: paused, then probed by a single message, then open again.

use std::time::Duration;

use crate::{Monotonic, retry::backoff};

#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// Nothing is sent before this.
    pub(crate) until: Monotonic,
    /// A probe is out.
    pub(crate) probing: bool,
}

impl Scope {
    /// How many messages may be sent now, `in_flight` being out: any number when all is well, none during a pause,
    /// one at a time after it.
    pub(crate) fn room(&self, now: Monotonic, in_flight: usize) -> usize {
        match self.failures {
            0 => usize::MAX,
            _ if now < self.until => 0,
            _ => 1_usize.saturating_sub(in_flight),
        }
    }

    /// Something within the scope was unavailable. The many messages that were out at the time count as one failure.
    pub(crate) fn failed(&mut self, now: Monotonic, min: Duration, max: Duration, random: f64) {
        self.probing = false;
        if now < self.until {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.until = now + backoff(min, max, self.failures, random).max(min);
    }

    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_pauses_probes_and_opens() {
        let ms = Duration::from_millis;
        let mut scope = Scope::default();
        assert_eq!(scope.room(ms(0), 10), usize::MAX);
        scope.failed(ms(0), ms(100), ms(400), 1.0);
        scope.failed(ms(1), ms(100), ms(400), 1.0);
        assert_eq!(scope.failures, 1, "messages that were out together fail together");
        assert_eq!((scope.room(ms(99), 0), scope.room(ms(100), 0), scope.room(ms(100), 1)), (0, 1, 0));
        for _ in 0..5 {
            scope.failed(scope.until, ms(100), ms(400), 1.0);
        }
        assert_eq!(scope.failures, 6);
        scope.succeeded();
        assert_eq!(scope.room(ms(0), 1000), usize::MAX);
    }
}
