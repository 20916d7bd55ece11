//! The inbox: the contract that all of them share, and what is MySQL's and MariaDB's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{marker::PhantomData, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    Inbox as _, InboxError, Receipt, StoreErrorKind, consume_once,
    inbox::{EventIdentity, PURGE_AGE_MIN},
};
use outbox_mysql::{MysqlConfig, MysqlInbox, inbox_migration_sql};
use sqlx::{Acquire as _, AssertSqlSafe, MySql, MySqlConnection, MySqlPool, Transaction};

use support::{Mariadb, Mysql, On, Place, Server, execute, on_both};

on_both! {
    an_old_event_that_is_purged_beside_a_frozen_snapshot_is_too_old
    a_fresh_receipt_keeps_no_purge_waiting
    the_inbox_needs_no_outbox_and_printed_statements_make_the_same_tables
    two_processes_may_migrate_at_once
    findings_name_what_is_wrong_and_a_newer_version_is_left_alone
    the_documented_privileges_are_enough_and_missing_ones_are_named
    an_effect_is_made_once_on_any_task
    a_purge_finds_any_name
    no_statement_reads_the_whole_table
}

struct Inboxes {
    place: Place,
    /// The isolation level of its transactions.
    isolation: &'static str,
}

impl Inboxes {
    async fn new(server: Server, isolation: &'static str) -> Option<Self> {
        let place = Place::empty(server).await?;
        let mut connection = place.pool.acquire().await.unwrap();
        inbox(&place.config, "any").migrate(&mut connection).await.unwrap();
        drop(connection);
        place.run("CREATE TABLE effects (number INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(255))").await;
        Some(Self { place, isolation })
    }

    async fn begin(&self) -> Transaction<'static, MySql> {
        begin(&self.place.pool, self.isolation).await
    }
}

async fn begin(pool: &MySqlPool, isolation: &str) -> Transaction<'static, MySql> {
    let begin = format!("SET TRANSACTION ISOLATION LEVEL {isolation}; START TRANSACTION");
    pool.begin_with(AssertSqlSafe(begin)).await.unwrap()
}

fn inbox(config: &MysqlConfig, consumer: &str) -> MysqlInbox {
    MysqlInbox::new(config, consumer).unwrap()
}

/// An isolation level as a type, for the harnesses. The second is the servers' default.
trait Level: Send + Sync + 'static {
    const SQL: &str;
}

struct ReadCommitted;
struct RepeatableRead;
struct Serializable;

impl Level for ReadCommitted {
    const SQL: &str = "READ COMMITTED";
}

impl Level for RepeatableRead {
    const SQL: &str = "REPEATABLE READ";
}

impl Level for Serializable {
    const SQL: &str = "SERIALIZABLE";
}

struct Harness<S, L>(Inboxes, PhantomData<(S, L)>);

#[async_trait]
impl<S: On, L: Level> InboxHarness for Harness<S, L> {
    async fn fresh() -> Option<Self> {
        Some(Self(Inboxes::new(S::SERVER, L::SQL).await?, PhantomData))
    }

    async fn cleanup(self) {
        self.0.place.drop().await;
    }

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        Box::new(Open { config: self.0.place.config.clone(), transaction: self.0.begin().await })
    }

    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        let mut connection = self.0.place.pool.acquire().await.unwrap();
        Some(inbox(&self.0.place.config, consumer).receive(&mut connection, event).await)
    }

    async fn effects(&self, name: &str) -> u64 {
        effects(&self.0.place, name).await
    }

    async fn receipts(&self) -> u64 {
        u64::try_from(self.0.place.number("SELECT COUNT(*) FROM outbox_inbox").await).unwrap()
    }

    async fn now(&self) -> DateTime<Utc> {
        let sql = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
        DateTime::from_timestamp_micros(self.0.place.number(sql).await).unwrap()
    }
}

async fn effects(place: &Place, name: &str) -> u64 {
    let sql = format!("SELECT COUNT(*) FROM effects WHERE name = '{name}'");
    u64::try_from(place.number(&sql).await).unwrap()
}

struct Open {
    config: MysqlConfig,
    transaction: Transaction<'static, MySql>,
}

#[async_trait]
impl InboxTransaction for Open {
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        inbox(&self.config, consumer).receive(&mut self.transaction, event).await
    }

    async fn purge(
        &mut self,
        consumer: &str,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        inbox(&self.config, consumer).purge(&mut self.transaction, older_than, rows_max).await
    }

    async fn effect(&mut self, name: &str) {
        let insert = sqlx::query("INSERT INTO effects (name) VALUES (?)").bind(name);
        insert.execute(&mut *self.transaction).await.unwrap();
    }

    async fn commit(self: Box<Self>) -> Result<(), InboxError> {
        self.transaction.commit().await.unwrap();
        Ok(())
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.rollback().await.unwrap();
    }
}

/// The suite on a server, under each isolation level.
macro_rules! suites {
    ($($name:ident: $server:ident, $level:ident;)+) => {
        $(mod $name {
            outbox_conformance::inbox_suite!(super::Harness<super::$server, super::$level>);
        })+
    };
}

suites! {
    mysql_read_committed: Mysql, ReadCommitted;
    mysql_repeatable_read: Mysql, RepeatableRead;
    mysql_serializable: Mysql, Serializable;
    mariadb_read_committed: Mariadb, ReadCommitted;
    mariadb_repeatable_read: Mariadb, RepeatableRead;
    mariadb_serializable: Mariadb, Serializable;
}

/// An event that happened so long ago.
fn event(id: &str, age: Duration) -> EventIdentity {
    EventIdentity::new("/shop", id, Some(Utc::now() - age)).unwrap()
}

const OLD: Duration = Duration::from_secs(3 * 3600);
const FRESH: Duration = Duration::from_secs(1);

async fn handle(inboxes: &Inboxes, events: &[&EventIdentity]) {
    let mut transaction = inboxes.begin().await;
    for event in events {
        let receipt = inbox(&inboxes.place.config, "billing").receive(&mut transaction, event).await.unwrap();
        assert_eq!(receipt, Receipt::New, "{event:?}");
    }
    transaction.commit().await.unwrap();
}

async fn purge(inboxes: &Inboxes, rows_max: u32) -> u64 {
    let mut transaction = inboxes.begin().await;
    let inbox = inbox(&inboxes.place.config, "billing");
    let purged = inbox.purge(&mut transaction, PURGE_AGE_MIN, rows_max).await.unwrap();
    transaction.commit().await.unwrap();
    purged
}

/// The purge commits after the transaction has its snapshot and before it asks: what it sees is from before.
async fn an_old_event_that_is_purged_beside_a_frozen_snapshot_is_too_old(server: Server) {
    for first_of_its_source in [true, false] {
        let Some(inboxes) = Inboxes::new(server, "REPEATABLE READ").await else { return };
        let (copied, other) = (event("1", OLD), event("2", OLD + OLD));
        if !first_of_its_source {
            handle(&inboxes, &[&other]).await;
            assert_eq!(purge(&inboxes, 1).await, 1);
        }
        handle(&inboxes, &[&copied]).await;
        let mut late = inboxes.begin().await;
        execute(&mut late, "SELECT COUNT(*) FROM outbox_inbox").await;
        assert_eq!(purge(&inboxes, 1).await, 1);
        let inbox = inbox(&inboxes.place.config, "billing");
        assert_eq!(inbox.receive(&mut late, &copied).await.unwrap(), Receipt::TooOld);
        late.rollback().await.unwrap();
        inboxes.place.drop().await;
    }
}

/// A lock on the horizon, or on the gap where it is to be, would make a purge wait for every handler.
async fn a_fresh_receipt_keeps_no_purge_waiting(server: Server) {
    for level in [ReadCommitted::SQL, RepeatableRead::SQL, Serializable::SQL] {
        let Some(inboxes) = Inboxes::new(server, level).await else { return };
        // The receipt that is next to the end keeps the lock of the purge's range from that end, where fresh
        // ones go.
        handle(&inboxes, &[&event("old", OLD), &event("young", PURGE_AGE_MIN / 2)]).await;
        let mut open = inboxes.begin().await;
        let inbox = inbox(&inboxes.place.config, "billing");
        assert_eq!(inbox.receive(&mut open, &event("fresh", FRESH)).await.unwrap(), Receipt::New);
        let mut purge = inboxes.begin().await;
        execute(&mut purge, "SET SESSION innodb_lock_wait_timeout = 1").await;
        assert_eq!(inbox.purge(&mut purge, PURGE_AGE_MIN, 10).await.unwrap(), 1, "{level}");
        purge.commit().await.unwrap();
        open.commit().await.unwrap();
        inboxes.place.drop().await;
    }
}

async fn the_inbox_needs_no_outbox_and_printed_statements_make_the_same_tables(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    let inbox = inbox(&place.config, "billing");
    let mut connection = place.pool.acquire().await.unwrap();
    let missing = inbox.check(&mut connection).await.unwrap();
    assert_eq!(missing.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["missing-table"]);
    assert!(missing[0].problem.contains("outbox_inbox_horizons"), "all are named: {missing:?}");
    let refused = {
        let mut transaction = connection.begin().await.unwrap();
        inbox.receive(&mut transaction, &event("1", OLD)).await.unwrap_err()
    };
    assert!(
        matches!(&refused, InboxError::Store(error) if error.kind() == StoreErrorKind::Schema),
        "{refused}"
    );
    for _ in 0..2 {
        place.run(&inbox_migration_sql(&place.config)).await;
    }
    inbox.migrate(&mut connection).await.unwrap();
    assert_eq!(inbox.check(&mut connection).await.unwrap(), []);
    drop(connection);
    let tables = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()";
    assert_eq!(place.number(tables).await, 3);
    place.drop().await;
}

async fn two_processes_may_migrate_at_once(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    let migrations = [(); 4].map(|()| {
        let (pool, inbox) = (place.pool.clone(), inbox(&place.config, "billing"));
        tokio::spawn(async move { inbox.migrate(&mut pool.acquire().await.unwrap()).await })
    });
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    let mut connection = place.pool.acquire().await.unwrap();
    assert_eq!(inbox(&place.config, "billing").check(&mut connection).await.unwrap(), []);
    drop(connection);
    place.drop().await;
}

async fn findings_name_what_is_wrong_and_a_newer_version_is_left_alone(server: Server) {
    let Some(inboxes) = Inboxes::new(server, "READ COMMITTED").await else { return };
    handle(&inboxes, &[&EventIdentity::new("/legacy", "17", None).unwrap()]).await;
    let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
    let mut connection = place.pool.acquire().await.unwrap();
    let codes = async |connection: &mut MySqlConnection| -> Vec<&str> {
        inbox.check(connection).await.unwrap().iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(&mut connection).await, ["events-without-time"]);
    place.run("UPDATE outbox_inbox_meta SET value = 0").await;
    assert_eq!(codes(&mut connection).await, ["schema-older", "events-without-time"]);
    place.run("UPDATE outbox_inbox_meta SET value = 2").await;
    // The text of this release, run by a user's own tool.
    place.run(&inbox_migration_sql(&place.config)).await;
    assert_eq!(codes(&mut connection).await, ["schema-newer", "events-without-time"]);
    let error = inbox.migrate(&mut connection).await.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Schema && error.to_string().contains("version 2"), "{error}");
    place.run("UPDATE outbox_inbox_meta SET value = 1; DELETE FROM outbox_inbox").await;
    for (wrong, code) in [
        ("ALTER TABLE outbox_inbox_horizons ENGINE = MyISAM", "engine"),
        ("ALTER TABLE outbox_inbox MODIFY COLUMN source VARCHAR(191) NOT NULL", "collation"),
        ("ALTER TABLE outbox_inbox DROP INDEX time", "missing-index"),
        ("ALTER TABLE outbox_inbox DROP COLUMN time", "missing-column"),
        ("DROP TABLE outbox_inbox_meta", "missing-table"),
    ] {
        place.run(wrong).await;
        let found = codes(&mut connection).await;
        assert!(found.contains(&code), "{wrong}: {found:?}");
    }
    drop(connection);
    inboxes.place.drop().await;
}

async fn the_documented_privileges_are_enough_and_missing_ones_are_named(server: Server) {
    let Some(inboxes) = Inboxes::new(server, "READ COMMITTED").await else { return };
    let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
    let (schema, user) = (&place.schema, format!("c{}", &place.schema[20..]));
    place
        .run(&format!("CREATE USER {user} IDENTIFIED BY 'secret'; GRANT SELECT ON {schema}.* TO {user}"))
        .await;
    let pool = async || {
        let url = place.url.replace("outbox:outbox@", &format!("{user}:secret@"));
        MySqlPool::connect(&url).await.unwrap()
    };
    let consumer = pool().await;
    let findings = inbox.check(&mut consumer.acquire().await.unwrap()).await.unwrap();
    assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["privilege", "privilege"]);
    assert!(findings[0].problem.contains("may not INSERT, DELETE"), "{findings:?}");
    consumer.close().await;
    for (privileges, table) in [
        ("SELECT, INSERT, DELETE", "outbox_inbox"),
        ("SELECT, INSERT, UPDATE", "outbox_inbox_horizons"),
        ("SELECT", "outbox_inbox_meta"),
    ] {
        place.run(&format!("GRANT {privileges} ON {schema}.{table} TO {user}")).await;
    }
    place.run(&format!("REVOKE SELECT ON {schema}.* FROM {user}")).await;
    let consumer = pool().await;
    assert_eq!(inbox.check(&mut consumer.acquire().await.unwrap()).await.unwrap(), []);
    let mut transaction = consumer.begin().await.unwrap();
    let old = event("1", OLD);
    assert_eq!(inbox.receive(&mut transaction, &old).await.unwrap(), Receipt::New);
    assert_eq!(inbox.purge(&mut transaction, PURGE_AGE_MIN, 10).await.unwrap(), 1);
    assert_eq!(inbox.receive(&mut transaction, &old).await.unwrap(), Receipt::TooOld);
    transaction.commit().await.unwrap();
    consumer.close().await;
    place.run(&format!("DROP USER {user}")).await;
    inboxes.place.drop().await;
}

/// A handler on a task of its own.
async fn an_effect_is_made_once_on_any_task(server: Server) {
    let Some(inboxes) = Inboxes::new(server, "READ COMMITTED").await else { return };
    let copies = [(); 4].map(|()| {
        let (pool, inbox) = (inboxes.place.pool.clone(), inbox(&inboxes.place.config, "billing"));
        tokio::spawn(async move {
            let (event, name) = (EventIdentity::new("/shop", "1", None).unwrap(), String::from("invoice"));
            let mut transaction = pool.begin().await.unwrap();
            let effect = async |transaction: &mut MySqlConnection| -> Result<(), InboxError> {
                let insert = sqlx::query("INSERT INTO effects (name) VALUES (?)").bind(&name);
                insert.execute(transaction).await.unwrap();
                Ok(())
            };
            let receipt = consume_once(&inbox, &mut *transaction, &event, effect).await.unwrap();
            transaction.commit().await.unwrap();
            receipt
        })
    });
    let receipts = futures::future::join_all(copies).await;
    assert_eq!(receipts.into_iter().filter(|receipt| matches!(receipt, Ok(Receipt::New))).count(), 1);
    assert_eq!(effects(&inboxes.place, "invoice").await, 1);
    inboxes.place.drop().await;
}

async fn a_purge_finds_any_name(server: Server) {
    let Some(inboxes) = Inboxes::new(server, "READ COMMITTED").await else { return };
    let names = ["order", "Order", "order ", "o\"rder\\", "ordér", "orde\u{301}r", "🦀", "%", "['x']"];
    let old = |source: &str, id: &str| EventIdentity::new(source, id, Some(Utc::now() - OLD)).unwrap();
    let events: Vec<_> = names.iter().flat_map(|name| [old(name, "1"), old("/shop", name)]).collect();
    handle(&inboxes, &events.iter().collect::<Vec<_>>()).await;
    assert_eq!(purge(&inboxes, 1000).await, 18);
    assert_eq!(inboxes.place.number("SELECT COUNT(*) FROM outbox_inbox").await, 0);
    assert_eq!(inboxes.place.number("SELECT COUNT(*) FROM outbox_inbox_horizons").await, 10);
    let mut transaction = inboxes.begin().await;
    for event in &events {
        let receipt = inbox(&inboxes.place.config, "billing").receive(&mut transaction, event).await;
        assert_eq!(receipt.unwrap(), Receipt::TooOld, "{event:?}");
    }
    transaction.rollback().await.unwrap();
    inboxes.place.drop().await;
}

/// Few rows of many are old: the purge and the receipt look at no others.
async fn no_statement_reads_the_whole_table(server: Server) {
    let Some(inboxes) = Inboxes::new(server, "READ COMMITTED").await else { return };
    let digits = "(SELECT 0 n UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6 \
                  UNION SELECT 7 UNION SELECT 8 UNION SELECT 9)";
    inboxes
        .place
        .run(&format!(
            "INSERT INTO outbox_inbox (consumer, source, id, time) \
             SELECT 'billing', '/shop', n, UTC_TIMESTAMP(6) - INTERVAL n SECOND FROM \
               (SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n AS n \
                FROM {digits} a, {digits} b, {digits} c, {digits} d) numbers; ANALYZE TABLE outbox_inbox"
        ))
        .await;
    let inbox = inbox(&inboxes.place.config, "billing");
    let mut connection = inboxes.place.pool.acquire().await.unwrap();
    execute(&mut connection, "FLUSH STATUS").await;
    let mut transaction = connection.begin().await.unwrap();
    assert_eq!(inbox.receive(&mut transaction, &event("x", OLD)).await.unwrap(), Receipt::New);
    assert_eq!(inbox.receive(&mut transaction, &event("7", OLD)).await.unwrap(), Receipt::Seen);
    assert_eq!(inbox.purge(&mut transaction, PURGE_AGE_MIN, 100).await.unwrap(), 100);
    let sql = "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_read_next', 'Handler_read_prev', 'Handler_read_rnd_next')";
    let read: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&mut *transaction).await.unwrap();
    let read: u64 = read.iter().map(|(_, count)| count.parse::<u64>().unwrap()).sum();
    // The purge reads its rows, and those of its parameter from a table in memory, once or twice.
    assert!(read < 500, "{read} rows were read");
    transaction.rollback().await.unwrap();
    drop(connection);
    inboxes.place.drop().await;
}
