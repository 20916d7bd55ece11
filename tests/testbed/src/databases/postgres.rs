//! PostgreSQL: a schema for each scenario.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Enqueue as _, Event, OutboxAdmin, OutboxStore,
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use super::database::{ACCOUNTS, Change, Database, End, Failure, Fate, StoreAt};
use crate::servers;

pub(crate) struct Postgres {
    /// The address that the server has in `scripts/services`.
    address: String,
    url: String,
    schema: String,
    store: PostgresStore,
    outbox: PostgresOutbox,
    /// Finds the tables by their bare names.
    pool: PgPool,
}

impl Postgres {
    pub(crate) async fn fresh() -> Option<Self> {
        let address = servers::address("postgres", "OUTBOX_TEST_POSTGRES_URL")?;
        // In plain text, so that a proxy sees what is said.
        let url = format!("{address}?sslmode=disable");
        let schema = format!("service_{}", Uuid::now_v7().simple());
        let config = config(&url, &schema);
        let store = PostgresStore::connect_lazy(&config).await.unwrap();
        store.migrate().await.unwrap();
        let path = schema.clone();
        let pool = PgPoolOptions::new()
            .max_connections(10)
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(move |connection, _| {
                let sql = format!("SET search_path = {path}");
                Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop) })
            })
            .connect(&url)
            .await
            .unwrap();
        let tables = format!(
            "CREATE TABLE accounts (id text PRIMARY KEY, changes bigint NOT NULL DEFAULT 0);
             INSERT INTO accounts (id) SELECT 'account-' || n FROM generate_series(0, {}) n;
             CREATE TABLE changes (event uuid PRIMARY KEY, account text NOT NULL, sequence bigint NOT NULL,
                                   topic text);",
            ACCOUNTS - 1
        );
        sqlx::raw_sql(AssertSqlSafe(tables)).execute(&pool).await.unwrap();
        Some(Self { address, outbox: PostgresOutbox::new(&config), url, schema, store, pool })
    }

    async fn begin_and_end(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, Failure> {
        let mut transaction = self.pool.begin().await?;
        for change in changes {
            self.change(&mut transaction, change).await?;
        }
        tokio::time::sleep(open).await;
        Ok(match end {
            End::RollBack => transaction.rollback().await.map(|()| Fate::RolledBack)?,
            End::Commit => transaction.commit().await.map_or(Fate::Unknown, |()| Fate::Committed),
        })
    }

    async fn change(&self, connection: &mut PgConnection, change: &Change) -> Result<(), Failure> {
        let Change { account, events, topic } = change;
        let lock = "UPDATE accounts SET changes = changes + $2 WHERE id = $1";
        sqlx::query(lock).bind(account).bind(events.len() as i64).execute(&mut *connection).await?;
        let sequences = match events.as_slice() {
            [event] => vec![self.outbox.enqueue(&mut *connection, event).await?],
            events => self.outbox.enqueue_all(&mut *connection, events).await?,
        };
        let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
        let note = "INSERT INTO changes (event, sequence, account, topic) \
                    SELECT *, $3, $4 FROM unnest($1::uuid[], $2::bigint[])";
        sqlx::query(note).bind(ids).bind(sequences).bind(account).bind(topic).execute(connection).await?;
        Ok(())
    }
}

#[async_trait]
impl Database for Postgres {
    fn store_at(&self) -> StoreAt {
        StoreAt::Postgres { url: self.url.clone(), schema: self.schema.clone() }
    }

    fn store(&self) -> &dyn OutboxStore {
        &self.store
    }

    fn admin(&self) -> &dyn OutboxAdmin {
        &self.store
    }

    fn server(&self) -> Option<(&'static str, String)> {
        Some(("postgres", self.address.clone()))
    }

    fn settles(&self) -> &'static [u8] {
        b"SET status = 1"
    }

    async fn transact(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, String> {
        self.begin_and_end(changes, open, end).await.map_err(|error| error.to_string())
    }

    async fn committed(&self, topic: Option<&str>) -> Vec<(String, Uuid)> {
        let sql = "SELECT account, event FROM changes WHERE topic IS NOT DISTINCT FROM $1 ORDER BY sequence";
        sqlx::query_as(sql).bind(topic).fetch_all(&self.pool).await.unwrap()
    }

    async fn remove(&self) {
        self.pool.close().await;
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let sql = format!("DROP SCHEMA {} CASCADE", self.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
}

pub(super) async fn open(url: &str, schema: &str) -> Arc<dyn OutboxStore> {
    Arc::new(PostgresStore::connect_lazy(&config(url, schema)).await.unwrap())
}

fn config(url: &str, schema: &str) -> PostgresConfig {
    PostgresConfig::builder().url(url).schema(schema).connections(3).build().unwrap()
}
