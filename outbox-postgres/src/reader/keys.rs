//! Aggregates that are read by key: from a due hold until everything that waited behind it has been returned.
//!
//! ```text
//!  due hold returned          hold removed            a lane begins          all read up to R
//!  ───────────────► Outstanding ─────────► Waiting ──────────────► Passing ─────────────► (as any other)
//!                        └─ held again ─► (excluded by its hold)
//! ```
//! An aggregate in any of these states contributes nothing to the main scan.

use std::collections::HashMap;

use outbox_core::{AggregateKey, Epoch, Lease, Partition, Sequence};

/// Two passes may run side by side, so that a short back-off need not wait for an aggregate that was parked a week
/// ago.
pub(super) const LANES: usize = 2;
/// A hold that began within this many numbers of the read position goes into the short lane.
const SHORT: Sequence = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The relay has it, and will tell how it ended.
    Outstanding,
    /// The relay had it from its previous reader: it may tell, or expect to be told again.
    Inherited,
    /// Its partition is not asked for at present.
    Away,
    /// Its hold is gone; it waits for a lane.
    Waiting,
    /// It is read by this lane.
    Passing(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct KeyState {
    pub(super) lease: Lease,
    /// Nothing of the aggregate below waits, but scheduled events.
    pub(super) from: Sequence,
    pub(super) phase: Phase,
}

/// What a relay's next reader must know of the previous one: the aggregates that were read by key.
pub(crate) type Inherited = Vec<(AggregateKey, Lease, Sequence)>;

#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: HashMap<AggregateKey, KeyState>,
    /// Where each lane has read up to, while it runs.
    lanes: [Option<Sequence>; LANES],
}

impl Keys {
    pub(super) fn inherit(&mut self, inherited: Inherited) {
        for (key, lease, from) in inherited {
            self.keys.insert(key, KeyState { lease, from, phase: Phase::Away });
        }
    }

    pub(super) fn bequeath(&self) -> Inherited {
        self.keys.iter().map(|(key, state)| (key.clone(), state.lease, state.from)).collect()
    }

    /// Nothing is read by key.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.values().all(|state| state.phase == Phase::Away)
    }

    pub(super) fn get(&self, key: &AggregateKey) -> Option<&KeyState> {
        self.keys.get(key)
    }

    pub(super) fn outstanding(&mut self, key: AggregateKey, lease: Lease, from: Sequence) {
        // A hold that is returned again may have been lowered, or its beginning be known from before.
        let from = self.keys.get(&key).map_or(from, |old| old.from.min(from));
        self.keys.insert(key, KeyState { lease, from, phase: Phase::Outstanding });
    }

    /// The hold is gone: everything from `from` on is to be read.
    pub(super) fn wait(&mut self, key: &AggregateKey, lease: Lease, from: Sequence) {
        let state = self.keys.entry(key.clone()).or_insert(KeyState { lease, from, phase: Phase::Waiting });
        state.phase = Phase::Waiting;
    }

    /// The aggregate is held again. One that is being read already is not forgotten: its rows have to be returned.
    pub(super) fn held_again(&mut self, key: &AggregateKey) {
        if self.keys.get(key).is_some_and(|s| matches!(s.phase, Phase::Outstanding | Phase::Inherited)) {
            self.keys.remove(key);
        }
    }

    /// Takes note of the leases that are asked for: what belongs to an older epoch is forgotten, and what belongs
    /// to a partition that is not asked for is put away, since its lease may come back.
    pub(super) fn adopt(&mut self, epoch: impl Fn(Partition) -> Option<Epoch>) {
        self.keys.retain(|_, state| epoch(state.lease.partition).is_none_or(|e| e == state.lease.epoch));
        for state in self.keys.values_mut() {
            state.phase = match (epoch(state.lease.partition), state.phase) {
                (None, _) => Phase::Away,
                (Some(_), Phase::Away) => Phase::Inherited,
                (Some(_), phase) => phase,
            };
        }
    }

    /// Aggregates in this phase.
    pub(super) fn in_phase(&self, phase: Phase) -> Vec<(AggregateKey, KeyState)> {
        let chosen = self.keys.iter().filter(|(_, state)| state.phase == phase);
        chosen.map(|(key, state)| (key.clone(), *state)).collect()
    }

    /// The types and ids of those in the phases that `choose` names, as two arrays.
    pub(super) fn arrays(&self, choose: impl Fn(Phase) -> bool) -> (Vec<String>, Vec<String>) {
        let chosen = |state: &KeyState| state.phase != Phase::Away && choose(state.phase);
        let chosen = self.keys.iter().filter(|(_, state)| chosen(state)).map(|(key, _)| key);
        chosen.map(|key| (key.aggregate_type().to_owned(), key.aggregate_id().to_owned())).unzip()
    }

    /// Gives waiting aggregates to the lanes: those that an idle lane can begin with, and those that a running one
    /// has not come to. Returns them.
    pub(super) fn start(&mut self, read: Sequence) -> Vec<AggregateKey> {
        let mut started = Vec::new();
        for (lane, position) in self.lanes.iter_mut().enumerate() {
            let chosen: Vec<&mut KeyState> = self
                .keys
                .iter_mut()
                .filter(|(_, state)| state.phase == Phase::Waiting)
                .filter(|(_, state)| lane != 0 || state.from > read.saturating_sub(SHORT))
                .filter(|(_, state)| position.is_none_or(|position| state.from > position))
                .map(|(key, state)| {
                    started.push(key.clone());
                    state
                })
                .collect();
            if position.is_none() {
                *position = chosen.iter().map(|state| state.from - 1).min();
            }
            chosen.into_iter().for_each(|state| state.phase = Phase::Passing(lane));
        }
        started
    }

    pub(super) fn lane(&self, lane: usize) -> Option<Sequence> {
        self.lanes[lane]
    }

    pub(super) fn advance(&mut self, lane: usize, position: Sequence) {
        self.lanes[lane] = Some(position);
    }

    /// The lane has come to the read position: its aggregates are as any other. Returns them.
    pub(super) fn complete(&mut self, lane: usize) -> Vec<AggregateKey> {
        self.lanes[lane] = None;
        let done = self.in_phase(Phase::Passing(lane));
        done.into_iter()
            .map(|(key, _)| {
                self.keys.remove(&key);
                key
            })
            .collect()
    }

    /// Below which number everything of the partition that is read by key has been returned; `None` if there is
    /// nothing.
    pub(super) fn floor(&self, partition: Partition) -> Option<Sequence> {
        let states = self.keys.values().filter(|state| state.lease.partition == partition);
        states
            .map(|state| match state.phase {
                Phase::Passing(lane) => self.lanes[lane].unwrap_or_default().max(state.from - 1),
                _ => state.from - 1,
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease = Lease { partition: 3, epoch: 1 };

    fn key(id: &str) -> AggregateKey {
        AggregateKey::new("t", id)
    }

    #[test]
    fn a_short_back_off_does_not_wait_for_a_long_one() {
        let mut keys = Keys::default();
        for (id, from) in [("long", 5), ("short", 999_990)] {
            keys.outstanding(key(id), LEASE, from);
            keys.wait(&key(id), LEASE, from);
        }
        assert_eq!(keys.start(1_000_000).len(), 2);
        assert_eq!((keys.lane(0), keys.lane(1)), (Some(999_989), Some(4)));
        assert_eq!(keys.complete(0), [key("short")]);
        assert_eq!(keys.floor(3), Some(4));
        // One that comes later joins the lane if it has not been passed.
        keys.wait(&key("late"), LEASE, 700);
        keys.advance(1, 600);
        keys.start(1_000_000);
        assert_eq!(keys.get(&key("late")).map(|state| state.phase), Some(Phase::Passing(1)));
        keys.wait(&key("passed"), LEASE, 500);
        keys.start(1_000_000);
        assert_eq!(keys.get(&key("passed")).map(|state| state.phase), Some(Phase::Waiting));
        assert_eq!(keys.floor(3), Some(499));
    }

    #[test]
    fn an_aggregate_outlives_the_absence_of_its_lease_but_not_a_new_epoch() {
        let mut keys = Keys::default();
        keys.outstanding(key("a"), LEASE, 10);
        keys.adopt(|_| None);
        assert!(keys.is_empty());
        keys.adopt(|_| Some(LEASE.epoch));
        assert_eq!(keys.get(&key("a")).map(|state| state.phase), Some(Phase::Inherited));
        assert_eq!(keys.floor(3), Some(9));
        keys.adopt(|_| Some(LEASE.epoch + 1));
        assert_eq!(keys.floor(3), None);
    }

    #[test]
    fn an_aggregate_that_is_being_read_is_not_forgotten() {
        let mut keys = Keys::default();
        keys.outstanding(key("a"), LEASE, 10);
        keys.wait(&key("a"), LEASE, 10);
        keys.held_again(&key("a"));
        assert_eq!(keys.floor(3), Some(9));
    }
}
