//! The database as the relay and its operator use it: the pool with its tables and settings, [`Database`],
//! and the connections that belong to one purpose, [`Session`].

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, atomic::AtomicI32},
};

use outbox_core::{
    AggregateKey, StoreError, StoreErrorKind,
    store::{Lease, RelayId, Sequence},
};
use sqlx::{
    ConnectOptions as _, PgConnection, PgPool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, Postgres},
};

use crate::{
    PostgresConfig,
    config::{CONNECT_TIMEOUT, Tables},
    error::{store_error, within},
};

/// The pool and what belongs to it, shared by the store, its readers and its settles.
pub(crate) struct Database {
    pub(crate) pool: PgPool,
    pub(crate) config: PostgresConfig,
    /// The connection that settles: one, since a second was found to bring nothing, and taken out while it
    /// works, so that a settle that is dropped half-way takes its connection with it.
    pub(crate) settling: tokio::sync::Mutex<Option<Session>>,
    /// The server's process of the settle that is running, or 0: its locks are not those of a writer.
    pub(crate) settling_pid: AtomicI32,
    /// What a relay's next reader must know of the previous one.
    inherited: Mutex<HashMap<RelayId, Inherited>>,
}

/// What a relay's next reader must know of the previous one: the aggregates that were read by key.
pub(crate) type Inherited = Vec<(AggregateKey, Lease, Sequence)>;

impl Database {
    pub(crate) fn new(pool: PgPool, config: &PostgresConfig) -> Self {
        Self {
            pool,
            config: config.clone(),
            settling: tokio::sync::Mutex::new(None),
            settling_pid: AtomicI32::new(0),
            inherited: Mutex::default(),
        }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.config.tables
    }

    /// A connection of the pool.
    pub(crate) async fn connection(&self, what: &str) -> Result<PoolConnection<Postgres>, StoreError> {
        within(what, self.pool.acquire()).await
    }

    /// What the reader of this relay inherits.
    pub(crate) fn inherited(&self) -> std::sync::MutexGuard<'_, HashMap<RelayId, Inherited>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) async fn begin<'a>(
    connection: &'a mut PgConnection,
    what: &str,
) -> Result<sqlx::Transaction<'a, Postgres>, StoreError> {
    use sqlx::Connection as _;
    connection
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED")
        .await
        .map_err(|error| store_error(what, error))
}

/// What every connection of a relay is set to, whatever the role's defaults are.
///
/// - READ COMMITTED: after waiting for a lease row, its newest version is what counts.
/// - A relay that is frozen inside a settle keeps lease rows locked; the server ends that after 5 s.
/// - A statement that takes 30 s is not going to end well; the relay gives up after
///   [`CALL_TIMEOUT`](crate::error::CALL_TIMEOUT).
pub(crate) const RELAY_SETTINGS: &str = "SET default_transaction_isolation = 'read committed'; \
     SET default_transaction_read_only = off; SET idle_in_transaction_session_timeout = '5s'; \
     SET lock_timeout = '5s'; SET statement_timeout = '30s'; SET jit = off;";

/// The statements of the relay's loop have one right plan each, an index scan in the order of the primary
/// key. Statistics of an empty or a stale table make the planner think otherwise, so it is given no choice.
const FETCH_SETTINGS: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_nestloop = off; \
     SET plan_cache_mode = force_generic_plan;";

/// A settle finds its rows by `= ANY` over the primary key, and joins small arrays by nested loops.
const SETTLE_SETTINGS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET plan_cache_mode = force_generic_plan;";

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Fetch,
    Settle,
}

/// A connection beside the pool. No statement of the service ever runs on it.
pub(crate) struct Session {
    pub(crate) connection: PgConnection,
    /// The server's process, by which its locks are told from those of writers.
    pub(crate) pid: i32,
}

impl Session {
    pub(crate) async fn open(pool: &PgPool, purpose: Purpose) -> Result<Self, StoreError> {
        let options = pool.connect_options();
        let what = format!("connect to PostgreSQL at {}:{}", options.get_host(), options.get_port());
        match tokio::time::timeout(CONNECT_TIMEOUT, Self::connect(&options, purpose)).await {
            Ok(result) => result.map_err(|error| store_error(&what, error)),
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("cannot {what}: no answer for {} s", CONNECT_TIMEOUT.as_secs()),
            )),
        }
    }

    async fn connect(options: &PgConnectOptions, purpose: Purpose) -> Result<Self, sqlx::Error> {
        let mut connection = options.connect().await?;
        sqlx::raw_sql(RELAY_SETTINGS).execute(&mut connection).await?;
        let settings = match purpose {
            Purpose::Fetch => FETCH_SETTINGS,
            Purpose::Settle => SETTLE_SETTINGS,
        };
        sqlx::raw_sql(settings).execute(&mut connection).await?;
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        Ok(Self { connection, pid })
    }
}
