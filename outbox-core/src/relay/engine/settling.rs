//! Settling: outcomes are recorded, and only then are successors released.

use std::{collections::HashSet, time::Duration};

use super::{Command, Engine};
use crate::relay::{ObservedSettle, StoreWork, lanes::LaneState};
use crate::{
    AggregateKey,
    clock::Monotonic,
    store::{Lease, Outcome, Partition, Sequence, Settled, Settlement, Successors, Unhold},
};

impl Engine {
    /// What is to be recorded now.
    pub(crate) fn next_settle(&mut self) -> Option<Command> {
        let relay = self.leases.relay()?;
        self.decided.next(relay, |partition| self.leases.of(partition)).map(Command::Settle)
    }

    /// The settle has committed, after so long.
    pub(crate) fn settled(&mut self, now: Monotonic, settled: &Settled, took: Duration) {
        self.account.store_answered(StoreWork::Settling);
        let Some(request) = self.decided.settled() else { return };
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
        for settlement in &request.settlements {
            if owned.contains(&settlement.partition) {
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
            }
        }
        for Unhold { key, partition, .. } in &request.unholds {
            if owned.contains(partition) {
                self.leases.deactivate(*partition);
                self.release_lane(key, true);
            }
        }
        self.account.settled(&observed, &given_up);
        self.lost(&fenced);
        if self.reading.has_ended_holds() {
            self.reading.wake(now);
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
