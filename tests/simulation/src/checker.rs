//! What must hold, whatever happens: the guarantees as assertions over what the broker saw and the store did.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use outbox::{
    AggregateKey,
    publisher::Message,
    store::{Sequence, Status},
};
use uuid::Uuid;

use super::executor::Process;

/// A committed event, as its writer knows it.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    pub id: Uuid,
    pub sequence: Sequence,
    pub key: AggregateKey,
    pub scheduled: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub at: Duration,
    pub process: Process,
    pub id: Uuid,
}

#[derive(Default)]
struct Ledger {
    committed: BTreeMap<Sequence, Committed>,
    ids: BTreeMap<Uuid, Sequence>,
    rolled_back: BTreeSet<Uuid>,
    deliveries: Vec<Delivery>,
    delivered: BTreeSet<Uuid>,
    /// The last state that the store itself gave an event.
    state: BTreeMap<Sequence, Status>,
    requeued: BTreeSet<Sequence>,
    /// Events that a process was told to be settled for good, by it; gone again once requeued.
    closed: BTreeMap<Uuid, Process>,
    /// Messages that are with the publisher: in all and by aggregate, a process each.
    in_flight: BTreeMap<Process, BTreeMap<AggregateKey, u32>>,
    violations: Vec<String>,
}

/// Watches a run.
#[derive(Default)]
pub(crate) struct Checker(Mutex<Ledger>);

impl Checker {
    fn with<R>(&self, f: impl FnOnce(&mut Ledger) -> R) -> R {
        f(&mut self.0.lock().expect("the ledger"))
    }

    pub(crate) fn violation(&self, what: impl Into<String>) {
        self.with(|ledger| ledger.violations.push(what.into()));
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.with(|ledger| ledger.violations.clone())
    }

    pub(crate) fn committed(&self, event: Committed) {
        self.with(|ledger| {
            ledger.ids.insert(event.id, event.sequence);
            ledger.committed.insert(event.sequence, event);
        });
    }

    pub(crate) fn rolled_back(&self, id: Uuid) {
        self.with(|ledger| ledger.rolled_back.insert(id));
    }

    /// A publish of the message begins in this process.
    pub(crate) fn publish_began(&self, process: Process, message: &Message, publish_max: usize) {
        self.with(|ledger| {
            if ledger.closed.get(&message.event.id) == Some(&process) {
                ledger.violations.push(format!(
                    "G2: process {process} publishes event {} again, which it knows to be settled",
                    message.sequence
                ));
            }
            let by_key = ledger.in_flight.entry(process).or_default();
            let of_key = by_key.entry(message.key.clone()).or_default();
            *of_key += 1;
            if *of_key > 1 {
                ledger.violations.push(format!(
                    "G3: process {process} has {of_key} messages of aggregate {} in flight",
                    message.key
                ));
            }
            let in_flight: u32 = by_key.values().sum();
            if in_flight as usize > publish_max {
                ledger.violations.push(format!("G5: process {process} has {in_flight} messages in flight"));
            }
        });
    }

    pub(crate) fn publish_ended(&self, process: Process, key: &AggregateKey) {
        self.with(|ledger| {
            if let Some(count) = ledger.in_flight.get_mut(&process).and_then(|by_key| by_key.get_mut(key)) {
                *count -= 1;
            }
        });
    }

    /// The broker has stored the message.
    pub(crate) fn delivered(&self, at: Duration, process: Process, message: &Message) {
        self.with(|ledger| {
            let id = message.event.id;
            if !ledger.ids.contains_key(&id) {
                let why =
                    if ledger.rolled_back.contains(&id) { "was rolled back" } else { "has not committed" };
                ledger.violations.push(format!("G1: event {} is published, but {why}", message.sequence));
            }
            ledger.delivered.insert(id);
            ledger.deliveries.push(Delivery { at, process, id });
        });
    }

    pub(crate) fn is_delivered(&self, id: Uuid) -> bool {
        self.with(|ledger| ledger.delivered.contains(&id))
    }

    pub(crate) fn state(&self, sequence: Sequence, status: Status) {
        self.with(|ledger| ledger.state.insert(sequence, status));
    }

    pub(crate) fn requeued(&self, sequence: Sequence) {
        self.with(|ledger| {
            ledger.requeued.insert(sequence);
            ledger.state.insert(sequence, Status::Pending);
            if let Some(event) = ledger.committed.get(&sequence) {
                let id = event.id;
                ledger.closed.remove(&id);
            }
        });
    }

    /// A process has been told that its settle of this event, as sent or failed, has committed.
    pub(crate) fn closed(&self, process: Process, sequence: Sequence) {
        self.with(|ledger| {
            // Put back between the commit and the news of it, it is open again.
            if !ledger.requeued.contains(&sequence)
                && let Some(event) = ledger.committed.get(&sequence)
            {
                let id = event.id;
                ledger.closed.insert(id, process);
            }
        });
    }

    /// A settle under a lease that is lost has changed a row.
    pub(crate) fn stale_settle(&self, process: Process, sequence: Sequence) {
        self.violation(format!("G6: process {process} has changed event {sequence} without its lease"));
    }

    pub(crate) fn deliveries(&self) -> usize {
        self.with(|ledger| ledger.deliveries.len())
    }

    /// The end of a run, with what is left in the store.
    pub(crate) fn finish(&self, left: &BTreeMap<Sequence, Status>) {
        self.with(|ledger| {
            let mut violations = Vec::new();
            for event in ledger.committed.values() {
                let delivered = ledger.delivered.contains(&event.id);
                let status = left.get(&event.sequence).or_else(|| ledger.state.get(&event.sequence));
                match status {
                    Some(Status::Sent) if !delivered => violations
                        .push(format!("G2: event {} is sent, but was never delivered", event.sequence)),
                    Some(Status::Sent | Status::Failed) => {}
                    Some(Status::Pending) => violations.push(format!(
                        "G2: event {} of {} is neither sent nor failed at the end{}",
                        event.sequence,
                        event.key,
                        if left.contains_key(&event.sequence) { "" } else { ", and its row is gone" }
                    )),
                    None => violations.push(format!(
                        "G2: event {} of {} is lost{}",
                        event.sequence,
                        event.key,
                        if delivered { " from the table, though delivered" } else { "" }
                    )),
                }
            }
            violations.extend(ledger.out_of_order());
            ledger.violations.extend(violations);
        });
    }
}

impl Ledger {
    /// First deliveries that are not in sequence order within their aggregate.
    fn out_of_order(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut last: BTreeMap<&AggregateKey, Sequence> = BTreeMap::new();
        let mut violations = Vec::new();
        for delivery in &self.deliveries {
            let Some(sequence) = self.ids.get(&delivery.id) else { continue };
            let event = &self.committed[sequence];
            // A scheduled event joins the order when it becomes due, a requeued one when it is put back.
            if event.scheduled || self.requeued.contains(sequence) || !seen.insert(delivery.id) {
                continue;
            }
            let last = last.entry(&event.key).or_default();
            if *sequence < *last {
                violations.push(format!(
                    "G3: event {sequence} of {} is first delivered after event {last} (at {:.3} s, by process {})",
                    event.key,
                    delivery.at.as_secs_f64(),
                    delivery.process
                ));
            }
            *last = (*last).max(*sequence);
        }
        violations
    }
}
