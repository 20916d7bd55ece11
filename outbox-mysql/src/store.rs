//! The relay's and the operator's side: [`MysqlStore`].

mod check;
pub(crate) mod holds;
mod membership;
mod retention;
pub(crate) mod settle;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox_core::{
    Finding, OutboxStore, StoreError, StoreErrorKind,
    store::{
        Claimed, Epoch, Lease, Membership, OutboxReader, PARTITIONS, Partition, PurgeRequest, Purged,
        QuickStats, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreStats,
    },
};
use sqlx::{MySqlPool, mysql::MySqlPoolOptions};

pub(crate) use self::{
    check::{Wanted, inspect},
    holds::{HeldKey, Hold, Holds},
};
use crate::{
    MysqlConfig,
    config::CONNECT_TIMEOUT,
    database::{Database, RELAY_SETTINGS},
    reader::MysqlReader,
    schema,
};

/// The most events of a settle: what is larger than 16 KiB is sent in pieces by sqlx 0.9.0 on an encrypted
/// connection, the last of which TCP holds back for 40 ms, so that 2,000 took three times as long. On other
/// connections the two do not differ.
pub(crate) const SETTLE_EVENTS_MAX: usize = 1_000;

/// The store of a relay and the tool of an operator. Cheap to clone; all clones share the pool.
///
/// Beside the pool it opens one connection for each reader and one to settle.
#[derive(Clone)]
pub struct MysqlStore(Arc<Database>);

impl MysqlStore {
    /// A store with a pool of its own, which connects when it is first used: an unreachable server is a
    /// finding of `check`.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misuse`] if `config` has no url.
    #[allow(clippy::unused_async, reason = "the same words for every store, and the pool needs a runtime")]
    pub async fn connect_lazy(config: &MysqlConfig) -> Result<Self, StoreError> {
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

    /// A store on the caller's pool, whose connections it uses beside the caller and leaves as they are.
    /// Connects when it is first used.
    pub fn new(pool: MySqlPool, config: &MysqlConfig) -> Self {
        Self(Arc::new(Database::new(pool, config)))
    }

    /// Creates or upgrades the tables. Does nothing where they are there; two processes may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`] if the tables are of a newer version than this program knows.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.0.connection("migrate").await?;
        schema::migrate(&mut connection, &self.0.config).await
    }

    pub(crate) fn database(&self) -> &Database {
        &self.0
    }
}

impl fmt::Debug for MysqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlStore").field("config", &self.0.config).finish_non_exhaustive()
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
