//! The contract that all stores share, and a relay that is killed.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use custom_store::RedbStore;
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{
    AggregateKey, Enqueue as _, EnqueueError, Event, EventFilter, OutboxAdmin, OutboxStore, Relay,
    RelayConfig, memory::MemoryPublisher, store::Sequence,
};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use uuid::Uuid;

/// A file of the clause's own.
struct RedbHarness {
    path: PathBuf,
    store: RedbStore,
}

#[async_trait]
impl StoreHarness for RedbHarness {
    async fn fresh() -> Option<Self> {
        let path = std::env::temp_dir().join(format!("outbox-redb-{}", Uuid::now_v7()));
        Some(Self { store: RedbStore::open(&path).unwrap(), path })
    }

    async fn cleanup(self) {
        std::fs::remove_file(&self.path).unwrap();
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        Arc::new(self.store.clone())
    }

    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        let mut transaction = self.store.database().begin_write().unwrap();
        let sequences = self.store.enqueue_all(&mut transaction, &events).await?;
        transaction.commit().unwrap();
        Ok(sequences)
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        let mut transaction = self.store.database().begin_write().unwrap();
        let mut sequences = Vec::new();
        for event in &events {
            sequences.push(self.store.enqueue(&mut transaction, event).await.unwrap());
        }
        Box::new(Open { transaction, sequences })
    }

    fn concurrent_writers(&self) -> bool {
        false
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        // As a later release might have written it: with headers that this one cannot read.
        const EVENTS: TableDefinition<'_, i64, &[u8]> = TableDefinition::new("outbox");
        let event = Event::builder(key.aggregate_type(), key.aggregate_id(), "order.placed").build().unwrap();
        let mut transaction = self.store.database().begin_write().unwrap();
        let sequence = self.store.enqueue(&mut transaction, &event).await.unwrap();
        {
            let mut events = transaction.open_table(EVENTS).unwrap();
            let bytes = events.get(sequence).unwrap().unwrap().value().to_vec();
            let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            record["content"]["headers"] = serde_json::json!([1]);
            events.insert(sequence, serde_json::to_vec(&record).unwrap().as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        Some(sequence)
    }

    async fn archived(&self) -> Vec<Uuid> {
        let archived = EventFilter::default().in_archive();
        let records = self.store.list(&archived, u32::MAX).await.unwrap();
        records.iter().filter_map(|record| record.id).collect()
    }

    async fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

struct Open {
    transaction: WriteTransaction,
    sequences: Vec<Sequence>,
}

#[async_trait]
impl OpenTransaction for Open {
    fn sequences(&self) -> Vec<Sequence> {
        self.sequences.clone()
    }

    async fn commit(self: Box<Self>) {
        self.transaction.commit().unwrap();
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.abort().unwrap();
    }
}

outbox_conformance::store_suite!(RedbHarness);

/// The service's own table.
const ORDERS: TableDefinition<'_, u64, &str> = TableDefinition::new("orders");

#[tokio::test]
async fn a_relay_delivers_and_another_takes_over_from_one_that_was_killed() {
    let harness = RedbHarness::fresh().await.unwrap();
    let store = harness.store.clone();
    let place = async |n: u64| {
        let mut transaction = store.database().begin_write().unwrap();
        transaction.open_table(ORDERS).unwrap().insert(n, "placed").unwrap();
        let event = Event::builder("order", (n % 7).to_string(), "order.placed").json(&n).build().unwrap();
        store.enqueue(&mut transaction, &event).await.unwrap();
        transaction.commit().unwrap();
    };
    let publisher = Arc::new(MemoryPublisher::new());
    let relay = || {
        let config = RelayConfig::default()
            .with_lease_ttl(Duration::from_secs(2))
            .with_beat_interval(Duration::from_millis(200))
            .with_publish_timeout(Duration::from_millis(500))
            .with_lease_margin(Duration::from_millis(200));
        Relay::new(store.clone(), publisher.clone(), config).unwrap()
    };
    for n in 0..100 {
        place(n).await;
    }
    let process = tokio::runtime::Runtime::new().unwrap();
    process.spawn(relay().run());
    publisher.delivered_at_least(50).await;
    // Like a crash: without its runtime it releases nothing.
    process.shutdown_background();
    for n in 100..200 {
        place(n).await;
    }
    let second = relay();
    assert!(second.check().await.is_empty());
    let mut handle = second.handle();
    let running = tokio::spawn(second.run());
    let deadline = Duration::from_secs(60);
    tokio::time::timeout(deadline, handle.wait_for(|status| status.partitions == 1)).await.unwrap().unwrap();
    tokio::time::timeout(deadline, handle.caught_up()).await.unwrap().unwrap();
    handle.shutdown();
    running.await.unwrap();
    let mut last = [None; 7];
    let mut ids = std::collections::BTreeSet::new();
    for message in publisher.delivered() {
        // First deliveries of an aggregate are in order; a crash may repeat some.
        if ids.insert(message.event.id) {
            let lane = &mut last[message.key.aggregate_id().parse::<usize>().unwrap()];
            assert!(*lane < Some(message.sequence), "{message:?}");
            *lane = Some(message.sequence);
        }
    }
    assert_eq!(ids.len(), 200);
    let orders = store.database().begin_read().unwrap().open_table(ORDERS).unwrap();
    assert_eq!(orders.iter().unwrap().count(), 200);
    harness.cleanup().await;
}
