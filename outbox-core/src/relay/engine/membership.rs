//! What the steward says: leases that come and go.

use std::{collections::HashSet, time::Duration};

use super::{Engine, LeaseState};
use crate::{Claimed, Lease, Monotonic, Partition, RelayId};

impl Engine {
    /// The relay has a row under this id.
    pub(crate) fn joined(&mut self, relay: RelayId, lease_until: Monotonic) {
        self.relay = Some(relay);
        self.lease_until = lease_until;
        self.status.relay = Some(relay);
    }

    /// The row was renewed by a beat that was sent `lease_ttl` before this.
    pub(crate) fn renewed(&mut self, lease_until: Monotonic) {
        self.lease_until = self.lease_until.max(lease_until);
    }

    /// The row is gone: nothing is owned any more.
    pub(crate) fn buried(&mut self) {
        let owned: Vec<Lease> = self.leases.values().map(|state| state.lease).collect();
        self.lost(&owned);
        self.relay = None;
        self.lease_until = Duration::ZERO;
        self.status.relay = None;
        self.status.buried += 1;
    }

    pub(crate) fn claimed(&mut self, now: Monotonic, claimed: &[Claimed]) {
        for &Claimed { lease, owner_died } in claimed {
            let died_at = owner_died.then_some(now);
            if owner_died {
                // At the time of its death it had at most this many events in flight, at the heads of their lanes.
                self.suspects_left = self.config.in_flight_max;
            }
            self.leases.insert(lease.partition, LeaseState { lease, died_at, draining: false, active: 0 });
        }
        self.status.partitions = self.leases.len();
        self.polling.wake(now);
    }

    /// These leases belong to somebody else by now.
    pub(crate) fn lost(&mut self, leases: &[Lease]) {
        let gone: HashSet<Partition> = leases
            .iter()
            .filter(|lease| self.leases.get(&lease.partition).is_some_and(|state| state.lease == **lease))
            .map(|lease| lease.partition)
            .collect();
        if gone.is_empty() {
            return;
        }
        let flights =
            self.calls.values().flat_map(|call| call.flights.iter().flatten()).chain(&self.attempting);
        for flight in flights.filter(|flight| leases.contains(&flight.lease())) {
            *self.strays.entry(flight.item.partition).or_default() += 1;
        }
        self.leases.retain(|partition, _| !gone.contains(partition));
        self.lanes.lose_partitions(|partition| gone.contains(&partition));
        self.outcomes.retain(|outcome| !gone.contains(&outcome.partition));
        self.unholds.retain(|unhold| !gone.contains(&unhold.partition));
        self.ended_holds.retain(|end| !gone.contains(&end.partition));
        self.status.partitions = self.leases.len();
    }

    /// Others should have these partitions: finish what is in flight, then release them.
    pub(crate) fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(state) = self.leases.get_mut(partition) {
                state.draining = true;
            }
        }
        let leases = &self.leases;
        let draining = |partition| leases.get(&partition).is_some_and(|state| state.draining);
        self.lanes.drain_partitions(draining);
        self.ended_holds.retain(|end| !draining(end.partition));
    }

    pub(crate) fn paused_topics(&mut self, topics: Vec<String>) {
        self.paused_topics = topics.into_iter().collect();
    }
}
