//! Scheduled events behind the read position.
//!
//! The main scan passes over an event whose time has not come. It is found again by its time: the numbers of
//! all that have become due since the last look are collected, and their rows returned in ascending order,
//! before anything newer. The clock is the server's, and goes only as far as has been collected.

use std::collections::{BTreeSet, HashMap};

use outbox_core::{
    AggregateKey,
    store::{Partition, Sequence},
};

use crate::codec::Micros;

/// The most numbers that one look collects, and that wait to be read: 8 bytes each.
pub(super) const COLLECTED_MAX: usize = 20_000;
/// The most numbers of aggregates that cannot be read now. Beyond that they are found by looking again.
const DEFERRED_MAX: usize = 50_000;

#[derive(Debug)]
pub(super) struct Schedule {
    /// Collected so far: up to this time and, within it, this number.
    collected: (Micros, Sequence),
    /// Everything due must be looked for again, from the beginning of time.
    pub(super) again: bool,
    /// The last look hit its limit.
    limited: bool,
    /// Due, and to be read now.
    pub(super) queue: BTreeSet<Sequence>,
    /// Due, of aggregates that are held or have to be read by a pass first.
    deferred: HashMap<AggregateKey, (Partition, BTreeSet<Sequence>)>,
    deferred_len: usize,
    /// There were more than can be kept.
    overflowed: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            collected: (Micros::MIN, 0),
            again: true,
            limited: false,
            queue: BTreeSet::new(),
            deferred: HashMap::new(),
            deferred_len: 0,
            overflowed: false,
        }
    }
}

impl Schedule {
    /// A look is due whatever the probe says.
    pub(super) fn must_look(&self) -> bool {
        self.again || self.limited
    }

    /// From where the next look collects.
    pub(super) fn from(&self) -> (Micros, Sequence) {
        if self.again { (Micros::MIN, 0) } else { self.collected }
    }

    /// Until when the main scan takes an event for due. A look from the beginning that hit its limit turns
    /// this back, which is harmless: what the scan passes over then is collected by the next look.
    pub(super) fn due_until(&self) -> Micros {
        self.collected.0
    }

    /// Takes what a look up to `now` found; `limited`, if there may be more.
    pub(super) fn collect(&mut self, found: &[(Micros, Sequence)], now: Micros, limited: bool) {
        self.collected = match found.last() {
            Some(last) if limited => *last,
            _ => (now, Sequence::MAX),
        };
        (self.again, self.limited) = (false, limited);
        self.queue.extend(found.iter().map(|(_, sequence)| sequence));
    }

    /// The server's clock, which never goes back here whatever it does there.
    pub(super) fn clock(&self, now: Micros) -> Micros {
        if self.again { now } else { now.max(self.collected.0) }
    }

    /// Nothing has become due up to `now`.
    pub(super) fn pass(&mut self, now: Micros) {
        self.collected = (now, Sequence::MAX);
    }

    /// Keeps a due event for when its aggregate can be read.
    pub(super) fn defer(&mut self, key: AggregateKey, partition: Partition, sequence: Sequence) {
        if self.deferred_len >= DEFERRED_MAX {
            self.overflowed = true;
            return;
        }
        let (_, sequences) = self.deferred.entry(key).or_insert_with(|| (partition, BTreeSet::new()));
        self.deferred_len += usize::from(sequences.insert(sequence));
    }

    /// These aggregates can be read now: what was kept of them is to be read next.
    pub(super) fn release(&mut self, choose: impl Fn(&AggregateKey, Partition) -> bool) {
        let queue = &mut self.queue;
        self.deferred.retain(|key, (partition, sequences)| {
            let chosen = choose(key, *partition);
            if chosen {
                queue.append(sequences);
            }
            !chosen
        });
        self.deferred_len = self.deferred.values().map(|(_, sequences)| sequences.len()).sum();
        if self.overflowed {
            (self.overflowed, self.again) = (false, true);
        }
    }

    /// Forgets what was kept of partitions that are no longer owned.
    pub(super) fn retain(&mut self, owned: impl Fn(Partition) -> bool) {
        self.deferred.retain(|_, (partition, _)| owned(*partition));
        self.deferred_len = self.deferred.values().map(|(_, sequences)| sequences.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_as_far_as_was_collected() {
        let mut schedule = Schedule::default();
        schedule.collect(&[(Micros(5), 9), (Micros(7), 3)], Micros(100), true);
        assert_eq!((schedule.due_until(), schedule.from()), (Micros(7), (Micros(7), 3)));
        assert!(schedule.must_look());
        schedule.collect(&[(Micros(7), 4)], Micros(100), false);
        assert_eq!(schedule.due_until(), Micros(100));
        assert!(!schedule.must_look());
        assert_eq!(schedule.queue.iter().copied().collect::<Vec<_>>(), [3, 4, 9]);
        assert_eq!(schedule.clock(Micros(90)), Micros(100));
    }

    #[test]
    fn more_than_can_be_kept_is_looked_for_again() {
        let mut schedule = Schedule::default();
        schedule.collect(&[], Micros(1), false);
        for sequence in 0..=DEFERRED_MAX {
            schedule.defer(AggregateKey::new("t", "held"), 1, Sequence::try_from(sequence).unwrap());
        }
        schedule.release(|_, _| true);
        assert_eq!(schedule.queue.len(), DEFERRED_MAX);
        assert!(schedule.must_look());
        assert_eq!(schedule.from(), (Micros::MIN, 0));
    }
}
