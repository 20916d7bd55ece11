//! The contract that all stores share, on an older server and on a newer one.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{
    AggregateKey, Enqueue as _, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence,
};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use support::Place;

struct PostgresHarness<const NEWER: bool>(Place);

#[async_trait]
impl<const NEWER: bool> StoreHarness for PostgresHarness<NEWER> {
    async fn fresh() -> Option<Self> {
        Place::on(if NEWER { support::VARIABLE_18 } else { support::VARIABLE }).await.map(Self)
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
        let mut transaction = self.0.pool.begin().await.unwrap();
        let sequences = self.0.outbox.enqueue_all(&mut transaction, &events).await?;
        transaction.commit().await.unwrap();
        Ok(sequences)
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        let mut transaction = self.0.pool.begin().await.unwrap();
        let mut sequences = Vec::new();
        for event in &events {
            sequences.push(self.0.outbox.enqueue(&mut transaction, event).await.unwrap());
        }
        Box::new(Open { transaction, sequences })
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, headers) \
                      VALUES ($1, $2, 'order.placed', '{}', '[\"no map\"]') RETURNING sequence";
        let query = sqlx::query_scalar(insert).bind(key.aggregate_type()).bind(key.aggregate_id());
        Some(query.fetch_one(&self.0.pool).await.unwrap())
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        let sql = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'refused by a trigger'; END $$; \
             CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON outbox FOR EACH ROW \
             WHEN (OLD.aggregate_type = '{}' AND OLD.aggregate_id = '{}') EXECUTE FUNCTION refuse()",
            key.aggregate_type(),
            key.aggregate_id()
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.0.pool).await.unwrap();
        true
    }

    async fn archived(&self) -> Vec<Uuid> {
        sqlx::query_scalar("SELECT id FROM outbox_archive").fetch_all(&self.0.pool).await.unwrap()
    }

    async fn now(&self) -> DateTime<Utc> {
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.0.pool).await.unwrap()
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
    transaction: Transaction<'static, Postgres>,
    sequences: Vec<Sequence>,
}

#[async_trait]
impl OpenTransaction for Open {
    fn sequences(&self) -> Vec<Sequence> {
        self.sequences.clone()
    }

    async fn commit(self: Box<Self>) {
        self.transaction.commit().await.unwrap();
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.rollback().await.unwrap();
    }
}

mod postgres {
    outbox_conformance::store_suite!(super::PostgresHarness<false>);
}

mod postgres_18 {
    outbox_conformance::store_suite!(super::PostgresHarness<true>);
}
