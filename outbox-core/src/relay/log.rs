//! What a relay tells a person, by way of `tracing`: [`Log`].
//!
//! A trouble is told once when it begins, again while it lasts, at most once a minute, and once when it ends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{GivenUp, StoreWork};
use crate::{
    AggregateKey, StoreError, chain,
    clock::Monotonic,
    store::{Sequence, Settlement},
};

/// How often it is told of a trouble that it lasts.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// How many events that were given up are named within one second; the others are counted.
const NAMED_MAX: u64 = 10;

/// Something that does not do what it is asked.
#[derive(Debug)]
struct Trouble {
    since: Monotonic,
    told_at: Monotonic,
    error: String,
}

impl Trouble {
    fn new(now: Monotonic, error: String) -> Self {
        Self { since: now, told_at: now, error }
    }

    /// How long it has lasted, if it is time to tell of it again.
    fn lasts(&mut self, now: Monotonic) -> Option<Duration> {
        if now < self.told_at + TELL_INTERVAL {
            return None;
        }
        self.told_at = now;
        Some(now.saturating_sub(self.since))
    }
}

/// Keeps what was told.
#[derive(Debug, Default)]
pub(crate) struct Log {
    broker: Option<Trouble>,
    topics: BTreeMap<Arc<str>, Trouble>,
    store: BTreeMap<StoreWork, Trouble>,
    /// The database refuses to record what became of some events.
    unrecorded: Option<Trouble>,
    /// The second in which events were given up last, and how many were in it.
    given_up: (Monotonic, u64),
}

impl Log {
    /// Tells what lasts, and what was counted. `unrecorded`: how many outcomes are not recorded, `None` where
    /// no aggregate is set aside, be it that all is recorded or that its partition is another relay's by now.
    pub(crate) fn tick(&mut self, now: Monotonic, unrecorded: Option<usize>) {
        if let Some(trouble) = &mut self.broker
            && let Some(lasts) = trouble.lasts(now)
        {
            tracing::warn!(error = trouble.error, ?lasts, "the broker is still unavailable: waiting for it");
        }
        for (topic, trouble) in &mut self.topics {
            if let Some(lasts) = trouble.lasts(now) {
                tracing::warn!(%topic, error = trouble.error, ?lasts, "the topic is still unavailable");
            }
        }
        for (work, trouble) in &mut self.store {
            if let Some(lasts) = trouble.lasts(now) {
                tracing::warn!(
                    work = %work,
                    error = trouble.error,
                    ?lasts,
                    "the store still does not do what is asked: trying again"
                );
            }
        }
        if unrecorded.is_none() {
            self.unrecorded = None;
        }
        if let Some(trouble) = &mut self.unrecorded
            && let Some(lasts) = trouble.lasts(now)
        {
            tracing::warn!(
                outcomes = unrecorded,
                error = trouble.error,
                ?lasts,
                "the database still refuses to record what became of events: their aggregates wait"
            );
        }
        self.count_given_up(now);
    }

    pub(crate) fn broker_unavailable(&mut self, now: Monotonic, error: String) {
        tracing::warn!(error, "the broker is unavailable: waiting for it");
        self.broker = Some(Trouble::new(now, error));
    }

    pub(crate) fn broker_available(&mut self, now: Monotonic) {
        if let Some(trouble) = self.broker.take() {
            let after = now.saturating_sub(trouble.since);
            tracing::info!(?after, "the broker is available again");
        }
    }

    pub(crate) fn topic_unavailable(&mut self, now: Monotonic, topic: Arc<str>, error: String) {
        tracing::warn!(
            %topic,
            error,
            "the topic is unavailable: its messages wait, others go on; create it, or correct the topic"
        );
        self.topics.insert(topic, Trouble::new(now, error));
    }

    pub(crate) fn topic_available(&mut self, now: Monotonic, topic: &str) {
        if let Some(trouble) = self.topics.remove(topic) {
            let after = now.saturating_sub(trouble.since);
            tracing::info!(topic, ?after, "the topic is available again");
        }
    }

    /// What an operator has paused: these topics, and no others.
    pub(crate) fn topics_paused(&self, topics: &[String]) {
        if topics.is_empty() {
            tracing::info!("no topic is paused by an operator any more");
        } else {
            tracing::info!(?topics, "topics are paused by an operator: their messages wait");
        }
    }

    pub(crate) fn store_failed(&mut self, now: Monotonic, work: StoreWork, error: &str) {
        if let Some(trouble) = self.store.get_mut(&work) {
            error.clone_into(&mut trouble.error);
            return;
        }
        tracing::warn!(%work, error, "the store did not do what was asked: trying again");
        self.store.insert(work, Trouble::new(now, error.to_owned()));
    }

    /// When the trouble began that has ended.
    pub(crate) fn store_answered(&mut self, now: Monotonic, work: StoreWork) {
        if let Some(trouble) = self.store.remove(&work) {
            let after = now.saturating_sub(trouble.since);
            tracing::info!(%work, ?after, "the store does what is asked again");
        }
    }

    /// The store refuses to record something of an aggregate.
    pub(crate) fn refused(
        &mut self,
        now: Monotonic,
        key: &AggregateKey,
        sequence: Option<Sequence>,
        error: &str,
    ) {
        tracing::warn!(
            aggregate = %key,
            sequence,
            error,
            "the database refuses to record what became of an event: its aggregate waits and is tried again, \
             others go on; see which trigger, constraint or rule refuses it"
        );
        self.unrecorded.get_or_insert_with(|| Trouble::new(now, error.to_owned()));
    }

    /// All of an aggregate is recorded by now.
    pub(crate) fn recorded(&self, key: &AggregateKey) {
        tracing::info!(aggregate = %key, "what became of the aggregate's events is recorded by now");
    }

    /// An outcome was recorded in its plainest form.
    pub(crate) fn recorded_plainly(&self, settlement: &Settlement, error: &StoreError) {
        tracing::warn!(
            aggregate = %settlement.key,
            sequence = settlement.sequence,
            outcome = ?settlement.outcome,
            error = %chain(error),
            "the database refused to record what became of an event, and took it without its error, \
             or without moving its row"
        );
    }

    /// Events were given up.
    pub(crate) fn given_up(&mut self, now: Monotonic, events: &[GivenUp]) {
        if !events.is_empty() {
            self.count_given_up(now);
        }
        for event in events {
            self.given_up.1 += 1;
            if self.given_up.1 <= NAMED_MAX {
                name(event);
            }
        }
    }

    /// Begins a new second, and tells how many were not named in the old one.
    fn count_given_up(&mut self, now: Monotonic) {
        let (since, count) = self.given_up;
        if now < since + Duration::from_secs(1) {
            return;
        }
        if count > NAMED_MAX {
            let more = count - NAMED_MAX;
            tracing::warn!(more, "more events were given up: list those that failed");
        }
        self.given_up = (now, 0);
    }
}

fn name(event: &GivenUp) {
    let GivenUp { id, sequence, key, topic, attempts, cause, error, parked } = event;
    let id = id.map(|id| id.to_string());
    let topic = topic.as_deref();
    let cause = cause.as_str();
    if *parked {
        tracing::warn!(
            id, sequence, aggregate = %key, topic, attempts, cause, error,
            "an event was given up: its successors wait until an operator resumes the aggregate"
        );
    } else {
        tracing::warn!(
            id, sequence, aggregate = %key, topic, attempts, cause, error,
            "an event was given up: it is kept as failed, and its successors go on"
        );
    }
}
