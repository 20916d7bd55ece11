//! Aggregates that are read by key: from a due hold until everything that waited behind it has been returned,
//! and from when the relay has enough of one until it has been caught up with.
//!
//! ```text
//!  due hold returned          hold removed            a lane begins          all read up to R
//!  ───────────────► Outstanding ─────────► Waiting ──────────────► Passing ─────────────► (as any other)
//!                        └─ held again ─► (excluded by its hold)
//!
//!  named as full                not named any more          all read up to R
//!  ─────────────► Full ───────────────────────────► Hot ─────────────────► (as any other)
//!                   └◄────────── named again ────────┘
//! ```
//! An aggregate in any of these states contributes nothing to the main scan. One that waits or passes and is
//! named as full leaves its lane, which goes on without it; when it is named no more, it is read from where
//! it was left, beside the lanes, so that it keeps no other back there.

use std::collections::{HashMap, HashSet};

use outbox_core::{
    AggregateKey,
    store::{Epoch, Lease, Partition, Sequence},
};

use super::progress::Progress;
use crate::database::Inherited;

/// Two passes may run side by side, so that a short back-off need not wait for an aggregate that was parked a
/// week ago.
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
    /// The relay wants no more of it at present, having been given this much.
    Full(Progress),
    /// It was full, and is read on from here.
    Hot(Progress),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct KeyState {
    pub(super) lease: Lease,
    /// Nothing of the aggregate below waits to be returned, or can still commit there, but scheduled events.
    pub(super) from: Sequence,
    pub(super) phase: Phase,
}

impl KeyState {
    fn full(lease: Lease, position: Progress) -> Self {
        Self { lease, from: position.visible + 1, phase: Phase::Full(position) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: HashMap<AggregateKey, KeyState>,
    /// Where each lane is, while it runs.
    lanes: [Option<Progress>; LANES],
}

impl Keys {
    pub(super) fn inherit(&mut self, inherited: Inherited) {
        for (key, lease, from) in inherited {
            self.keys.insert(key, KeyState { lease, from, phase: Phase::Away });
        }
    }

    /// Those without a hold are not among them: the next reader comes to them from the floor.
    pub(super) fn bequeath(&self) -> Inherited {
        let held = self.keys.iter().filter(|(_, state)| is_held(state.phase));
        held.map(|(key, state)| (key.clone(), state.lease, state.from)).collect()
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
        *state = KeyState { from: state.from.min(from), phase: Phase::Waiting, ..*state };
    }

    /// The aggregate is held again. One that is being read already is not forgotten: its rows have to be
    /// returned.
    pub(super) fn held_again(&mut self, key: &AggregateKey) {
        if self.keys.get(key).is_some_and(|s| matches!(s.phase, Phase::Outstanding | Phase::Inherited)) {
            self.keys.remove(key);
        }
    }

    /// Takes note of the leases that are asked for: what belongs to an older epoch is forgotten. What belongs
    /// to a partition that is not asked for is put away if it has a hold, since its lease may come back; else
    /// the partition will be read from its floor, which is not above.
    pub(super) fn adopt(&mut self, epoch: impl Fn(Partition) -> Option<Epoch>) {
        self.keys.retain(|_, state| match epoch(state.lease.partition) {
            Some(epoch) => epoch == state.lease.epoch,
            None => is_held(state.phase),
        });
        for state in self.keys.values_mut() {
            state.phase = match (epoch(state.lease.partition), state.phase) {
                (None, _) => Phase::Away,
                (Some(_), Phase::Away) => Phase::Inherited,
                (Some(_), phase) => phase,
            };
        }
    }

    /// Takes note of the aggregates that are full, as far as they are known here, and returns those that are
    /// so no more.
    pub(super) fn set_full(&mut self, full: &[AggregateKey]) -> Vec<AggregateKey> {
        let full: HashSet<&AggregateKey> = full.iter().collect();
        let mut relieved = Vec::new();
        for (key, state) in &mut self.keys {
            match (state.phase, full.contains(key)) {
                (Phase::Full(position), false) => {
                    relieved.push(key.clone());
                    state.phase = Phase::Hot(position);
                }
                (Phase::Hot(position), true) => state.phase = Phase::Full(position),
                (Phase::Waiting, true) => state.phase = Phase::Full(Progress::at(state.from - 1)),
                (Phase::Passing(lane), true) => {
                    let start = Progress::at(state.from - 1);
                    let position = self.lanes[lane].map_or(start, |position| position.max(start));
                    *state = KeyState::full(state.lease, position);
                }
                _ => {}
            }
        }
        self.tidy_lanes();
        relieved
    }

    /// The aggregate, which is not known here, is full.
    pub(super) fn put_full(&mut self, key: AggregateKey, lease: Lease, position: Progress) {
        self.keys.insert(key, KeyState::full(lease, position));
    }

    /// Where the pass over those that were full is: at the one that is furthest behind. There are two such
    /// passes, so that one which is `near` R need not wait for one with a long backlog.
    pub(super) fn hot(&self, near: bool, read: Sequence) -> Option<Progress> {
        let hot = self.keys.values().filter_map(|state| match state.phase {
            Phase::Hot(at) if is_near(at, read) == near => Some(at),
            _ => None,
        });
        hot.reduce(Progress::min)
    }

    /// The same pass has come to `position`. Returns those that have come to R.
    pub(super) fn advance_hot(
        &mut self,
        near: bool,
        read: Sequence,
        position: Progress,
    ) -> Vec<AggregateKey> {
        let mut done = Vec::new();
        self.keys.retain(|key, state| {
            let Phase::Hot(at) = state.phase else { return true };
            if is_near(at, read) != near {
                return true;
            }
            let at = at.max(position);
            *state = KeyState { from: at.visible + 1, phase: Phase::Hot(at), ..*state };
            if position.read >= read {
                done.push(key.clone());
            }
            position.read < read
        });
        done
    }

    /// Something that was full is still to be caught up with.
    pub(super) fn is_hot(&self) -> bool {
        self.keys.values().any(|state| matches!(state.phase, Phase::Hot(_)))
    }

    /// An empty lane is free, and one whose aggregates are all ahead of it goes there.
    fn tidy_lanes(&mut self) {
        for (lane, position) in self.lanes.iter_mut().enumerate() {
            let passing = self.keys.values().filter(|state| state.phase == Phase::Passing(lane));
            let first = passing.map(|state| Progress::at(state.from - 1)).reduce(Progress::min);
            *position = position.and_then(|position| first.map(|first| first.max(position)));
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

    /// Gives waiting aggregates to the lanes: those that an idle lane can begin with, and those that a
    /// running one has not come to. Returns them.
    pub(super) fn start(&mut self, read: Sequence) -> Vec<AggregateKey> {
        let mut started = Vec::new();
        for (lane, position) in self.lanes.iter_mut().enumerate() {
            let chosen: Vec<&mut KeyState> = self
                .keys
                .iter_mut()
                .filter(|(_, state)| state.phase == Phase::Waiting)
                .filter(|(_, state)| lane != 0 || state.from > read.saturating_sub(SHORT))
                .filter(|(_, state)| position.is_none_or(|position| state.from > position.read))
                .map(|(key, state)| {
                    started.push(key.clone());
                    state
                })
                .collect();
            if position.is_none() {
                *position = chosen.iter().map(|state| Progress::at(state.from - 1)).reduce(Progress::min);
            }
            chosen.into_iter().for_each(|state| state.phase = Phase::Passing(lane));
        }
        started
    }

    pub(super) fn lane(&self, lane: usize) -> Option<Progress> {
        self.lanes[lane]
    }

    pub(super) fn advance(&mut self, lane: usize, position: Progress) {
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

    /// Below which number everything of the partition that is read by key has been returned; `None` if there
    /// is nothing.
    pub(super) fn floor(&self, partition: Partition) -> Option<Sequence> {
        let states = self.keys.values().filter(|state| state.lease.partition == partition);
        states
            .map(|state| match state.phase {
                Phase::Passing(lane) => {
                    self.lanes[lane].map_or(0, |position| position.visible).max(state.from - 1)
                }
                _ => state.from - 1,
            })
            .min()
    }
}

/// One pass reaches R in a few steps.
pub(super) fn is_near(at: Progress, read: Sequence) -> bool {
    at.visible > read.saturating_sub(SHORT)
}

/// It has a hold, as far as is known here.
pub(super) fn is_held(phase: Phase) -> bool {
    matches!(phase, Phase::Outstanding | Phase::Inherited | Phase::Away)
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
        assert_eq!([keys.lane(0), keys.lane(1)], [999_989, 4].map(|at| Some(Progress::at(at))));
        assert_eq!(keys.complete(0), [key("short")]);
        assert_eq!(keys.floor(3), Some(4));
        // One that comes later joins the lane if it has not been passed.
        keys.wait(&key("late"), LEASE, 700);
        keys.advance(1, Progress::at(600));
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
        assert!(keys.keys.values().all(|state| state.phase == Phase::Away));
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
    #[test]
    fn a_full_aggregate_leaves_its_lane_and_is_read_on_from_where_it_was_left() {
        let mut keys = Keys::default();
        for (id, from) in [("hot", 10), ("other", 5_000)] {
            keys.outstanding(key(id), LEASE, from);
            keys.wait(&key(id), LEASE, from);
        }
        keys.start(10_000);
        assert_eq!(keys.lane(0), Some(Progress::at(9)));
        keys.advance(0, Progress { read: 400, visible: 300 });
        assert!(keys.set_full(&[key("hot")]).is_empty());
        assert_eq!(keys.lane(0), Some(Progress::at(4_999)), "the lane goes to the other one");
        assert_eq!(keys.floor(3), Some(300), "above which something may still commit");
        assert_eq!(keys.hot(true, 1_000), None);
        assert_eq!(keys.complete(0), [key("other")]);
        assert_eq!(keys.set_full(&[]), [key("hot")]);
        assert_eq!(keys.hot(true, 1_000), Some(Progress { read: 400, visible: 300 }));
        assert!(keys.advance_hot(true, 1_000, Progress { read: 900, visible: 700 }).is_empty());
        assert!(keys.set_full(&[key("hot")]).is_empty());
        assert_eq!((keys.hot(true, 1_000), keys.floor(3)), (None, Some(700)));
        keys.set_full(&[]);
        assert_eq!(keys.advance_hot(true, 1_000, Progress::at(1_000)), [key("hot")]);
        assert!(keys.keys.values().all(|state| state.phase == Phase::Away));
    }

    #[test]
    fn of_those_that_were_full_the_one_with_a_long_backlog_does_not_keep_the_other_back() {
        let (mut keys, read) = (Keys::default(), 1_000_000);
        for (id, at) in [("far", 50), ("near", 999_000)] {
            keys.put_full(key(id), LEASE, Progress::at(at));
        }
        keys.set_full(&[]);
        assert_eq!(keys.hot(false, read), Some(Progress::at(50)));
        assert_eq!(keys.hot(true, read), Some(Progress::at(999_000)));
        assert_eq!(keys.advance_hot(true, read, Progress::at(read)), [key("near")]);
        assert!(keys.advance_hot(false, read, Progress::at(20_050)).is_empty());
        assert_eq!(keys.hot(false, read), Some(Progress::at(20_050)));
    }

    #[test]
    fn a_lane_whose_only_aggregate_is_full_is_free() {
        let mut keys = Keys::default();
        keys.outstanding(key("hot"), LEASE, 10);
        keys.wait(&key("hot"), LEASE, 10);
        keys.start(100);
        keys.set_full(&[key("hot")]);
        assert_eq!((keys.lane(0), keys.lane(1)), (None, None));
        keys.wait(&key("new"), LEASE, 5);
        assert_eq!(keys.start(100), [key("new")]);
    }

    #[test]
    fn what_is_full_is_not_put_away_with_its_lease() {
        let mut keys = Keys::default();
        keys.put_full(key("hot"), LEASE, Progress { read: 400, visible: 300 });
        keys.outstanding(key("held"), LEASE, 10);
        assert_eq!(keys.bequeath(), [(key("held"), LEASE, 10)]);
        keys.adopt(|_| None);
        keys.adopt(|_| Some(LEASE.epoch));
        assert!(keys.get(&key("hot")).is_none(), "its partition is read from the floor");
    }
}
