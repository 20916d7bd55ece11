//! Settling: outcomes are recorded, and only then are successors released.

use std::collections::HashSet;

use super::{Command, Engine};
use crate::relay::{ObservedSettle, StoreWork, happening::Written, lanes::LaneState, unrecorded::Again};
use crate::{
    AggregateKey, StoreError,
    clock::Monotonic,
    store::{Lease, Outcome, Partition, Sequence, Settlement, Successors, Unhold},
};

impl Engine {
    /// What is to be recorded now.
    pub(crate) fn next_settle(&mut self, now: Monotonic) -> Option<Command> {
        let relay = self.leases.relay()?;
        if !self.decided.is_settling()
            && let Some(again) = self.unrecorded.due(now)
        {
            self.ask_again(again);
        }
        self.decided.next(relay, |partition| self.leases.of(partition)).map(Command::Settle)
    }

    /// Has what the store refused recorded now, if it takes it by now.
    fn ask_again(&mut self, again: Again) {
        let Again { outcomes, unholds, attempts } = again;
        let partitions = outcomes.iter().map(|outcome| outcome.partition);
        for partition in partitions.chain(unholds.iter().map(|unhold| unhold.partition)) {
            self.leases.activate(partition);
        }
        self.decided.settle_again(outcomes, unholds);
        for key in attempts {
            self.lanes.take_back(&key);
        }
    }

    /// The settle has committed, less what the store refused.
    pub(crate) fn settled(&mut self, now: Monotonic, written: Written) {
        self.account.store_answered(now, StoreWork::Settling);
        let Some(request) = self.decided.settled() else { return };
        let Written { settled, refused, plain, unholds, took } = written;
        let owned: HashSet<Lease> = request
            .leases
            .iter()
            .copied()
            .filter(|lease| self.leases.owns(*lease) && !settled.fenced.contains(&lease.partition))
            .collect();
        let fenced: Vec<Lease> = request
            .leases
            .iter()
            .copied()
            .filter(|lease| settled.fenced.contains(&lease.partition))
            .collect();
        let mut observed = ObservedSettle { fenced: fenced.len() as u64, took, ..ObservedSettle::default() };
        let mut given_up = Vec::new();
        let owned: HashSet<Partition> = owned.iter().map(|lease| lease.partition).collect();
        let unrecorded: HashSet<Sequence> =
            refused.iter().map(|(settlement, _)| settlement.sequence).collect();
        let still_held: HashSet<AggregateKey> =
            unholds.iter().map(|(unhold, _)| unhold.key.clone()).collect();
        // Before those that are recorded: of one aggregate there may be both.
        self.set_aside(now, &owned, refused, unholds);
        for (settlement, error) in &plain {
            self.account.recorded_plainly(settlement, error);
        }
        for settlement in &request.settlements {
            if owned.contains(&settlement.partition) && !unrecorded.contains(&settlement.sequence) {
                self.lanes.forget(settlement.sequence, 0);
                self.leases.deactivate(settlement.partition);
                match &settlement.outcome {
                    Outcome::Sent => observed.sent += 1,
                    Outcome::Retry { .. } => observed.retried += 1,
                    Outcome::Failed { .. } => {
                        observed.failed += 1;
                        given_up.extend(self.decided.failed(settlement.sequence));
                    }
                }
                self.committed(settlement);
                self.recorded(&settlement.key);
            }
        }
        for Unhold { key, partition, .. } in &request.unholds {
            if owned.contains(partition) && !still_held.contains(key) {
                self.leases.deactivate(*partition);
                self.release_lane(key, true);
                self.recorded(key);
            }
        }
        self.account.settled(now, &observed, &given_up);
        self.lost(&fenced);
        if self.reading.has_ended_holds() {
            self.reading.wake(now);
        }
    }

    /// Sets aside what the store refuses, and its aggregates with it.
    fn set_aside(
        &mut self,
        now: Monotonic,
        owned: &HashSet<Partition>,
        outcomes: Vec<(Settlement, StoreError)>,
        unholds: Vec<(Unhold, StoreError)>,
    ) {
        for (settlement, error) in outcomes.into_iter().filter(|(one, _)| owned.contains(&one.partition)) {
            let (key, sequence) = (settlement.key.clone(), settlement.sequence);
            // A partition whose outcomes are refused can still be given to others.
            self.leases.deactivate(settlement.partition);
            self.lanes.set_aside(&key, settlement.partition);
            let new = self.unrecorded.refuse(now, settlement);
            self.account.refused(now, &key, Some(sequence), new, &error);
        }
        for (unhold, error) in unholds.into_iter().filter(|(one, _)| owned.contains(&one.partition)) {
            let (key, sequence) = (unhold.key.clone(), unhold.sequence);
            self.leases.deactivate(unhold.partition);
            self.lanes.set_aside(&key, unhold.partition);
            let new = self.unrecorded.refuse_unhold(now, unhold);
            self.account.refused(now, &key, sequence, new, &error);
        }
    }

    /// Something of the aggregate is recorded: if nothing is left that the store refused, it goes on.
    pub(super) fn recorded(&mut self, key: &AggregateKey) {
        if self.unrecorded.settled(key) {
            self.lanes.take_back(key);
            self.account.taken_back(key);
        }
    }

    pub(super) fn committed(&mut self, settlement: &Settlement) {
        let Settlement { sequence, partition, key, outcome, .. } = settlement;
        let held_back = |engine: &mut Self| {
            if engine.lanes.hold_committed(key) {
                engine.hold_ended(key.clone(), *partition, false);
            }
        };
        match outcome {
            Outcome::Sent => self.release_held_event(key, *sequence),
            Outcome::Retry { .. } | Outcome::Failed { successors: Successors::Park, .. } => held_back(self),
            Outcome::Failed { successors: Successors::Release, .. } => {
                self.release_held_event(key, *sequence);
                self.release_lane(key, false);
            }
        }
    }

    /// If the event was the one the aggregate was held behind, the hold is gone with it.
    pub(super) fn release_held_event(&mut self, key: &AggregateKey, sequence: Sequence) {
        let held = self
            .lanes
            .get_mut(key)
            .and_then(|lane| lane.hold.as_ref())
            .is_some_and(|hold| hold.sequence == Some(sequence) && hold.item.is_none());
        if held {
            self.release_lane(key, true);
        }
    }

    pub(super) fn release_lane(&mut self, key: &AggregateKey, hold_removed: bool) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if hold_removed && lane.hold.take().is_some() {
            let partition = lane.partition;
            self.hold_ended(key.clone(), partition, true);
        }
        if let Some(lane) = self.lanes.get_mut(key)
            && lane.state == LaneState::Settling
        {
            lane.state = LaneState::Open;
        }
        self.lanes.offer(key);
    }
}
