//! A schema of PostgreSQL.

use std::sync::Arc;

use outbox_core::OutboxStore;
use outbox_postgres::{PostgresConfig, PostgresInbox, PostgresOutbox, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{CONSUMER, Place, address, name};

/// A schema of PostgreSQL.
pub struct PostgresPlace {
    url: String,
    schema: String,
    config: PostgresConfig,
    store: PostgresStore,
}

impl PostgresPlace {
    /// Where to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its writer's side.
    pub fn outbox(&self) -> PostgresOutbox {
        PostgresOutbox::new(&self.config)
    }

    /// Its consumer's side.
    pub fn inbox(&self) -> PostgresInbox {
        PostgresInbox::new(&self.config, CONSUMER).unwrap()
    }

    async fn run(&self, sql: String) {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
}

impl Place for PostgresPlace {
    const COUNT_SCHEDULED: &'static str =
        "SELECT count(*) FROM outbox WHERE available_at = '2026-01-02 03:04:05.678901Z'";

    async fn fresh() -> Option<Self> {
        let (url, schema) = (address("PostgreSQL", "postgres")?, name());
        let config = PostgresConfig::builder().url(&url).schema(&schema).build().unwrap();
        let store = PostgresStore::connect_lazy(&config).await.unwrap();
        let place = Self { url, schema, config, store };
        place.run(format!("CREATE SCHEMA {}", place.schema)).await;
        place.store.migrate().await.unwrap();
        let mut connection = PgConnection::connect(&place.url).await.unwrap();
        place.inbox().migrate(&mut connection).await.unwrap();
        Some(place)
    }

    async fn drop(self) {
        self.run(format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let path = format!("SET search_path = {}", self.schema);
        sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut connection).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
    }
}
