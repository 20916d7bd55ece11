//! A database of its own for each test, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "helpers of tests, not all of them used by each"
)]

use std::time::Duration;

use outbox_conformance::testing;
pub(crate) use outbox_conformance::testing::{event, key, request, sequences, settle};
use outbox_core::{
    Enqueue as _, Event, OutboxStore as _,
    store::{Lease, RelayId, Sequence},
};
use outbox_mysql::{MysqlConfig, MysqlOutbox, MysqlStore};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, MySqlPool, mysql::MySqlPoolOptions};
use uuid::Uuid;

/// The servers that every test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Mysql,
    Mariadb,
}

impl Server {
    /// Its address, or a line that says that it is missing.
    pub(crate) fn url(self) -> Option<String> {
        self.variable("URL")
    }

    /// The folder of the authority that has signed its certificate, likewise.
    pub(crate) fn certificates(self) -> Option<String> {
        self.variable("CERTIFICATES")
    }

    fn variable(self, what: &str) -> Option<String> {
        let (name, service) = match self {
            Self::Mysql => ("MySQL", "mysql"),
            Self::Mariadb => ("MariaDB", "mariadb"),
        };
        testing::address(name, service, &format!("OUTBOX_TEST_{}_{what}", service.to_uppercase()))
    }
}

/// A server as a type, for the harnesses of suites.
pub(crate) trait On: Send + Sync + 'static {
    const SERVER: Server;
}

pub(crate) struct Mysql;
pub(crate) struct Mariadb;

impl On for Mysql {
    const SERVER: Server = Server::Mysql;
}

impl On for Mariadb {
    const SERVER: Server = Server::Mariadb;
}

/// Makes a test on each server of each function that takes a [`Server`].
macro_rules! on_both {
    ($($name:ident)+) => {
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Server::Mysql).await;
            })+
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Server::Mariadb).await;
            })+
        }
    };
}
pub(crate) use on_both;

/// A migrated database that no other test sees.
pub(crate) struct Place {
    pub(crate) server: Server,
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) config: MysqlConfig,
    pub(crate) store: MysqlStore,
    pub(crate) outbox: MysqlOutbox,
    /// Finds the tables by their bare names.
    pub(crate) pool: MySqlPool,
}

impl Place {
    pub(crate) async fn new(server: Server) -> Option<Self> {
        let place = Self::empty(server).await?;
        place.store.migrate().await.unwrap();
        Some(place)
    }

    /// A database without tables.
    pub(crate) async fn empty(server: Server) -> Option<Self> {
        let server_url = server.url()?;
        let schema = format!("outbox_test_{}", Uuid::now_v7().simple());
        let schema = schema[..40].to_owned();
        let mut connection = MySqlConnection::connect(&server_url).await.unwrap();
        execute(&mut connection, &format!("CREATE DATABASE {schema}")).await;
        connection.close().await.unwrap();
        let url = format!("{}/{schema}", server_url.rsplit_once('/').unwrap().0);
        let config = MysqlConfig::builder().url(&url).build().unwrap();
        let store = MysqlStore::connect_lazy(&config).await.unwrap();
        let pool = MySqlPoolOptions::new().max_connections(8).connect(&url).await.unwrap();
        let outbox = MysqlOutbox::new(&config);
        Some(Self { server, url, schema, config, store, outbox, pool })
    }

    pub(crate) async fn drop(self) {
        self.pool.close().await;
        let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
        execute(&mut connection, &format!("DROP DATABASE {}", self.schema)).await;
    }

    /// Runs statements on a connection that finds the tables by their bare names.
    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = format!("SELECT CAST(({sql}) AS SIGNED)");
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

pub(crate) async fn execute(connection: &mut MySqlConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}
