//! A database file of a test's own, and the few calls that most tests make.

use std::{path::PathBuf, time::Duration};

use outbox_core::{
    AggregateKey, Event, OutboxStore, WhenSent,
    store::{
        FetchRequest, Fetched, HoldReason, Lease, OutboxReader, Outcome, RelayId, Row, SettleRequest,
        Settlement,
    },
};
use outbox_sqlite::{SqliteConfig, SqliteStore, migrate};
use rusqlite::Connection;

/// A migrated file that is removed with its log when the test ends.
pub(crate) struct TestDatabase {
    pub(crate) config: SqliteConfig,
    path: PathBuf,
}

impl TestDatabase {
    pub(crate) fn new() -> Self {
        let database = Self::empty();
        migrate(&database.config).unwrap();
        database
    }

    /// A path without a file.
    pub(crate) fn empty() -> Self {
        let path = std::env::temp_dir().join(format!("outbox-sqlite-test-{}.db", uuid::Uuid::now_v7()));
        Self { config: SqliteConfig::builder(&path).build().unwrap(), path }
    }

    /// A connection such as a service has.
    pub(crate) fn connect(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection
    }

    pub(crate) fn store(&self) -> SqliteStore {
        SqliteStore::open(self.config.clone()).unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.path.display()));
        }
    }
}

/// A relay that owns the partition, with a reader.
pub(crate) struct TestRelay {
    pub(crate) store: SqliteStore,
    pub(crate) id: RelayId,
    pub(crate) lease: Lease,
    pub(crate) reader: Box<dyn OutboxReader>,
}

impl TestRelay {
    pub(crate) async fn new(store: SqliteStore) -> Self {
        let id = store.join(Duration::from_secs(600)).await.unwrap();
        let epoch = store.membership(id).await.unwrap().partitions[0].epoch;
        let lease = store.claim(id, &[(0, epoch)]).await.unwrap()[0].lease;
        let reader = store.reader(id).await.unwrap();
        Self { store, id, lease, reader }
    }

    pub(crate) fn request(&self) -> FetchRequest {
        FetchRequest::new(vec![self.lease], 1_000, 10_000_000)
    }

    pub(crate) async fn fetch(&mut self) -> Fetched {
        let request = self.request();
        self.reader.fetch(request).await.unwrap()
    }

    pub(crate) async fn settle(&self, rows: &[Row], outcome: Outcome) {
        let settlements = rows.iter().map(|row| {
            Settlement::new(row.sequence, row.partition, row.key.clone(), row.attempts + 1, outcome.clone())
        });
        let request = SettleRequest::new(self.id, vec![self.lease]).with_settlements(settlements.collect());
        let settled = self.store.settle(&request).await.unwrap();
        assert_eq!(settled.fenced, Vec::<u16>::new());
    }
}

pub(crate) fn retry(after: Duration) -> Outcome {
    Outcome::Retry { after, error: "the broker said no".to_owned(), reason: HoldReason::Backoff }
}

pub(crate) fn key(id: &str) -> AggregateKey {
    AggregateKey::new("order", id)
}

pub(crate) fn event(id: &str) -> Event {
    Event::builder("order", id, "order.placed").payload("{}").build().unwrap()
}

pub(crate) fn sequences(rows: &[Row]) -> Vec<i64> {
    rows.iter().map(|row| row.sequence).collect()
}
