//! SQLite: a file for each scenario.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Event, OutboxAdmin, OutboxStore,
    sqlite::{SqliteConfig, SqliteOutbox, SqliteStore},
};
use rusqlite::{Connection, TransactionBehavior, params};
use tempfile::TempDir;
use uuid::Uuid;

use super::database::{ACCOUNTS, Change, Database, End, Failure, Fate, StoreAt};

pub(crate) struct Sqlite {
    folder: TempDir,
    store: SqliteStore,
    outbox: SqliteOutbox,
}

impl Sqlite {
    pub(crate) async fn fresh() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(config(&file(&folder))).unwrap();
        store.migrate().await.unwrap();
        let connection = Connection::open(file(&folder)).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE accounts (id TEXT PRIMARY KEY, changes INTEGER NOT NULL DEFAULT 0);
                 CREATE TABLE changes (event TEXT PRIMARY KEY, account TEXT NOT NULL, sequence INTEGER NOT NULL,
                                       topic TEXT);",
            )
            .unwrap();
        for account in 0..ACCOUNTS {
            let insert = "INSERT INTO accounts (id) VALUES (?1)";
            connection.execute(insert, [format!("account-{account}")]).unwrap();
        }
        Self { outbox: store.outbox(), folder, store }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(file(&self.folder))?;
        connection.busy_timeout(Duration::from_secs(30))?;
        Ok(connection)
    }
}

#[async_trait]
impl Database for Sqlite {
    fn store_at(&self) -> StoreAt {
        StoreAt::Sqlite { path: file(&self.folder) }
    }

    fn store(&self) -> &dyn OutboxStore {
        &self.store
    }

    fn admin(&self) -> &dyn OutboxAdmin {
        &self.store
    }

    fn server(&self) -> Option<(&'static str, String)> {
        None
    }

    fn settles(&self) -> &'static [u8] {
        panic!("a file has no connections to cut")
    }

    async fn transact(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, String> {
        let (connection, outbox, changes) = (self.connect(), self.outbox.clone(), changes.to_vec());
        let work = move || begin_and_end(connection?, &outbox, &changes, open, end);
        tokio::task::spawn_blocking(work).await.unwrap().map_err(|error| error.to_string())
    }

    async fn committed(&self, topic: Option<&str>) -> Vec<(String, Uuid)> {
        let connection = self.connect().unwrap();
        let sql = "SELECT account, event FROM changes WHERE topic IS ?1 ORDER BY sequence";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([topic], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).unwrap();
        rows.map(|row| row.map(|(account, event)| (account, event.parse().unwrap())).unwrap()).collect()
    }

    async fn remove(&self) {
        // The folder goes with this.
    }
}

fn begin_and_end(
    mut connection: Connection,
    outbox: &SqliteOutbox,
    changes: &[Change],
    open: Duration,
    end: End,
) -> Result<Fate, Failure> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for Change { account, events, topic } in changes {
        let change = "UPDATE accounts SET changes = changes + ?2 WHERE id = ?1";
        transaction.execute(change, params![account, events.len() as i64])?;
        let sequences = outbox.enqueue_all(&transaction, events)?;
        let note = "INSERT INTO changes (event, account, sequence, topic) VALUES (?1, ?2, ?3, ?4)";
        let mut note = transaction.prepare_cached(note)?;
        for (event, sequence) in events.iter().map(Event::id).zip(sequences) {
            note.execute(params![event.to_string(), account, sequence, topic])?;
        }
    }
    std::thread::sleep(open);
    Ok(match end {
        End::RollBack => transaction.rollback().map(|()| Fate::RolledBack)?,
        End::Commit => transaction.commit().map_or(Fate::Unknown, |()| Fate::Committed),
    })
}

pub(super) fn open(path: &str) -> Arc<dyn OutboxStore> {
    Arc::new(SqliteStore::open(config(path)).unwrap())
}

fn config(path: &str) -> SqliteConfig {
    SqliteConfig::builder(path).build().unwrap()
}

fn file(folder: &TempDir) -> String {
    folder.path().join("service.sqlite3").to_str().unwrap().to_owned()
}
