//! The harness of a broken store; the writer's faults are here.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{AggregateKey, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence};
use uuid::Uuid;

use crate::{common::MemoryHarness, faults::Fault, store::Broken};

pub(crate) struct BrokenHarness {
    inner: MemoryHarness,
    broken: Broken,
    fault: Fault,
}

impl BrokenHarness {
    pub(crate) fn new(fault: Fault) -> Self {
        let inner = MemoryHarness::default();
        Self { broken: Broken::new(inner.memory.clone(), fault), inner, fault }
    }
}

#[async_trait]
impl StoreHarness for BrokenHarness {
    async fn fresh() -> Option<Self> {
        Some(Self::new(Fault::None))
    }

    async fn cleanup(self) {}

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.broken.clone())
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        Arc::new(self.broken.clone())
    }

    async fn commit(&self, mut events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        if self.fault == Fault::WritesSortedById {
            events.sort_by_key(Event::id);
        }
        match self.inner.commit(events.clone()).await {
            Err(EnqueueError::Duplicate(_)) if self.fault == Fault::DuplicatesTaken => {
                self.inner.commit(events.iter().map(with_new_id).collect()).await
            }
            answer => answer,
        }
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        match self.fault {
            Fault::CommitsEarly => Box::new(Committed(self.inner.commit(events).await.unwrap())),
            Fault::RollbackCommits => Box::new(NeverRolledBack(self.inner.begin(events).await)),
            _ => self.inner.begin(events).await,
        }
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        self.inner.insert_undecodable(key).await
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        self.broken.seen().refused = Some(key.clone());
        true
    }

    async fn archived(&self) -> Vec<Uuid> {
        self.inner.archived().await
    }

    async fn now(&self) -> DateTime<Utc> {
        self.inner.now().await
    }

    async fn advance(&self, duration: Duration) {
        self.inner.advance(duration).await;
    }
}

fn with_new_id(event: &Event) -> Event {
    Event::builder(event.aggregate_type(), event.aggregate_id(), event.event_type()).build().unwrap()
}

struct Committed(Vec<Sequence>);

#[async_trait]
impl OpenTransaction for Committed {
    fn sequences(&self) -> Vec<Sequence> {
        self.0.clone()
    }

    async fn commit(self: Box<Self>) {}

    async fn rollback(self: Box<Self>) {}
}

struct NeverRolledBack(Box<dyn OpenTransaction>);

#[async_trait]
impl OpenTransaction for NeverRolledBack {
    fn sequences(&self) -> Vec<Sequence> {
        self.0.sequences()
    }

    async fn commit(self: Box<Self>) {
        self.0.commit().await;
    }

    async fn rollback(self: Box<Self>) {
        self.0.commit().await;
    }
}
