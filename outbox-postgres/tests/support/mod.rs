//! A schema of its own for each test, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    unused_imports,
    reason = "helpers of tests, not all of them used by each"
)]

use std::time::Duration;

use outbox_conformance::testing;
pub(crate) use outbox_conformance::testing::{event, key, request, sequences, settle};
use outbox_core::{
    Enqueue as _, Event, OutboxStore as _,
    store::{Lease, RelayId, Sequence},
};
use outbox_postgres::{PostgresConfig, PostgresOutbox, PostgresStore, SentRows};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

/// The variable with the address of the older server, which all tests use.
pub(crate) const VARIABLE: &str = "OUTBOX_TEST_POSTGRES_URL";

/// That of a newer one, on which the shared contract is tested as well.
pub(crate) const VARIABLE_18: &str = "OUTBOX_TEST_POSTGRES18_URL";

/// The server, or a line that says which is missing.
pub(crate) fn url() -> Option<String> {
    address(VARIABLE)
}

/// What the variable says, or a line that says what is missing.
pub(crate) fn address(variable: &str) -> Option<String> {
    testing::address("PostgreSQL", "postgres", variable)
}

/// A migrated schema that no other test sees.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) config: PostgresConfig,
    pub(crate) store: PostgresStore,
    pub(crate) outbox: PostgresOutbox,
    /// Finds the tables by their bare names.
    pub(crate) pool: PgPool,
}

impl Place {
    pub(crate) async fn new() -> Option<Self> {
        Self::on(VARIABLE).await
    }

    /// On the server whose address the variable has.
    pub(crate) async fn on(variable: &str) -> Option<Self> {
        let place = Self::empty_on(variable, SentRows::Kept).await?;
        place.store.migrate().await.unwrap();
        Some(place)
    }

    /// A schema without tables.
    pub(crate) async fn empty(sent_rows: SentRows) -> Option<Self> {
        Self::empty_on(VARIABLE, sent_rows).await
    }

    pub(crate) async fn empty_on(variable: &str, sent_rows: SentRows) -> Option<Self> {
        let url = address(variable)?;
        let schema = format!("outbox_test_{}", Uuid::now_v7().simple());
        let schema = schema[..40].to_owned();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        execute(&mut connection, &format!("CREATE SCHEMA {schema}")).await;
        connection.close().await.unwrap();
        let config =
            PostgresConfig::builder().url(&url).schema(&schema).sent_rows(sent_rows).build().unwrap();
        let store = PostgresStore::connect_lazy(&config).await.unwrap();
        let path = schema.clone();
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .after_connect(move |connection, _| {
                let sql = format!("SET search_path = {path}");
                Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop) })
            })
            .connect(&url)
            .await
            .unwrap();
        let outbox = PostgresOutbox::new(&config);
        Some(Self { url, schema, config, store, outbox, pool })
    }

    pub(crate) async fn drop(self) {
        self.pool.close().await;
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        execute(&mut connection, &format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }

    /// Runs statements on a connection that finds the tables by their bare names.
    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = format!("SELECT number::bigint FROM ({sql}) t (number)");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn commit(&self, events: &[Event]) -> Vec<Sequence> {
        let mut transaction = self.pool.begin().await.unwrap();
        let sequences = self.outbox.enqueue_all(&mut transaction, events).await.unwrap();
        transaction.commit().await.unwrap();
        sequences
    }

    /// A relay that owns everything.
    pub(crate) async fn relay(&self) -> (RelayId, Vec<Lease>) {
        let relay = self.store.join(Duration::from_secs(60)).await.unwrap();
        (relay, self.claim_all(relay).await)
    }

    pub(crate) async fn claim_all(&self, relay: RelayId) -> Vec<Lease> {
        testing::claim_all(&self.store, relay).await
    }
}

pub(crate) async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}
