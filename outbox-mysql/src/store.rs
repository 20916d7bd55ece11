//! The relay's and the operator's side: [`MysqlStore`].

mod check;
mod holds;
mod membership;
mod retention;
pub(crate) mod settle;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox_core::{
    Claimed, Epoch, Finding, Lease, Membership, OutboxReader, OutboxStore, PARTITIONS, Partition,
    PurgeRequest, Purged, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreError,
    StoreErrorKind, StoreStats, store::QuickStats,
};
use sqlx::{MySql, MySqlConnection, MySqlPool, mysql::MySqlPoolOptions, pool::PoolConnection};

pub(crate) use self::{
    check::{Wanted, inspect},
    holds::{HeldKey, Hold, Holds},
};
use crate::{
    MysqlConfig,
    config::{CONNECT_TIMEOUT, Tables},
    error::within,
    reader::MysqlReader,
    schema,
    session::RELAY_SETTINGS,
};

/// The most events of a settle: what is larger than 16 KiB is sent in pieces by sqlx 0.9.0 on an encrypted
/// connection, the last of which TCP holds back for 40 ms, so that 2,000 took three times as long. On other
/// connections the two do not differ.
pub(crate) const SETTLE_EVENTS_MAX: usize = 1_000;

/// The store of a relay and the tool of an operator. Cheap to clone; all clones share the pool.
///
/// Beside the pool it opens one connection for each reader and one to settle.
#[derive(Clone)]
pub struct MysqlStore(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) pool: MySqlPool,
    pub(crate) config: MysqlConfig,
    /// The connection that settles, taken out while it works, so that a settle that is dropped half-way takes its
    /// connection with it.
    settling: tokio::sync::Mutex<Option<MySqlConnection>>,
}

impl MysqlStore {
    /// A store with a pool of its own, which connects when it is first used: an unreachable server is a finding of
    /// `check`.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misuse`] if `config` has no url.
    #[allow(clippy::unused_async, reason = "the same words for every store, and the pool needs a runtime")]
    pub async fn connect(config: &MysqlConfig) -> Result<Self, StoreError> {
        let options = config.connect.clone().ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Misuse,
                "url is missing: set it to mysql://user:password@host:port/database, or give a pool",
            )
        })?;
        let pool = MySqlPoolOptions::new()
            .max_connections(config.connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(RELAY_SETTINGS).execute(connection).await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self::new(pool, config))
    }

    /// A store on the caller's pool, whose connections it uses beside the caller and leaves as they are. Connects
    /// when it is first used.
    pub fn new(pool: MySqlPool, config: &MysqlConfig) -> Self {
        Self(Arc::new(Inner { pool, config: config.clone(), settling: tokio::sync::Mutex::new(None) }))
    }

    /// Creates or upgrades the tables. Does nothing where they are there; two processes may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`] if the tables are of a newer version than this program knows.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.0.connection("migrate").await?;
        schema::migrate(&mut connection, &self.0.config).await
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

impl fmt::Debug for MysqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlStore").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn tables(&self) -> &Tables {
        &self.config.tables
    }

    /// A connection of the pool.
    pub(crate) async fn connection(&self, what: &str) -> Result<PoolConnection<MySql>, StoreError> {
        within(what, self.pool.acquire()).await
    }
}

#[async_trait]
impl OutboxStore for MysqlStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(PARTITIONS).with_settle_events_max(SETTLE_EVENTS_MAX)
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        check::check(&self.0).await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        membership::join(&self.0, ttl).await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        membership::beat(&self.0, relay, ttl).await
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        membership::membership(&self.0, relay).await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        membership::claim(&self.0, relay, seen).await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        membership::release(&self.0, relay, leases).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        membership::leave(&self.0, relay).await
    }

    async fn reader(&self, _relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        Ok(Box::new(MysqlReader::open(Arc::clone(&self.0)).await?))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        settle::begin_attempt(&self.0, relay, lease, sequence, attempts).await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        settle::settle(&self.0, request).await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        retention::purge(&self.0, request).await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        retention::quick_stats(&self.0).await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        retention::stats(&self.0).await
    }
}

/// The server's code of a partition.
pub(crate) fn partition_code(partition: Partition) -> u8 {
    u8::try_from(partition).unwrap_or(u8::MAX)
}

/// A duration as the server's microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    // A thousand years: beyond that an interval added to now leaves the range of a DATETIME.
    const MICROS_MAX: i64 = 1000 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(MICROS_MAX)
}

/// Microseconds of the server as a duration; nothing if they are below zero.
pub(crate) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// The server's clock, as microseconds since 1970.
pub(crate) const NOW_MICROS: &str =
    "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";

/// A column that is a time, as microseconds since 1970: a number can be read whatever stands there.
pub(crate) fn micros_of(column: &str) -> String {
    format!("TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {column})")
}

/// The time of microseconds since 1970, which stand in `expression`.
pub(crate) fn time_of(expression: &str) -> String {
    format!("TIMESTAMP'1970-01-01 00:00:00' + INTERVAL {expression} MICROSECOND")
}

/// More rows than a parameter ever has.
const ROWS_MAX: u64 = 1_000_000_000;

/// A parameter as rows: an array of arrays, in JSON. `columns` are names with their types, such as `part BIGINT, epoch
/// BIGINT`, in the order of the inner arrays. A statement stays constant that way however many rows there are.
///
/// What is joined to it names its index: a planner that finds few rows would rather read, and lock, all of them, those of
/// writers that are still at work among them, and wait.
///
/// In brackets and with a limit, since MySQL takes no lock in a statement that joins the function itself.
pub(crate) fn rows(alias: &str, columns: &str) -> String {
    let columns: Vec<String> =
        columns.split(", ").enumerate().map(|(n, column)| format!("{column} PATH '$[{n}]'")).collect();
    format!(
        "(SELECT * FROM JSON_TABLE(?, '$[*]' COLUMNS ({})) j LIMIT {ROWS_MAX}) {alias}",
        columns.join(", ")
    )
}

/// The rows themselves.
pub(crate) fn json(rows: impl serde::Serialize) -> String {
    serde_json::to_string(&rows).unwrap_or_default()
}
