//! What the steward says: leases that come and go.

use super::Engine;
use crate::{Claimed, Lease, Monotonic, Partition, RelayId};

impl Engine {
    /// The relay has a row under this id.
    pub(crate) fn joined(&mut self, relay: RelayId, lease_until: Monotonic) {
        self.leases.joined(relay, lease_until);
        self.status.relay = Some(relay);
    }

    /// The row was renewed by a beat that was sent `lease_ttl` before this.
    pub(crate) fn renewed(&mut self, lease_until: Monotonic) {
        self.leases.renewed(lease_until);
    }

    /// The row is gone: nothing is owned any more.
    pub(crate) fn buried(&mut self) {
        self.lost(&self.leases.all());
        self.leases.buried();
        self.status.relay = None;
        self.status.buried += 1;
    }

    pub(crate) fn claimed(&mut self, now: Monotonic, claimed: &[Claimed]) {
        for &claimed in claimed {
            if claimed.owner_died {
                self.flights.suspect(self.config.in_flight_max);
            }
            self.leases.claimed(now, claimed);
        }
        self.status.partitions = self.leases.count();
        self.reading.wake(now);
    }

    /// These leases belong to another relay by now.
    pub(crate) fn lost(&mut self, leases: &[Lease]) {
        let gone = self.leases.lose(leases);
        if gone.is_empty() {
            return;
        }
        self.flights.lose(leases);
        self.lanes.lose_partitions(|partition| gone.contains(&partition));
        self.decided.lose(&gone);
        self.reading.forget_holds(|partition| gone.contains(&partition));
        self.status.partitions = self.leases.count();
    }

    /// Others should have these partitions: finish what is in flight, then release them.
    pub(crate) fn drain(&mut self, partitions: &[Partition]) {
        self.leases.drain(partitions);
        let leases = &self.leases;
        self.lanes.drain_partitions(|partition| leases.is_draining(partition));
        self.reading.forget_holds(|partition| leases.is_draining(partition));
    }

    pub(crate) fn paused_topics(&mut self, topics: Vec<String>) {
        self.scopes.pause(topics);
    }
}
