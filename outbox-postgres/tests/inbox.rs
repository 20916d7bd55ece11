//! The inbox: the contract that all of them share, and what is PostgreSQL's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    Inbox as _, InboxError, Receipt, StoreErrorKind, consume_once,
    inbox::{EventIdentity, PURGE_AGE_MIN},
};
use outbox_postgres::{PostgresConfig, PostgresInbox, SentRows, inbox_migration_sql};
use sqlx::{Acquire as _, Postgres, Transaction};

use support::Place;

struct PostgresInboxes {
    place: Place,
    /// The isolation level of its transactions.
    isolation: &'static str,
}

impl PostgresInboxes {
    async fn new(isolation: &'static str) -> Option<Self> {
        let place = Place::empty(SentRows::Kept).await?;
        let mut connection = place.pool.acquire().await.unwrap();
        inbox(&place.config, "any").migrate(&mut connection).await.unwrap();
        drop(connection);
        place.run("CREATE TABLE effects (name text)").await;
        Some(Self { place, isolation })
    }
}

fn inbox(config: &PostgresConfig, consumer: &str) -> PostgresInbox {
    PostgresInbox::new(config, consumer).unwrap()
}

#[async_trait]
impl InboxHarness for PostgresInboxes {
    async fn fresh() -> Option<Self> {
        Self::new("READ COMMITTED").await
    }

    async fn cleanup(self) {
        self.place.drop().await;
    }

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        let mut transaction = self.place.pool.begin().await.unwrap();
        let isolation = format!("SET TRANSACTION ISOLATION LEVEL {}", self.isolation);
        support::execute(&mut transaction, &isolation).await;
        Box::new(Open { config: self.place.config.clone(), transaction })
    }

    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        let mut connection = self.place.pool.acquire().await.unwrap();
        Some(inbox(&self.place.config, consumer).receive(&mut connection, event).await)
    }

    async fn effects(&self, name: &str) -> u64 {
        let sql = format!("SELECT count(*) FROM effects WHERE name = '{name}'");
        u64::try_from(self.place.number(&sql).await).unwrap()
    }

    async fn receipts(&self) -> u64 {
        u64::try_from(self.place.number("SELECT count(*) FROM outbox_inbox").await).unwrap()
    }

    async fn now(&self) -> DateTime<Utc> {
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.place.pool).await.unwrap()
    }
}

struct Open {
    config: PostgresConfig,
    transaction: Transaction<'static, Postgres>,
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
        let insert = sqlx::query("INSERT INTO effects VALUES ($1)").bind(name);
        insert.execute(&mut *self.transaction).await.unwrap();
    }

    async fn commit(self: Box<Self>) -> Result<(), InboxError> {
        self.transaction.commit().await.map_err(|error| conflict(&error))
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.rollback().await.unwrap();
    }
}

/// A serializable transaction may be refused as late as that.
fn conflict(error: &sqlx::Error) -> InboxError {
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "40001", "{error}");
    outbox_core::StoreError::new(StoreErrorKind::Conflict, "commit").into()
}

mod read_committed {
    outbox_conformance::inbox_suite!(super::PostgresInboxes);
}

/// The same under the other levels, where the database asks to begin again instead of answering what others
/// committed.
macro_rules! isolated {
    ($module:ident, $level:literal) => {
        mod $module {
            use super::*;

            struct Isolated(PostgresInboxes);

            #[async_trait]
            impl InboxHarness for Isolated {
                async fn fresh() -> Option<Self> {
                    PostgresInboxes::new($level).await.map(Self)
                }

                async fn cleanup(self) {
                    self.0.cleanup().await;
                }

                async fn begin(&self) -> Box<dyn InboxTransaction> {
                    self.0.begin().await
                }

                async fn receive_outside(
                    &self,
                    consumer: &str,
                    event: &EventIdentity,
                ) -> Option<Result<Receipt, InboxError>> {
                    self.0.receive_outside(consumer, event).await
                }

                async fn effects(&self, name: &str) -> u64 {
                    self.0.effects(name).await
                }

                async fn receipts(&self) -> u64 {
                    self.0.receipts().await
                }

                async fn now(&self) -> DateTime<Utc> {
                    self.0.now().await
                }
            }

            outbox_conformance::inbox_suite!(Isolated);
        }
    };
}

isolated!(repeatable_read, "REPEATABLE READ");
isolated!(serializable, "SERIALIZABLE");

/// An event that happened so long ago.
fn event(id: &str, age: Duration) -> EventIdentity {
    EventIdentity::new("/shop", id, Some(Utc::now() - age)).unwrap()
}

const OLD: Duration = Duration::from_secs(3 * 3600);

/// The purge commits after the transaction has its snapshot and before it asks: what it sees is from before.
#[tokio::test]
async fn a_snapshot_from_before_the_purge_does_not_make_an_old_event_new() {
    for (first_of_its_source, isolation) in [(true, "REPEATABLE READ"), (false, "SERIALIZABLE")] {
        let Some(inboxes) = PostgresInboxes::new(isolation).await else { return };
        let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
        let (copied, other) = (event("1", OLD), event("2", OLD + OLD));
        for event in if first_of_its_source { vec![&copied] } else { vec![&other, &copied] } {
            let mut transaction = place.pool.begin().await.unwrap();
            assert_eq!(inbox.receive(&mut transaction, event).await.unwrap(), Receipt::New);
            transaction.commit().await.unwrap();
        }
        let purge = async || {
            let mut transaction = place.pool.begin().await.unwrap();
            assert_eq!(inbox.purge(&mut transaction, PURGE_AGE_MIN, 1).await.unwrap(), 1);
            transaction.commit().await.unwrap();
        };
        if !first_of_its_source {
            purge().await;
        }
        let mut late = place.pool.begin().await.unwrap();
        support::execute(&mut late, &format!("SET TRANSACTION ISOLATION LEVEL {isolation}")).await;
        support::execute(&mut late, "SELECT count(*) FROM outbox_inbox").await;
        purge().await;
        match inbox.receive(&mut late, &copied).await {
            Err(InboxError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Conflict, "{error}"),
            answer => panic!("{answer:?}"),
        }
        late.rollback().await.unwrap();
        inboxes.cleanup().await;
    }
}

#[tokio::test]
async fn the_inbox_needs_no_outbox_and_printed_statements_make_the_same_tables() {
    let Some(place) = Place::empty(SentRows::Kept).await else { return };
    let inbox = inbox(&place.config, "billing");
    let mut connection = place.pool.acquire().await.unwrap();
    let missing = inbox.check(&mut connection).await.unwrap();
    assert_eq!(missing.iter().filter(|finding| finding.code == "missing-table").count(), 3, "{missing:?}");
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
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()";
    assert_eq!(place.number(tables).await, 3);
    place.drop().await;
}

#[tokio::test]
async fn two_processes_may_migrate_at_once() {
    let Some(place) = Place::empty(SentRows::Kept).await else { return };
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

#[tokio::test]
async fn findings_name_what_is_wrong_and_a_newer_version_is_left_alone() {
    let Some(inboxes) = PostgresInboxes::new("READ COMMITTED").await else { return };
    let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
    let mut transaction = place.pool.begin().await.unwrap();
    let timeless = EventIdentity::new("/legacy", "17", None).unwrap();
    assert_eq!(inbox.receive(&mut transaction, &timeless).await.unwrap(), Receipt::New);
    transaction.commit().await.unwrap();
    let mut connection = place.pool.acquire().await.unwrap();
    let codes = async |connection: &mut sqlx::PgConnection| -> Vec<&str> {
        inbox.check(connection).await.unwrap().iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(&mut connection).await, ["events-without-time"]);
    place.run("UPDATE outbox_inbox_meta SET value = 0").await;
    assert_eq!(codes(&mut connection).await, ["schema-older", "events-without-time"]);
    place.run("UPDATE outbox_inbox_meta SET value = 2").await;
    assert_eq!(codes(&mut connection).await, ["schema-newer", "events-without-time"]);
    let error = inbox.migrate(&mut connection).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    place.run("ALTER TABLE outbox_inbox DROP COLUMN time; DROP TABLE outbox_inbox_horizons").await;
    assert_eq!(codes(&mut connection).await, ["missing-column", "missing-table"]);
    drop(connection);
    inboxes.cleanup().await;
}

#[tokio::test]
async fn the_documented_privileges_are_enough_and_missing_ones_are_named() {
    let Some(inboxes) = PostgresInboxes::new("READ COMMITTED").await else { return };
    let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
    let role = format!("r_{}", &place.schema[..38]);
    place.run(&format!("CREATE ROLE {role}; GRANT USAGE ON SCHEMA {} TO {role}", place.schema)).await;
    let mut connection = place.pool.acquire().await.unwrap();
    support::execute(&mut connection, &format!("SET ROLE {role}")).await;
    let findings = inbox.check(&mut connection).await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.code == "privilege").count(), 3, "{findings:?}");
    place
        .run(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_inbox TO {role}; \
             GRANT SELECT, INSERT, UPDATE ON outbox_inbox_horizons TO {role}; \
             GRANT SELECT ON outbox_inbox_meta TO {role}"
        ))
        .await;
    assert_eq!(inbox.check(&mut connection).await.unwrap(), []);
    let mut transaction = connection.begin().await.unwrap();
    let old = event("1", OLD);
    assert_eq!(inbox.receive(&mut transaction, &old).await.unwrap(), Receipt::New);
    assert_eq!(inbox.purge(&mut transaction, PURGE_AGE_MIN, 10).await.unwrap(), 1);
    assert_eq!(inbox.receive(&mut transaction, &old).await.unwrap(), Receipt::TooOld);
    transaction.commit().await.unwrap();
    drop(connection);
    place.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    inboxes.cleanup().await;
}

/// A handler on a task of its own.
#[tokio::test]
async fn an_effect_is_made_once_on_any_task() {
    let Some(inboxes) = PostgresInboxes::new("READ COMMITTED").await else { return };
    let copies = [(); 4].map(|()| {
        let (pool, inbox) = (inboxes.place.pool.clone(), inbox(&inboxes.place.config, "billing"));
        tokio::spawn(async move {
            let (event, name) = (EventIdentity::new("/shop", "1", None).unwrap(), String::from("invoice"));
            let mut transaction = pool.begin().await.unwrap();
            let effect = async |transaction: &mut sqlx::PgConnection| -> Result<(), InboxError> {
                let insert = sqlx::query("INSERT INTO effects VALUES ($1)").bind(&name);
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
    assert_eq!(inboxes.effects("invoice").await, 1);
    inboxes.cleanup().await;
}

/// Few rows of many are old: the purge and the receipt look at no others.
#[tokio::test]
async fn no_statement_reads_the_whole_table() {
    let Some(inboxes) = PostgresInboxes::new("READ COMMITTED").await else { return };
    let (place, inbox) = (&inboxes.place, inbox(&inboxes.place.config, "billing"));
    place
        .run(
            "INSERT INTO outbox_inbox SELECT 'billing', '/shop', n::text, clock_timestamp() - n * interval '1 s' \
             FROM generate_series(1, 50000) n; ANALYZE outbox_inbox",
        )
        .await;
    let mut transaction = place.pool.begin().await.unwrap();
    assert_eq!(inbox.receive(&mut transaction, &event("x", OLD)).await.unwrap(), Receipt::New);
    assert_eq!(inbox.receive(&mut transaction, &event("7", OLD)).await.unwrap(), Receipt::Seen);
    assert_eq!(inbox.purge(&mut transaction, PURGE_AGE_MIN, 100).await.unwrap(), 100);
    let sql = "SELECT pg_stat_get_xact_numscans('outbox_inbox'::regclass), \
               pg_stat_get_xact_tuples_returned('outbox_inbox'::regclass)";
    let (scans, rows): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut *transaction).await.unwrap();
    assert_eq!((scans, rows), (0, 0), "sequential scans of this transaction, and the rows they read");
    transaction.rollback().await.unwrap();
    inboxes.cleanup().await;
}
