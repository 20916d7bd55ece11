//! What the relay tells of itself: [`Account`], from which the status, the observer and the log all come.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use super::{
    Availability, Change, GivenUp, ObservedFetch, ObservedPublish, ObservedSettle, Observer, Phase,
    RelayStatus, StoreWork, log::Log,
};
use crate::{
    AggregateKey, StoreError, StoreErrorKind, chain,
    clock::Monotonic,
    publisher::{Message, PublishError},
    store::{Lease, Partition, Purged, RelayId, Sequence, Settlement},
};

/// Keeps the status, and tells the observer what changes it.
pub(crate) struct Account {
    status: RelayStatus,
    observer: Option<Arc<dyn Observer>>,
    /// Outcomes that the observer is told at the end of the turn, all at once.
    published: Vec<ObservedPublish>,
    /// What is written of it for people.
    log: Log,
    /// What of the store fails, and since when.
    troubles: BTreeMap<StoreWork, Monotonic>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Account {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        let (status, published, troubles) = (RelayStatus::default(), Vec::new(), BTreeMap::new());
        Self { status, observer, published, log: Log::default(), troubles }
    }

    pub(crate) fn status(&self) -> &RelayStatus {
        &self.status
    }

    /// The end of a turn: what was gathered is told, and these are the numbers in memory.
    pub(crate) fn turn_ended(
        &mut self,
        now: Monotonic,
        buffered: usize,
        in_flight: usize,
        unrecorded: Option<usize>,
    ) {
        self.log.tick(now, unrecorded);
        self.status.unrecorded = unrecorded.unwrap_or_default();
        self.status.buffered = buffered;
        self.status.in_flight = in_flight;
        if !self.published.is_empty() {
            self.tell(|observer, account| observer.published(&account.published));
            self.published.clear();
        }
    }

    fn tell(&self, what: impl FnOnce(&dyn Observer, &Self)) {
        if let Some(observer) = &self.observer {
            what(&**observer, self);
        }
    }

    fn changed(&self, change: &Change) {
        self.tell(|observer, _| observer.changed(change));
    }

    pub(crate) fn phase(&mut self, phase: Phase) {
        self.status.phase = phase;
        if phase == Phase::Stopped {
            self.gone();
        }
        self.changed(&Change::Phase(phase));
    }

    /// Nothing is owned any more.
    fn gone(&mut self) {
        self.status.relay = None;
        self.status.lease_until = None;
        self.status.membership_seen = false;
        self.status.partitions = 0;
    }

    pub(crate) fn joined(&mut self, relay: RelayId, lease_until: Monotonic) {
        self.status.relay = Some(relay);
        self.status.lease_until = Some(lease_until);
        self.changed(&Change::Joined(relay));
    }

    pub(crate) fn renewed(&mut self, lease_until: Monotonic) {
        self.status.lease_until = self.status.lease_until.max(Some(lease_until));
    }

    pub(crate) fn membership_seen(&mut self) {
        self.status.membership_seen = true;
    }

    pub(crate) fn buried(&mut self) {
        tracing::warn!("the relay's lease expired before it was renewed: starting anew");
        self.gone();
        self.status.buried += 1;
        self.changed(&Change::Buried);
    }

    /// Partitions were claimed, so that this many are owned.
    pub(crate) fn claimed(&mut self, partitions: Vec<Partition>, owned: usize) {
        self.status.partitions = owned;
        self.changed(&Change::Claimed(partitions));
    }

    /// Partitions turned out to be lost.
    pub(crate) fn lost(&mut self, partitions: Vec<Partition>, owned: usize) {
        self.status.partitions = owned;
        self.changed(&Change::Lost(partitions));
    }

    /// Leases are given back.
    pub(crate) fn released(&mut self, leases: &[Lease], owned: usize) {
        self.status.partitions = owned;
        self.changed(&Change::Released(leases.iter().map(|lease| lease.partition).collect()));
    }

    pub(crate) fn topics_paused(&self, topics: &[String]) {
        self.log.topics_paused(topics);
        self.changed(&Change::TopicsPaused(topics.to_vec()));
    }

    /// The table was read; `idle` if nothing was left to do.
    pub(crate) fn fetched(&mut self, fetch: &ObservedFetch, idle: bool) {
        self.status.fetches += 1;
        self.status.idle_reads += u64::from(idle);
        self.tell(|observer, _| observer.fetched(fetch));
    }

    /// The broker took a message, or did not.
    pub(crate) fn published(
        &mut self,
        message: Option<&Arc<Message>>,
        took: Duration,
        result: &Result<(), PublishError>,
    ) {
        match result {
            Ok(()) => self.status.published += 1,
            Err(error) => {
                self.status.refused += 1;
                self.status.last_publish_error = Some(error.to_string());
            }
        }
        if let (Some(_), Some(message)) = (&self.observer, message) {
            let (message, result) = (Arc::clone(message), result.clone());
            self.published.push(ObservedPublish { message, took, result });
        }
    }

    pub(crate) fn broker_available(&mut self, now: Monotonic) {
        if matches!(self.status.broker, Availability::Unavailable { .. }) {
            self.log.broker_available(now);
            self.changed(&Change::BrokerAvailable);
        }
        self.status.broker = Availability::Available;
    }

    pub(crate) fn broker_unavailable(&mut self, now: Monotonic, error: &PublishError) {
        if !matches!(self.status.broker, Availability::Unavailable { .. }) {
            self.status.broker = Availability::Unavailable { since: now };
            self.log.broker_unavailable(now, error.to_string());
            self.changed(&Change::BrokerUnavailable { error: error.clone() });
        }
    }

    pub(crate) fn topic_available(&mut self, now: Monotonic, topic: Arc<str>) {
        self.log.topic_available(now, &topic);
        self.changed(&Change::TopicAvailable { topic });
    }

    pub(crate) fn topic_unavailable(&mut self, now: Monotonic, topic: Arc<str>, error: &PublishError) {
        self.log.topic_unavailable(now, Arc::clone(&topic), error.to_string());
        self.changed(&Change::TopicUnavailable { topic, error: error.clone() });
    }

    pub(crate) fn settled(&mut self, now: Monotonic, settle: &ObservedSettle, given_up: &[GivenUp]) {
        self.log.given_up(now, given_up);
        self.status.sent += settle.sent;
        self.status.retried += settle.retried;
        self.status.failed += settle.failed;
        self.status.fenced += settle.fenced;
        self.tell(|observer, _| observer.settled(settle));
        if !given_up.is_empty() {
            self.tell(|observer, _| observer.given_up(given_up));
        }
    }

    /// The store refuses to record something of an aggregate, which waits from now on, if it did not before.
    pub(crate) fn refused(
        &mut self,
        now: Monotonic,
        key: &AggregateKey,
        sequence: Option<Sequence>,
        new: bool,
        error: &StoreError,
    ) {
        let text = chain(error).to_string();
        if new {
            self.status.store_errors += 1;
            self.log.refused(now, key, sequence, &text);
            let (key, error) = (key.clone(), text.clone());
            self.changed(&Change::Unrecorded { key, sequence, error });
        }
        self.status.last_store_error = Some(text);
    }

    /// An outcome was recorded in its plainest form.
    pub(crate) fn recorded_plainly(&self, settlement: &Settlement, error: &StoreError) {
        self.log.recorded_plainly(settlement, error);
    }

    /// All of an aggregate is recorded by now.
    pub(crate) fn taken_back(&self, key: &AggregateKey) {
        self.log.recorded(key);
        self.changed(&Change::Recorded { key: key.clone() });
    }

    pub(crate) fn purged(&self, purged: &Purged) {
        if *purged != Purged::default() {
            self.tell(|observer, _| observer.purged(purged));
        }
    }

    /// The store did what it was asked.
    pub(crate) fn store_answered(&mut self, now: Monotonic, work: StoreWork) {
        self.log.store_answered(now, work);
        if self.troubles.remove(&work).is_some() {
            self.changed(&Change::StoreRecovered { work });
        }
        self.judge_store(true);
    }

    /// The store did not do what it was asked.
    pub(crate) fn store_failed(&mut self, now: Monotonic, work: StoreWork, error: &StoreError) {
        let text = chain(error).to_string();
        self.log.store_failed(now, work, &text);
        self.status.store_errors += 1;
        // A store that asks to run the same again has answered.
        let conflict = error.kind() == StoreErrorKind::Conflict;
        if !conflict && !self.troubles.contains_key(&work) {
            self.troubles.insert(work, now);
            self.changed(&Change::StoreTrouble { work, kind: error.kind(), error: text.clone() });
        }
        self.status.last_store_error = Some(text);
        self.judge_store(conflict);
    }

    fn judge_store(&mut self, answered: bool) {
        // Old rows that cannot be removed keep no event back.
        let since =
            self.troubles.iter().filter(|(work, _)| **work != StoreWork::Retention).map(|(_, since)| *since);
        match since.min() {
            Some(since) => self.status.store = Availability::Unavailable { since },
            None if answered => self.status.store = Availability::Available,
            None => {}
        }
    }
}
