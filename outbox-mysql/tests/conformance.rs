//! The contract that all stores share, on both servers.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{marker::PhantomData, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{
    AggregateKey, Enqueue as _, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence,
};
use sqlx::{MySql, Transaction};
use uuid::Uuid;

use support::{Mariadb, Mysql, On, Place};

struct Harness<S>(Place, PhantomData<S>);

#[async_trait]
impl<S: On> StoreHarness for Harness<S> {
    async fn fresh() -> Option<Self> {
        Some(Self(Place::new(S::SERVER).await?, PhantomData))
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
                      VALUES (?, ?, 'order.placed', '{}', '[\"no map\"]')";
        let query = sqlx::query(insert).bind(key.aggregate_type()).bind(key.aggregate_id());
        let done = query.execute(&self.0.pool).await.unwrap();
        Some(Sequence::try_from(done.last_insert_id()).unwrap())
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        let sql = format!(
            "CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW \
             IF OLD.aggregate_type = '{}' AND OLD.aggregate_id = '{}' THEN \
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused by a trigger'; END IF",
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
        let sql = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
        DateTime::from_timestamp_micros(self.0.number(sql).await).unwrap()
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
    transaction: Transaction<'static, MySql>,
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

mod mysql {
    outbox_conformance::store_suite!(super::Harness<super::Mysql>);
}

mod mariadb {
    outbox_conformance::store_suite!(super::Harness<super::Mariadb>);
}
