//! What is decided and not yet recorded: [`Decided`].

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::GivenUp;
use crate::{
    WhenSent,
    store::{Lease, Partition, RelayId, Sequence, SettleRequest, Settlement, Unhold},
};

/// Outcomes on their way into the store.
#[derive(Debug)]
pub(crate) struct Decided {
    events_max: usize,
    when_sent: WhenSent,
    outcomes: Vec<Settlement>,
    unholds: Vec<Unhold>,
    /// What the store has refused before: apart, so that it cannot keep others waiting.
    again: (Vec<Settlement>, Vec<Unhold>),
    /// What the store is being asked to record.
    settling: Option<Arc<SettleRequest>>,
    /// What is told of the events that are to be recorded as failed.
    failing: BTreeMap<Sequence, (Partition, GivenUp)>,
}

impl Decided {
    /// Nothing is decided. At most `events_max` outcomes are recorded at once.
    pub(crate) fn new(events_max: usize, when_sent: WhenSent) -> Self {
        let (outcomes, unholds, failing) = (Vec::new(), Vec::new(), BTreeMap::new());
        let again = (Vec::new(), Vec::new());
        Self { events_max, when_sent, outcomes, unholds, again, settling: None, failing }
    }

    /// How many events have an outcome that is not recorded.
    pub(crate) fn count(&self) -> usize {
        let settling = self.settling.as_ref().map_or(0, |request| request.settlements.len());
        self.outcomes.len() + self.again.0.len() + settling
    }

    /// No outcome waits to be recorded.
    pub(crate) fn has_none_waiting(&self) -> bool {
        self.outcomes.is_empty()
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    pub(crate) fn settle(&mut self, settlement: Settlement) {
        self.outcomes.push(settlement);
    }

    /// These were refused before, and are to be recorded now.
    pub(crate) fn settle_again(&mut self, outcomes: Vec<Settlement>, unholds: Vec<Unhold>) {
        self.again = (outcomes, unholds);
    }

    /// The event is to be recorded as failed, which its [`settle`](Self::settle) says as well.
    pub(crate) fn fail(&mut self, partition: Partition, event: GivenUp) {
        self.failing.insert(event.sequence, (partition, event));
    }

    /// The event is recorded as failed.
    pub(crate) fn failed(&mut self, sequence: Sequence) -> Option<GivenUp> {
        self.failing.remove(&sequence).map(|(_, event)| event)
    }

    pub(crate) fn unhold(&mut self, unhold: Unhold) {
        self.unholds.push(unhold);
    }

    /// Holds that hold nothing are left to the next relay.
    pub(crate) fn drop_unholds(&mut self) {
        self.unholds.clear();
    }

    /// What is to be recorded next, under the leases that `lease_of` knows. `None` if there is nothing, or if
    /// the last is still being recorded.
    pub(crate) fn next(
        &mut self,
        relay: RelayId,
        lease_of: impl Fn(Partition) -> Option<Lease>,
    ) -> Option<Arc<SettleRequest>> {
        if self.settling.is_some() {
            return None;
        }
        let (mut settlements, mut unholds) = std::mem::take(&mut self.again);
        if settlements.is_empty() && unholds.is_empty() {
            let count = self.outcomes.len().min(self.events_max);
            settlements = self.outcomes.drain(..count).collect();
            unholds = std::mem::take(&mut self.unholds);
        }
        if settlements.is_empty() && unholds.is_empty() {
            return None;
        }
        let partitions: BTreeSet<Partition> = settlements
            .iter()
            .map(|settlement| settlement.partition)
            .chain(unholds.iter().map(|unhold| unhold.partition))
            .collect();
        let leases = partitions.into_iter().filter_map(lease_of).collect();
        let request =
            Arc::new(SettleRequest { relay, leases, settlements, unholds, when_sent: self.when_sent });
        self.settling = Some(Arc::clone(&request));
        Some(request)
    }

    /// What was being recorded has been.
    pub(crate) fn settled(&mut self) -> Option<Arc<SettleRequest>> {
        self.settling.take()
    }

    /// These partitions are lost: what was decided of them is void.
    pub(crate) fn lose(&mut self, gone: &HashSet<Partition>) {
        self.outcomes.retain(|outcome| !gone.contains(&outcome.partition));
        self.unholds.retain(|unhold| !gone.contains(&unhold.partition));
        self.again.0.retain(|outcome| !gone.contains(&outcome.partition));
        self.again.1.retain(|unhold| !gone.contains(&unhold.partition));
        self.failing.retain(|_, (partition, _)| !gone.contains(partition));
    }
}
