//! A file of SQLite.

use std::sync::Arc;

use outbox_core::OutboxStore;
use outbox_sqlite::{SqliteConfig, SqliteInbox, SqliteOutbox, SqliteStore};

use super::{CONSUMER, Place};

/// A file of SQLite.
pub struct SqlitePlace {
    folder: tempfile::TempDir,
    config: SqliteConfig,
    store: SqliteStore,
}

impl SqlitePlace {
    /// The file.
    pub fn path(&self) -> String {
        self.folder.path().join("shop.sqlite3").to_str().unwrap().to_owned()
    }

    /// Its writer's side.
    pub fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox::new(&self.config)
    }

    /// Its consumer's side.
    pub fn inbox(&self) -> SqliteInbox {
        SqliteInbox::new(&self.config, CONSUMER).unwrap()
    }
}

impl Place for SqlitePlace {
    const COUNT_SCHEDULED: &'static str = "SELECT count(*) FROM outbox WHERE available_at = 1767323045678901";

    async fn fresh() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sqlite3");
        let config = SqliteConfig::builder(&path).build().unwrap();
        let store = SqliteStore::open(config.clone()).unwrap();
        store.migrate().await.unwrap();
        let place = Self { folder, config, store };
        place.inbox().migrate(&mut rusqlite::Connection::open(&path).unwrap()).unwrap();
        Some(place)
    }

    async fn drop(self) {}

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}
