//! What every clause stands on: the harness, and short ways to write and look.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use outbox_core::{
    AggregateKey, Event, EventBuilder, EventFilter, OutboxAdmin, OutboxStore,
    store::{EventRecord, HoldRecord, Sequence},
};

use crate::{
    StoreHarness,
    violation::{Verdict, Violation},
};

/// So long that it does not pass during a test.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// So short that a test can let it pass, and above the resolution of every store's clock.
pub(crate) const SHORT: Duration = Duration::from_millis(20);

pub(crate) struct Stage<'a> {
    pub(crate) harness: &'a dyn StoreHarness,
    pub(crate) store: Arc<dyn OutboxStore>,
    pub(crate) admin: Arc<dyn OutboxAdmin>,
    /// Why the clause was not asked, if so.
    pub(crate) not_asked: OnceLock<String>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(harness: &'a dyn StoreHarness) -> Self {
        Self { harness, store: harness.store(), admin: harness.admin(), not_asked: OnceLock::new() }
    }

    /// Commits one plain event for each aggregate id, all in one transaction.
    pub(crate) async fn commit(&self, ids: &[&str]) -> Verdict<Vec<Sequence>> {
        self.commit_events(ids.iter().map(|id| event(id)).collect()).await
    }

    pub(crate) async fn commit_one(&self, id: &str) -> Verdict<Sequence> {
        Ok(self.commit(&[id]).await?[0])
    }

    pub(crate) async fn commit_events(&self, events: Vec<Event>) -> Verdict<Vec<Sequence>> {
        let count = events.len();
        let sequences = self.harness.commit(events).await?;
        if sequences.len() == count {
            return Ok(sequences);
        }
        Err(Violation::new(format!("{count} sequences for {count} events"), format!("{sequences:?}")))
    }

    /// All that the store knows of an event.
    pub(crate) async fn record(&self, sequence: Sequence) -> Verdict<Option<EventRecord>> {
        let filter = EventFilter::default().after(sequence - 1);
        let found = self.admin.list(&filter, 1).await?;
        Ok(found.into_iter().find(|record| record.sequence == sequence))
    }

    /// The same, of an event that must be there.
    pub(crate) async fn record_of(&self, sequence: Sequence) -> Verdict<EventRecord> {
        let record = self.record(sequence).await?;
        record.ok_or_else(|| Violation::new(format!("event {sequence} in the table"), "no such row"))
    }

    pub(crate) async fn hold(&self, id: &str) -> Verdict<Option<HoldRecord>> {
        Ok(self.admin.holds(1000).await?.into_iter().find(|hold| hold.key == key(id)))
    }

    /// The hold of an aggregate that must have one.
    pub(crate) async fn hold_of(&self, id: &str) -> Verdict<HoldRecord> {
        self.hold(id).await?.ok_or_else(|| Violation::new(format!("a hold of {}", key(id)), "none"))
    }

    pub(crate) async fn expect_no_hold(&self, id: &str) -> Verdict {
        match self.hold(id).await? {
            None => Ok(()),
            Some(hold) => Err(Violation::new(format!("no hold of {}", key(id)), format!("{hold:?}"))),
        }
    }

    /// Lets [`SHORT`] and a margin pass.
    pub(crate) async fn wait_short(&self) {
        self.harness.advance(SHORT * 2).await;
    }

    /// False if the store has one writer, after noting that this clause is not asked.
    pub(crate) fn has_concurrent_writers(&self) -> bool {
        let has = self.harness.concurrent_writers();
        if !has {
            self.not_asked("this store declares that it has one writer at a time");
        }
        has
    }

    /// Notes why the clause was not asked, for the table.
    pub(crate) fn not_asked(&self, why: &str) {
        self.not_asked.get_or_init(|| why.to_owned());
    }
}

/// The aggregate type of the suite's events.
pub(crate) const AGGREGATE_TYPE: &str = "order";

pub(crate) fn key(id: &str) -> AggregateKey {
    AggregateKey::new(AGGREGATE_TYPE, id)
}

pub(crate) fn event(id: &str) -> Event {
    build(Event::builder(AGGREGATE_TYPE, id, "order.placed").payload(id.as_bytes().to_vec()))
}

/// The event, which the suite knows to be a valid one.
pub(crate) fn build(builder: EventBuilder) -> Event {
    builder.build().unwrap_or_else(|error| panic!("the suite built an invalid event: {error}"))
}
