//! The contract that all stores share.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{OpenTransaction, StoreHarness};
use outbox_core::{AggregateKey, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence};
use outbox_sqlite::{SqliteConfig, SqliteStore, migrate};
use rusqlite::{Connection, TransactionBehavior};
use uuid::Uuid;

/// A file of the clause's own.
struct SqliteHarness {
    path: PathBuf,
    store: SqliteStore,
}

impl SqliteHarness {
    fn connect(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(self.store.config().busy_timeout()).unwrap();
        connection
    }
}

#[async_trait]
impl StoreHarness for SqliteHarness {
    async fn fresh() -> Option<Self> {
        let path = std::env::temp_dir().join(format!("outbox-sqlite-conformance-{}.db", Uuid::now_v7()));
        let config = SqliteConfig::builder(&path).build().unwrap();
        migrate(&config).unwrap();
        Some(Self { path, store: SqliteStore::open(config).unwrap() })
    }

    async fn cleanup(self) {
        for suffix in ["", "-wal", "-shm"] {
            // Whichever of them SQLite has removed itself is not there any more.
            let _ = std::fs::remove_file(format!("{}{suffix}", self.path.display()));
        }
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }

    fn admin(&self) -> Arc<dyn OutboxAdmin> {
        Arc::new(self.store.clone())
    }

    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError> {
        let mut connection = self.connect();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let sequences = self.store.outbox().enqueue_all(&transaction, &events)?;
        transaction.commit().unwrap();
        Ok(sequences)
    }

    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction> {
        let connection = self.connect();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let outbox = self.store.outbox();
        let sequences = events.iter().map(|event| outbox.enqueue(&connection, event).unwrap()).collect();
        Box::new(Open { connection, sequences })
    }

    fn concurrent_writers(&self) -> bool {
        false
    }

    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence> {
        let connection = self.connect();
        let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, headers) \
                      VALUES (?1, ?2, 'order.placed', '{}', 'no map')";
        connection.execute(insert, [key.aggregate_type(), key.aggregate_id()]).unwrap();
        Some(connection.last_insert_rowid())
    }

    async fn refuse(&self, key: &AggregateKey) -> bool {
        let sql = format!(
            "CREATE TRIGGER refuse BEFORE UPDATE ON outbox \
             WHEN OLD.aggregate_type = '{}' AND OLD.aggregate_id = '{}' \
             BEGIN SELECT RAISE(ABORT, 'refused by a trigger'); END",
            key.aggregate_type(),
            key.aggregate_id()
        );
        self.connect().execute_batch(&sql).unwrap();
        true
    }

    async fn archived(&self) -> Vec<Uuid> {
        let connection = self.connect();
        let mut ids = connection.prepare("SELECT id FROM outbox_archive").unwrap();
        let ids = ids.query_map([], |row| row.get::<_, String>(0)).unwrap();
        ids.map(|id| id.unwrap().parse().unwrap()).collect()
    }

    async fn now(&self) -> DateTime<Utc> {
        let now = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)";
        let millis = self.connect().query_row(now, [], |row| row.get(0)).unwrap();
        DateTime::from_timestamp_millis(millis).unwrap()
    }

    async fn advance(&self, duration: Duration) {
        // SQLite's clock is the machine's, and only waiting moves it.
        let until = self.now().await + duration;
        while self.now().await < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Open {
    connection: Connection,
    sequences: Vec<Sequence>,
}

#[async_trait]
impl OpenTransaction for Open {
    fn sequences(&self) -> Vec<Sequence> {
        self.sequences.clone()
    }

    async fn commit(self: Box<Self>) {
        self.connection.execute_batch("COMMIT").unwrap();
    }

    async fn rollback(self: Box<Self>) {
        self.connection.execute_batch("ROLLBACK").unwrap();
    }
}

outbox_conformance::store_suite!(SqliteHarness);
