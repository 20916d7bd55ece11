//! What the steward says: leases that come and go.

use std::collections::HashSet;

use super::Engine;
use crate::{
    StoreError,
    clock::Monotonic,
    relay::StoreWork,
    store::{Claimed, Lease, Partition, Purged, RelayId},
};

impl Engine {
    /// The relay has a row under this id.
    pub(crate) fn joined(&mut self, now: Monotonic, relay: RelayId, lease_until: Monotonic) {
        self.leases.joined(relay, lease_until);
        self.account.store_answered(now, StoreWork::Lease);
        self.account.joined(relay, lease_until);
    }

    /// The row was renewed by a beat that was sent `lease_ttl` before this.
    pub(crate) fn renewed(&mut self, now: Monotonic, lease_until: Monotonic) {
        self.leases.renewed(lease_until);
        self.account.store_answered(now, StoreWork::Lease);
        self.account.renewed(lease_until);
    }

    /// The partitions and their owners were looked at, for the first time or after trouble.
    pub(crate) fn looked(&mut self, now: Monotonic) {
        self.account.store_answered(now, StoreWork::Membership);
        self.account.membership_seen();
    }

    /// Retention removed rows.
    pub(crate) fn purged(&mut self, now: Monotonic, purged: &Purged) {
        self.account.store_answered(now, StoreWork::Retention);
        self.account.purged(purged);
    }

    /// The store did not do what it was asked; it is asked again.
    pub(crate) fn store_failed(&mut self, now: Monotonic, work: StoreWork, error: &StoreError) {
        self.account.store_failed(now, work, error);
    }

    /// The row is gone: nothing is owned any more.
    pub(crate) fn buried(&mut self) {
        self.lost(&self.leases.all());
        self.leases.buried();
        self.account.buried();
    }

    pub(crate) fn claimed(&mut self, now: Monotonic, claimed: &[Claimed]) {
        for &claimed in claimed {
            if claimed.owner_died {
                self.flights.suspect(self.config.in_flight_max);
            }
            self.leases.claimed(now, claimed);
        }
        let partitions = claimed.iter().map(|claimed| claimed.lease.partition).collect();
        self.account.claimed(partitions, self.leases.count());
        self.reading.wake(now);
    }

    /// These leases belong to another relay by now.
    pub(crate) fn lost(&mut self, leases: &[Lease]) {
        let partitions = self.lose(leases);
        if !partitions.is_empty() {
            self.account.lost(partitions, self.leases.count());
        }
    }

    /// Forgets all about these leases: the partitions that were owned until now.
    pub(super) fn lose(&mut self, leases: &[Lease]) -> Vec<Partition> {
        // A lease can be lost twice, once by a settle that was fenced and once by what the steward sees.
        let lost = self.leases.lose(leases);
        if lost.is_empty() {
            return Vec::new();
        }
        let gone: HashSet<Partition> = lost.iter().map(|lease| lease.partition).collect();
        self.flights.lose(&lost);
        self.lanes.lose_partitions(|partition| gone.contains(&partition));
        self.decided.lose(&gone);
        self.unrecorded.lose(|partition| gone.contains(&partition));
        self.reading.forget_holds(|partition| gone.contains(&partition));
        let mut gone: Vec<Partition> = gone.into_iter().collect();
        gone.sort_unstable();
        gone
    }

    /// Others should have these partitions: finish what is in flight, then release them.
    pub(crate) fn drain(&mut self, partitions: &[Partition]) {
        self.leases.drain(partitions);
        let leases = &self.leases;
        self.lanes.drain_partitions(|partition| leases.is_draining(partition));
        self.reading.forget_holds(|partition| leases.is_draining(partition));
    }

    pub(crate) fn paused_topics(&mut self, topics: Vec<String>) {
        self.account.topics_paused(&topics);
        self.scopes.pause(topics);
    }
}
