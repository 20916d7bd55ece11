//! What the relay owns, and for how long: [`Leases`].

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Monotonic,
    store::{Claimed, Lease, Partition, RelayId},
};

#[derive(Debug)]
struct LeaseState {
    lease: Lease,
    /// Its last owner died, and this relay claimed it then.
    died_at: Option<Monotonic>,
    /// To be released once nothing of it is in flight or unsettled.
    draining: bool,
    /// Events and holds in flight or unsettled.
    active: usize,
}

/// The relay's row in the store, and its leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    relay: Option<RelayId>,
    until: Monotonic,
    states: BTreeMap<Partition, LeaseState>,
}

impl Leases {
    /// The relay's id, while it has a row.
    pub(crate) fn relay(&self) -> Option<RelayId> {
        self.relay
    }

    pub(crate) fn count(&self) -> usize {
        self.states.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// True if what takes this long ends before the leases can.
    pub(crate) fn suffice(&self, now: Monotonic, duration: Duration) -> bool {
        now + duration <= self.until
    }

    pub(crate) fn joined(&mut self, relay: RelayId, until: Monotonic) {
        self.relay = Some(relay);
        self.until = until;
    }

    pub(crate) fn renewed(&mut self, until: Monotonic) {
        self.until = self.until.max(until);
    }

    /// The relay has no row any more. Its leases are to be lost by themselves.
    pub(crate) fn buried(&mut self) {
        self.relay = None;
        self.until = Duration::ZERO;
    }

    pub(crate) fn claimed(&mut self, now: Monotonic, claimed: Claimed) {
        let Claimed { lease, owner_died } = claimed;
        let died_at = owner_died.then_some(now);
        self.states.insert(lease.partition, LeaseState { lease, died_at, draining: false, active: 0 });
    }

    /// Others have these leases by now: those of them that were owned until now.
    pub(crate) fn lose(&mut self, leases: &[Lease]) -> Vec<Lease> {
        let mut gone = Vec::new();
        for lease in leases {
            if self.owns(*lease) {
                self.states.remove(&lease.partition);
                gone.push(*lease);
            }
        }
        gone
    }

    pub(crate) fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(state) = self.states.get_mut(partition) {
                state.draining = true;
            }
        }
    }

    /// What is to be released and has nothing in flight or unsettled any more.
    pub(crate) fn drained(&self) -> Vec<Lease> {
        self.states
            .values()
            .filter(|state| state.draining && state.active == 0)
            .map(|state| state.lease)
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<Lease> {
        self.states.values().map(|state| state.lease).collect()
    }

    /// The leases to read under.
    pub(crate) fn readable(&self, may_read: impl Fn(Partition) -> bool) -> Vec<Lease> {
        self.states
            .values()
            .filter(|state| !state.draining && may_read(state.lease.partition))
            .map(|state| state.lease)
            .collect()
    }

    pub(crate) fn owns(&self, lease: Lease) -> bool {
        self.of(lease.partition) == Some(lease)
    }

    pub(crate) fn of(&self, partition: Partition) -> Option<Lease> {
        self.states.get(&partition).map(|state| state.lease)
    }

    /// The partition is owned, and is to be given up.
    pub(crate) fn is_draining(&self, partition: Partition) -> bool {
        self.states.get(&partition).is_some_and(|state| state.draining)
    }

    /// The partition is owned, and is not to be given up.
    pub(crate) fn is_kept(&self, partition: Partition) -> bool {
        self.states.get(&partition).is_some_and(|state| !state.draining)
    }

    /// When the partition was claimed, if its last owner had died.
    pub(crate) fn died_at(&self, partition: Partition) -> Option<Monotonic> {
        self.states.get(&partition).and_then(|state| state.died_at)
    }

    /// An event or a hold of the partition is in flight from now on, or unsettled.
    pub(crate) fn activate(&mut self, partition: Partition) {
        if let Some(state) = self.states.get_mut(&partition) {
            state.active += 1;
        }
    }

    /// It no longer is.
    pub(crate) fn deactivate(&mut self, partition: Partition) {
        if let Some(state) = self.states.get_mut(&partition) {
            state.active = state.active.saturating_sub(1);
        }
    }
}
