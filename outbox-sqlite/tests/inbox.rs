//! The inbox: the contract that all of them share, and what is SQLite's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    Inbox, InboxError, Receipt, StoreErrorKind, consume_once,
    inbox::{EventIdentity, PURGE_AGE_MIN},
};
use outbox_sqlite::{SqliteConfig, SqliteInbox, inbox_migration_sql};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::task::block_in_place;
use uuid::Uuid;

/// A file with nothing but an inbox and a table of the consumer's own.
struct SqliteInboxes {
    path: PathBuf,
    config: SqliteConfig,
}

impl SqliteInboxes {
    /// A file without tables.
    fn empty() -> Self {
        let path = std::env::temp_dir().join(format!("outbox-sqlite-inbox-{}.db", Uuid::now_v7()));
        Self { config: SqliteConfig::builder(&path).build().unwrap(), path }
    }

    fn new() -> Self {
        let inboxes = Self::empty();
        let mut connection = inboxes.connect();
        inboxes.inbox("any").migrate(&mut connection).unwrap();
        connection.execute_batch("CREATE TABLE effects (name TEXT)").unwrap();
        inboxes
    }

    fn connect(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection
    }

    fn inbox(&self, consumer: &str) -> SqliteInbox {
        SqliteInbox::new(&self.config, consumer).unwrap()
    }

    fn number(&self, sql: &str) -> u64 {
        self.connect().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
    }
}

impl Drop for SqliteInboxes {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            // Whichever of them SQLite has removed itself is not there any more.
            let _ = std::fs::remove_file(format!("{}{suffix}", self.path.display()));
        }
    }
}

#[async_trait]
impl InboxHarness for SqliteInboxes {
    async fn fresh() -> Option<Self> {
        Some(Self::new())
    }

    async fn cleanup(self) {}

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        let connection = self.connect();
        // Deferred, so that it is the receipt that waits for another writer.
        connection.execute_batch("BEGIN").unwrap();
        Box::new(Open { config: self.config.clone(), connection })
    }

    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        Some(self.inbox(consumer).receive(&self.connect(), event))
    }

    async fn effects(&self, name: &str) -> u64 {
        self.number(&format!("SELECT count(*) FROM effects WHERE name = '{name}'"))
    }

    async fn receipts(&self) -> u64 {
        self.number("SELECT count(*) FROM outbox_inbox")
    }

    async fn now(&self) -> DateTime<Utc> {
        let now = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)";
        DateTime::from_timestamp_millis(self.number(now).try_into().unwrap()).unwrap()
    }
}

struct Open {
    config: SqliteConfig,
    connection: Connection,
}

#[async_trait]
impl InboxTransaction for Open {
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        let inbox = SqliteInbox::new(&self.config, consumer).unwrap();
        block_in_place(|| inbox.receive(&self.connection, event))
    }

    async fn purge(
        &mut self,
        consumer: &str,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        let inbox = SqliteInbox::new(&self.config, consumer).unwrap();
        block_in_place(|| inbox.purge(&self.connection, older_than, rows_max))
    }

    async fn effect(&mut self, name: &str) {
        self.connection.execute("INSERT INTO effects VALUES (?1)", [name]).unwrap();
    }

    async fn commit(self: Box<Self>) -> Result<(), InboxError> {
        block_in_place(|| self.connection.execute_batch("COMMIT")).unwrap();
        Ok(())
    }

    async fn rollback(self: Box<Self>) {
        self.connection.execute_batch("ROLLBACK").unwrap();
    }
}

mod conformance {
    outbox_conformance::inbox_suite!(super::SqliteInboxes);
}

fn event(id: &str) -> EventIdentity {
    EventIdentity::new("/shop", id, Some(Utc::now() - 3 * PURGE_AGE_MIN)).unwrap()
}

#[test]
fn the_inbox_needs_no_outbox_and_printed_statements_make_the_same_tables() {
    let inboxes = SqliteInboxes::empty();
    let (mut connection, inbox) = (inboxes.connect(), inboxes.inbox("billing"));
    let missing = inbox.check(&connection).unwrap();
    assert_eq!(missing.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["missing-table"; 3]);
    let transaction = connection.transaction().unwrap();
    let refused = inbox.receive(&transaction, &event("1")).unwrap_err();
    assert!(
        matches!(&refused, InboxError::Store(error) if error.kind() == StoreErrorKind::Schema),
        "{refused}"
    );
    drop(transaction);
    for _ in 0..2 {
        connection.execute_batch(&inbox_migration_sql(&inboxes.config)).unwrap();
    }
    inbox.migrate(&mut connection).unwrap();
    assert_eq!(inbox.check(&connection).unwrap(), []);
    assert_eq!(inboxes.number("SELECT count(*) FROM sqlite_master WHERE type = 'table'"), 3);
}

#[test]
fn findings_name_what_is_wrong_and_a_newer_version_is_left_alone() {
    let inboxes = SqliteInboxes::new();
    let (mut connection, inbox) = (inboxes.connect(), inboxes.inbox("billing"));
    let codes = |connection: &_| inbox.check(connection).unwrap().iter().map(|f| f.code).collect::<Vec<_>>();
    let transaction = connection.transaction().unwrap();
    let timeless = EventIdentity::new("/legacy", "17", None).unwrap();
    assert_eq!(inbox.receive(&transaction, &timeless).unwrap(), Receipt::New);
    transaction.commit().unwrap();
    assert_eq!(codes(&connection), ["events-without-time"]);
    connection.execute_batch("PRAGMA synchronous = OFF; DELETE FROM outbox_inbox").unwrap();
    assert_eq!(codes(&connection), ["synchronous-off"]);
    connection
        .execute_batch("PRAGMA synchronous = FULL; UPDATE outbox_inbox_schema SET version = 0")
        .unwrap();
    assert_eq!(codes(&connection), ["schema-older"]);
    connection.execute_batch("UPDATE outbox_inbox_schema SET version = 2").unwrap();
    assert_eq!(codes(&connection), ["schema-newer"]);
    assert_eq!(inbox.migrate(&mut connection).unwrap_err().kind(), StoreErrorKind::Schema);
    let sql = "DROP INDEX outbox_inbox_time; ALTER TABLE outbox_inbox DROP COLUMN time; DROP TABLE outbox_inbox_horizons";
    connection.execute_batch(sql).unwrap();
    assert_eq!(codes(&connection), ["missing-column", "missing-table"]);
}

#[test]
fn two_processes_may_migrate_at_once() {
    let inboxes = SqliteInboxes::empty();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| inboxes.inbox("billing").migrate(&mut inboxes.connect()).unwrap());
        }
    });
    assert_eq!(inboxes.inbox("billing").check(&inboxes.connect()).unwrap(), []);
}

#[test]
fn a_writer_that_stays_in_the_way_is_a_conflict() {
    let inboxes = SqliteInboxes::new();
    let (mut first, mut second) = (inboxes.connect(), inboxes.connect());
    second.busy_timeout(Duration::ZERO).unwrap();
    let inbox = inboxes.inbox("billing");
    let first = first.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    assert_eq!(inbox.receive(&first, &event("1")).unwrap(), Receipt::New);
    let second = second.transaction().unwrap();
    let refused = inbox.receive(&second, &event("2")).unwrap_err();
    assert!(
        matches!(&refused, InboxError::Store(error) if error.kind() == StoreErrorKind::Conflict),
        "{refused}"
    );
}

/// Code that knows no store.
async fn handle<T>(inbox: &impl Inbox<T>, transaction: &mut T, effect: impl Fn(&mut T)) -> Receipt {
    let event = event("1");
    let answer = consume_once(inbox, transaction, &event, async |transaction: &mut T| {
        effect(transaction);
        Ok::<(), InboxError>(())
    });
    answer.await.unwrap()
}

#[tokio::test]
async fn code_that_knows_no_store_makes_an_effect_once() {
    let inboxes = SqliteInboxes::new();
    let (mut connection, inbox) = (inboxes.connect(), inboxes.inbox("billing"));
    for expected in [Receipt::New, Receipt::Seen] {
        let mut transaction = connection.transaction().unwrap();
        let effect = |transaction: &mut Transaction<'_>| {
            transaction.execute("INSERT INTO effects VALUES ('invoice')", []).unwrap();
        };
        assert_eq!(handle(&inbox, &mut transaction, effect).await, expected);
        transaction.commit().unwrap();
    }
    assert_eq!(inboxes.number("SELECT count(*) FROM effects"), 1);
    let mut transaction = connection.transaction().unwrap();
    assert_eq!(Inbox::purge(&inbox, &mut transaction, PURGE_AGE_MIN, 10).await.unwrap(), 1);
}

/// What is searched by an index is so by its plan.
#[test]
fn no_statement_reads_the_whole_table() {
    let inboxes = SqliteInboxes::new();
    let connection = inboxes.connect();
    for sql in [
        "SELECT source, id FROM outbox_inbox WHERE consumer = ?1 AND time < ?2 ORDER BY time LIMIT ?3",
        "DELETE FROM outbox_inbox WHERE consumer = ?1 AND (source, id) IN (SELECT source, id FROM outbox_inbox \
         WHERE consumer = ?1 AND time < ?2 ORDER BY time LIMIT ?3)",
    ] {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let plan = plan.query_map(["", "0", "1"], |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = plan.map(Result::unwrap).collect();
        assert!(
            plan.iter().all(|step| !step.starts_with("SCAN") && !step.contains("TEMP B-TREE")),
            "{plan:?}"
        );
    }
}
