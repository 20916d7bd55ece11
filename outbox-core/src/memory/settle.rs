//! Recording outcomes: the rules of [`OutboxStore::settle`](crate::OutboxStore::settle), word for word.

use super::state::{Hold, Life, State, Time, after};
use crate::{
    HoldReason, Lease, Outcome, Partition, RelayId, SettleRequest, Settled, Settlement, Successors, Unhold,
    WhenSent,
};

impl State {
    /// Records outcomes under their leases, and names the partitions whose lease is lost.
    pub(super) fn settle(&mut self, request: &SettleRequest, now: Time) -> Settled {
        // Ascending, so that a retry that comes after the end of the held event leaves its own hold behind.
        let mut settlements: Vec<&Settlement> = request.settlements.iter().collect();
        settlements.sort_by_key(|settlement| settlement.sequence);

        let mut fenced: Vec<Partition> = request.leases.iter().map(|lease| lease.partition).collect();
        fenced.extend(request.settlements.iter().map(|settlement| settlement.partition));
        fenced.extend(request.unholds.iter().map(|unhold| unhold.partition));
        fenced.retain(|partition| !self.has_any(request.relay, &request.leases, *partition));
        fenced.sort_unstable();
        fenced.dedup();

        for settlement in settlements {
            if fenced.binary_search(&settlement.partition).is_err() {
                self.settle_one(settlement, request.when_sent, now);
            }
        }
        for unhold in &request.unholds {
            if fenced.binary_search(&unhold.partition).is_err() {
                self.unhold(unhold, now);
            }
        }
        Settled { fenced }
    }

    /// Puts the aggregate's hold where a retry or a park wants it.
    pub(super) fn hold(&mut self, key: &crate::AggregateKey, new: Hold) {
        let Some(hold) = self.holds.get_mut(key) else {
            self.holds.insert(key.clone(), new);
            return;
        };
        if hold.sequence == new.sequence {
            hold.until = new.until;
            hold.reason = new.reason;
            return;
        }
        // The reason goes with the time: it says what the aggregate waits for.
        if hold.sequence.is_none() || is_later(new.until, hold.until) {
            hold.reason = new.reason;
        }
        hold.sequence = [hold.sequence, new.sequence].into_iter().flatten().min();
        if is_later(new.until, hold.until) {
            hold.until = new.until;
        }
    }

    fn has_any(&self, relay: RelayId, leases: &[Lease], partition: Partition) -> bool {
        leases.iter().any(|lease| lease.partition == partition && self.has_lease(relay, *lease))
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
        let held = |until, reason| Hold { sequence: Some(sequence), until, reason, paused: None };
        match &settlement.outcome {
            Outcome::Sent => {
                self.end_hold(settlement);
                self.dispose(sequence, when_sent);
            }
            Outcome::Failed { successors: Successors::Release, .. } => self.end_hold(settlement),
            Outcome::Failed { successors: Successors::Park, .. } => {
                self.hold(&settlement.key, held(None, HoldReason::Parked));
            }
            Outcome::Retry { after: wait, reason, .. } => {
                self.hold(&settlement.key, held(Some(after(now, *wait)), *reason));
            }
        }
    }

    fn dispose(&mut self, sequence: crate::Sequence, when_sent: WhenSent) {
        if when_sent == WhenSent::Keep {
            return;
        }
        if let Some(row) = self.remove(sequence)
            && when_sent == WhenSent::Archive
        {
            self.archive.insert(sequence, row);
        }
    }

    /// The held event has come to its end: the hold is removed, or goes on as a plain pause.
    fn end_hold(&mut self, settlement: &Settlement) {
        let Some(hold) = self.holds.get_mut(&settlement.key) else { return };
        if hold.sequence != Some(settlement.sequence) {
            return;
        }
        if hold.paused.is_some() {
            *hold = Hold { sequence: None, until: None, reason: HoldReason::Paused, paused: hold.paused };
        } else {
            self.holds.remove(&settlement.key);
        }
    }

    fn unhold(&mut self, unhold: &Unhold, now: Time) {
        let Some(hold) = self.holds.get(&unhold.key) else { return };
        let holds_nothing = hold.sequence.is_none_or(|sequence| self.pending_due(sequence, now).is_none());
        if hold.sequence == unhold.sequence && hold.is_due(now) && holds_nothing {
            self.holds.remove(&unhold.key);
        }
    }
}

/// Whether `left` is later than `right`, where `None` is without end.
fn is_later(left: Option<Time>, right: Option<Time>) -> bool {
    match (left, right) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(left), Some(right)) => left > right,
    }
}
