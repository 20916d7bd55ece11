//! The harness of the store in memory, with a clock that moves only when it is told to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::{FutureExt, future::BoxFuture};
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{
    AggregateKey, EnqueueError, Event, OutboxAdmin, OutboxStore,
    memory::{MemoryStore, MemoryTransaction},
    relay::{Clock, Monotonic, Task, TokioClock},
    store::Sequence,
};
use uuid::Uuid;

#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn now(&self) -> Monotonic {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        Task::new(task)
    }
}

pub struct MemoryHarness {
    clock: Arc<ManualClock>,
    pub memory: MemoryStore,
}

/// The same with a clock that only time moves.
pub struct WaitingHarness(MemoryHarness);

#[async_trait]
impl StoreHarness for WaitingHarness {
    async fn fresh() -> Option<Self> {
        let memory = MemoryStore::new(Arc::new(TokioClock::default()));
        Some(Self(MemoryHarness { clock: Arc::default(), memory }))
    }

    async fn cleanup(self) {}

    fn store(&self) -> Arc<dyn OutboxStore> {
        self.0.store()
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        self.0.admin()
    }

    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        self.0.commit(events).await
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        self.0.begin(events).await
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        self.0.insert_undecodable(key).await
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        self.0.refuse(key).await
    }

    async fn archived(&self) -> Vec<Uuid> {
        self.0.archived().await
    }

    async fn now(&self) -> DateTime<Utc> {
        self.0.now().await
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

impl Default for MemoryHarness {
    fn default() -> Self {
        let clock = Arc::new(ManualClock::default());
        Self { memory: MemoryStore::new(clock.clone()), clock }
    }
}

#[async_trait]
impl StoreHarness for MemoryHarness {
    async fn fresh() -> Option<Self> {
        Some(Self::default())
    }

    async fn cleanup(self) {}

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.memory.clone())
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        Arc::new(self.memory.clone())
    }

    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        let mut transaction = self.memory.begin();
        let sequences = transaction.enqueue_all(&events)?;
        transaction.commit();
        Ok(sequences)
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        let mut transaction = self.memory.begin();
        let sequences = events.iter().map(|event| transaction.enqueue(event).unwrap()).collect();
        Box::new(Open { transaction, sequences })
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        let mut transaction = self.memory.begin();
        let sequence = transaction.enqueue_undecodable(key, "not an event");
        transaction.commit();
        Some(sequence)
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        self.memory.refuse(key, true);
        true
    }

    async fn archived(&self) -> Vec<Uuid> {
        self.memory.archive().iter().filter_map(|record| record.id).collect()
    }

    async fn now(&self) -> DateTime<Utc> {
        self.memory.now()
    }

    async fn advance(&self, duration: Duration) {
        self.clock.0.fetch_add(u64::try_from(duration.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

struct Open {
    transaction: MemoryTransaction,
    sequences: Vec<Sequence>,
}

#[async_trait]
impl OpenTransaction for Open {
    fn sequences(&self) -> Vec<Sequence> {
        self.sequences.clone()
    }

    async fn commit(self: Box<Self>) {
        self.transaction.commit();
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.rollback();
    }
}
