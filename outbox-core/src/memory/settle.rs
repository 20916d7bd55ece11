//! Recording outcomes, as [`OutboxStore::settle`](crate::OutboxStore::settle) asks.

use super::{
    state::{Life, State},
    time::{Time, after},
};
use crate::{
    WhenSent,
    store::{Hold, Lease, Outcome, SettleRequest, Settled, Settlement, Unhold},
};

impl State {
    /// Records outcomes under their leases, and names the partitions whose lease is lost.
    pub(super) fn settle(&mut self, request: &SettleRequest, now: Time) -> Settled {
        let fenced = request.fenced(|lease: Lease| self.has_lease(request.relay, lease));
        for settlement in request.settlements_in_order(&fenced) {
            self.settle_one(settlement, request.when_sent, now);
        }
        for unhold in request.unholds_of(&fenced) {
            self.unhold(unhold, now);
        }
        Settled { fenced }
    }

    /// Puts what `change` makes of an aggregate's hold in its place.
    pub(super) fn change_hold(
        &mut self,
        key: &crate::AggregateKey,
        change: impl FnOnce(Option<Hold<Time>>) -> Option<Hold<Time>>,
    ) {
        match change(self.holds.get(key).copied()) {
            Some(hold) => drop(self.holds.insert(key.clone(), hold)),
            None => drop(self.holds.remove(key)),
        }
    }

    fn settle_one(&mut self, settlement: &Settlement, when_sent: WhenSent, now: Time) {
        let sequence = settlement.sequence;
        let applied = self.update(sequence, |row| {
            if row.life != Life::Pending || row.partition != settlement.partition {
                return false;
            }
            row.attempts = settlement.attempts;
            match &settlement.outcome {
                Outcome::Sent => row.life = Life::Sent { at: now },
                Outcome::Retry { error, .. } => row.last_error = Some(error.clone()),
                Outcome::Failed { cause, error, .. } => {
                    row.life = Life::Failed { at: now, cause: *cause };
                    row.last_error = Some(error.clone());
                }
            }
            true
        });
        if !applied {
            return;
        }
        self.change_hold(&settlement.key, |hold| Hold::settled(hold, settlement, now, after));
        if settlement.outcome == Outcome::Sent {
            self.dispose(sequence, when_sent);
        }
    }

    fn dispose(&mut self, sequence: crate::store::Sequence, when_sent: WhenSent) {
        if when_sent == WhenSent::Keep {
            return;
        }
        if let Some(row) = self.remove(sequence)
            && when_sent == WhenSent::Archive
        {
            self.archive.insert(sequence, row);
        }
    }

    fn unhold(&mut self, unhold: &Unhold, now: Time) {
        let Some(hold) = self.holds.get(&unhold.key).copied() else { return };
        let pending = |sequence| self.pending_due(sequence, now).is_some();
        if hold.unheld(unhold, now, pending).is_none() {
            self.holds.remove(&unhold.key);
        }
    }
}
