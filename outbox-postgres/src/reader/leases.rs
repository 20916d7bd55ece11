//! The partitions that are read, and how far.

use std::collections::BTreeMap;

use outbox_core::store::{Epoch, Lease, Partition, Sequence};

use super::{Bound, Progress};
use crate::codec::partition_code;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Read by the main scan.
    Ready,
    /// Waits for a pass from its floor to the read position.
    Waiting,
    /// Read by the pass.
    Passing,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseState {
    pub(super) epoch: Epoch,
    /// Where reading began.
    pub(super) floor: Sequence,
    pub(super) phase: Phase,
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: BTreeMap<Partition, LeaseState>,
    /// Where the pass is, while it runs.
    pub(super) pass: Option<Progress>,
}

impl Leases {
    /// Drops what is no longer asked for, and returns the leases that have to be read from their floors.
    pub(super) fn adopt(&mut self, asked: &[Lease]) -> Vec<Lease> {
        let asked: BTreeMap<Partition, Epoch> = asked.iter().map(|l| (l.partition, l.epoch)).collect();
        self.leases.retain(|partition, state| asked.get(partition) == Some(&state.epoch));
        if !self.leases.values().any(|state| state.phase == Phase::Passing) {
            self.pass = None;
        }
        let new = asked.into_iter().filter(|(partition, _)| !self.leases.contains_key(partition));
        new.map(|(partition, epoch)| Lease { partition, epoch }).collect()
    }

    pub(super) fn add(&mut self, lease: Lease, floor: Sequence, phase: Phase) {
        self.leases.insert(lease.partition, LeaseState { epoch: lease.epoch, floor, phase });
    }

    pub(super) fn get(&self, partition: Partition) -> Option<&LeaseState> {
        self.leases.get(&partition)
    }

    pub(super) fn lease(&self, partition: Partition) -> Option<Lease> {
        self.get(partition).map(|state| Lease { partition, epoch: state.epoch })
    }

    /// How far the partition has been read.
    pub(super) fn progress(&self, partition: Partition, bound: &Bound) -> Option<Progress> {
        let state = self.get(partition)?;
        let floor = Progress::at(state.floor);
        Some(match state.phase {
            Phase::Ready => Progress::to(bound.read, bound),
            Phase::Waiting => floor,
            Phase::Passing => self.pass.map_or(floor, |position| position.max(floor)),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = (Partition, &LeaseState)> {
        self.leases.iter().map(|(partition, state)| (*partition, state))
    }

    /// Every partition, as an array.
    pub(super) fn all(&self) -> Vec<i16> {
        self.leases.keys().map(|partition| partition_code(*partition)).collect()
    }

    /// The partitions in this phase, as an array.
    pub(super) fn parts(&self, phase: Phase) -> Vec<i16> {
        self.iter()
            .filter(|(_, s)| s.phase == phase)
            .map(|(partition, _)| partition_code(partition))
            .collect()
    }

    /// Starts a pass with all that wait, unless one is running. True if it did.
    pub(super) fn start(&mut self) -> bool {
        if self.pass.is_some() {
            return false;
        }
        let waiting = self.leases.values_mut().filter(|state| state.phase == Phase::Waiting);
        self.pass = waiting
            .map(|state| {
                state.phase = Phase::Passing;
                Progress::at(state.floor)
            })
            .reduce(Progress::min);
        self.pass.is_some()
    }

    /// The pass has come to the read position.
    pub(super) fn complete(&mut self) {
        self.pass = None;
        let passing = self.leases.values_mut().filter(|state| state.phase == Phase::Passing);
        passing.for_each(|state| state.phase = Phase::Ready);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(partition: Partition, epoch: Epoch) -> Lease {
        Lease { partition, epoch }
    }

    #[test]
    fn a_lease_that_was_away_is_read_from_its_floor_again() {
        let mut leases = Leases::default();
        assert_eq!(leases.adopt(&[lease(1, 1)]), [lease(1, 1)]);
        leases.add(lease(1, 1), 0, Phase::Ready);
        assert_eq!(leases.adopt(&[lease(1, 1)]), []);
        assert_eq!(leases.adopt(&[]), []);
        assert_eq!(leases.adopt(&[lease(1, 1)]), [lease(1, 1)]);
        leases.add(lease(1, 1), 0, Phase::Ready);
        assert_eq!(leases.adopt(&[lease(1, 2)]), [lease(1, 2)]);
    }

    #[test]
    fn a_pass_begins_at_the_lowest_floor_and_ends_with_its_partitions() {
        let mut leases = Leases::default();
        leases.add(lease(1, 1), 50, Phase::Waiting);
        leases.add(lease(2, 1), 20, Phase::Waiting);
        assert!(leases.start());
        assert_eq!(leases.pass, Some(Progress::at(20)));
        leases.add(lease(3, 1), 10, Phase::Waiting);
        assert!(!leases.start());
        leases.complete();
        assert_eq!(leases.parts(Phase::Ready), [1, 2]);
        assert!(leases.start());
        leases.adopt(&[lease(1, 1)]);
        assert_eq!(leases.pass, None);
    }
}
