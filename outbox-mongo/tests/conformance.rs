//! The contract that all stores share.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use mongodb::{
    ClientSession,
    bson::{Bson, Timestamp, doc},
};
use outbox_conformance::{OpenTransaction, StoreHarness, run_store_clause};
use outbox_core::{
    AggregateKey, Enqueue as _, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence,
};
use outbox_mongo::{MongoConfig, MongoStore};
use uuid::Uuid;

use support::Place;

/// What the store is told of the life of a transaction, where that is short: its bound of what can become
/// visible late moves while a clause writes events.
const LIFETIME: Duration = Duration::from_secs(3);

struct MongoHarness<const SHORT_LIVED: bool = false>(Place);

#[async_trait]
impl<const SHORT_LIVED: bool> StoreHarness for MongoHarness<SHORT_LIVED> {
    async fn fresh() -> Option<Self> {
        let mut place = Place::new().await?;
        if SHORT_LIVED {
            let config = MongoConfig::builder().url(&place.url).database(&place.name);
            let config = config.transaction_lifetime(LIFETIME).build().unwrap();
            place.store = MongoStore::connect_lazy(&config).await.unwrap();
        }
        Some(Self(place))
    }

    async fn cleanup(self) {
        self.0.drop().await;
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.0.store.clone())
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        Arc::new(self.0.store.clone())
    }

    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        let mut session = self.0.begin().await;
        let sequences = self.0.outbox.enqueue_all(&mut session, &events).await?;
        session.commit_transaction().await.unwrap();
        Ok(sequences)
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        let mut session = self.0.begin().await;
        let mut sequences = Vec::new();
        for event in &events {
            sequences.push(self.0.outbox.enqueue(&mut session, event).await.unwrap());
        }
        Box::new(Open { session, sequences })
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        let document = doc! {
            "sequence": Timestamp { time: 0, increment: 0 }, "headers": ["no map"],
            "aggregate_type": key.aggregate_type(), "aggregate_id": key.aggregate_id(),
            "event_type": "order.placed", "payload": "{}",
        };
        let outbox = self.0.collection("outbox");
        let id = outbox.insert_one(document).await.unwrap().inserted_id;
        let document = outbox.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        let sequence = document.get_timestamp("sequence").unwrap();
        Some(i64::from(sequence.time) << 31 | i64::from(sequence.increment))
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        // The only rule that MongoDB has: a validator that takes the document as it is, and no change of it.
        let changed = doc! { "$or": [{ "status": { "$gt": 0 } }, { "attempts": { "$gt": 0 } }] };
        let (aggregate_type, aggregate_id) = (key.aggregate_type(), key.aggregate_id());
        let refused = doc! { "$and": [
            { "aggregate_type": aggregate_type, "aggregate_id": aggregate_id }, changed,
        ] };
        let command = doc! { "collMod": "outbox", "validator": { "$nor": [refused] } };
        self.0.database.run_command(command).await.unwrap();
        true
    }

    async fn archived(&self) -> Vec<Uuid> {
        let archive = self.0.collection("outbox_archive").find(doc! {}).await.unwrap();
        let archive: Vec<_> = archive.try_collect().await.unwrap();
        let id = |document: &mongodb::bson::Document| match document.get("_id").unwrap() {
            Bson::Binary(binary) => Uuid::from_slice(&binary.bytes).unwrap(),
            other => panic!("an invalid _id: {other}"),
        };
        archive.iter().map(id).collect()
    }

    async fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0.now().await.timestamp_millis()).unwrap()
    }

    async fn advance(&self, duration: Duration) {
        // The server's clock is the machine's, and only waiting moves it.
        let until = self.now().await + duration;
        while self.now().await < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Open {
    session: ClientSession,
    sequences: Vec<Sequence>,
}

#[async_trait]
impl OpenTransaction for Open {
    fn sequences(&self) -> Vec<Sequence> {
        self.sequences.clone()
    }

    async fn commit(mut self: Box<Self>) {
        self.session.commit_transaction().await.unwrap();
    }

    async fn rollback(mut self: Box<Self>) {
        self.session.abort_transaction().await.unwrap();
    }
}

outbox_conformance::store_suite!(MongoHarness);

#[test]
fn nothing_is_lost_behind_a_bound_that_moves() {
    let clause = "nothing_is_lost_or_overtaken_when_sent_rows_are_deleted";
    run_store_clause::<MongoHarness<true>>(env!("CARGO_PKG_NAME"), clause);
}
