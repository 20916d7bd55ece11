//! A place of its own for each scenario: a schema with the outbox and the service's tables, and a topic.

use std::{collections::BTreeMap, time::Duration};

use outbox::postgres::{PostgresConfig, PostgresOutbox, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::{
    broker, checker,
    relay::{RelayProcess, Settings},
    servers::{Servers, Turn},
    until,
};

/// How many aggregates the service has.
pub(crate) const ACCOUNTS: u32 = 120;

/// Where one scenario plays.
pub(crate) struct Stage {
    pub(crate) servers: Servers,
    pub(crate) outbox: PostgresOutbox,
    /// Finds the tables by their bare names.
    pub(crate) pool: PgPool,
    pub(crate) topic: String,
    schema: String,
    _turn: Turn,
}

impl Stage {
    /// A stage, or nothing where a server is missing.
    pub(crate) async fn set(turn: fn() -> Turn) -> Option<Self> {
        let servers = Servers::find()?;
        let turn = tokio::task::spawn_blocking(turn).await.unwrap();
        let schema = format!("chaos_{}", &Uuid::now_v7().simple().to_string());
        let config = PostgresConfig::builder().url(&servers.postgres).schema(&schema).build().unwrap();
        PostgresStore::connect(&config).await.unwrap().migrate().await.unwrap();
        let path = schema.clone();
        let pool = PgPoolOptions::new()
            .max_connections(10)
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(move |connection, _| {
                let sql = format!("SET search_path = {path}");
                Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop) })
            })
            .connect(&servers.postgres)
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
        let topic = broker::name();
        broker::create(&servers.brokers, &topic, &[]).await;
        Some(Self { outbox: PostgresOutbox::new(&config), servers, pool, topic, schema, _turn: turn })
    }

    /// What a relay of this stage is told.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            postgres: self.servers.postgres.clone(),
            schema: self.schema.clone(),
            brokers: self.servers.brokers.clone(),
            topic: self.topic.clone(),
            lease_ms: 3_000,
            in_flight_max: 64,
        }
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until nothing is pending, and ends the relays.
    pub(crate) async fn drain(&self, relays: impl IntoIterator<Item = RelayProcess>) {
        until("the last pending event", async || {
            self.number("SELECT count(*) FROM outbox WHERE status = 0").await == 0
        })
        .await;
        for relay in relays {
            relay.stop().await;
        }
    }

    /// Compares what was committed with what was delivered, which allows so many duplicates.
    pub(crate) async fn check(&self, scenario: &str, duplicates_max: usize) {
        assert_eq!(self.number("SELECT count(*) FROM outbox WHERE status <> 1").await, 0, "not sent");
        assert_eq!(self.number("SELECT count(*) FROM outbox_holds").await, 0, "held");
        self.check_topic(scenario, None, duplicates_max).await;
    }

    /// The same for one topic: the relay's, or one that events name themselves.
    pub(crate) async fn check_topic(&self, scenario: &str, topic: Option<&str>, duplicates_max: usize) {
        let committed = self.committed(topic).await;
        let deliveries = broker::read(&self.servers.brokers, topic.unwrap_or(&self.topic)).await;
        let verdict = checker::compare(&committed, &deliveries);
        let events: usize = committed.values().map(Vec::len).sum();
        eprintln!(
            "{scenario}: {events} events committed, {} delivered, {} duplicates of at most {duplicates_max}",
            deliveries.len(),
            verdict.duplicates
        );
        assert!(verdict.problems.is_empty(), "{scenario}: {:#?}", verdict.problems);
        assert!(events > 0, "{scenario}: nothing was committed, so nothing was shown");
        assert!(
            verdict.duplicates <= duplicates_max,
            "{scenario}: {} duplicates, at most {duplicates_max} are explained",
            verdict.duplicates
        );
    }

    /// What the service's own table says, by account in sequence order.
    async fn committed(&self, topic: Option<&str>) -> BTreeMap<String, Vec<Uuid>> {
        let sql = "SELECT account, event FROM changes WHERE topic IS NOT DISTINCT FROM $1 ORDER BY sequence";
        let rows: Vec<(String, Uuid)> = sqlx::query_as(sql).bind(topic).fetch_all(&self.pool).await.unwrap();
        let mut committed: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
        for (account, event) in rows {
            committed.entry(account).or_default().push(event);
        }
        committed
    }

    /// Takes the schema away. A scenario that failed leaves it to be looked at.
    pub(crate) async fn strike(self) {
        self.pool.close().await;
        let mut connection = PgConnection::connect(&self.servers.postgres).await.unwrap();
        let sql = format!("DROP SCHEMA {} CASCADE", self.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
}
