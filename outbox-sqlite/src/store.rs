//! The relay's side: [`SqliteStore`].

mod check;
mod membership;
mod retention;
mod settle;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox_core::{
    Finding, OutboxStore, StoreError,
    store::{
        Claimed, Epoch, Lease, Membership, OutboxReader, Partition, PurgeRequest, Purged, QuickStats,
        RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreStats,
    },
};

pub(crate) use self::membership::paused_topics;
use crate::{
    SqliteConfig, SqliteOutbox,
    database::{Database, Worker},
    reader::SqliteReader,
    schema,
};

/// The outbox of one database file, as relays and operators use it. Cheap to clone.
///
/// It has two connections, each on a thread of its own: one that writes, one that reads; each reader has
/// another. They are opened when they are first used, and again after an error.
#[derive(Debug, Clone)]
pub struct SqliteStore(Arc<Database>);

impl SqliteStore {
    /// The outbox of this configuration. The file is opened by the first call that needs it, so that
    /// [`check`](OutboxStore::check) can say what is wrong with it.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn open(config: SqliteConfig) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Database::new(config)?)))
    }

    /// The configuration.
    pub fn config(&self) -> &SqliteConfig {
        &self.0.config
    }

    /// The writer's side of the same outbox.
    pub fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox::new(&self.0.config)
    }

    /// Makes the tables: [`migrate`](crate::migrate) on a thread of its own.
    ///
    /// # Errors
    /// As [`migrate`](crate::migrate).
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // The worker's own connection would insist on a file that is there already.
        let config = self.0.config.clone();
        Worker::spawn(&config, "outbox-sqlite-migrate")?.detached(move || schema::migrate(&config)).await
    }

    pub(crate) fn database(&self) -> &Database {
        &self.0
    }
}

#[async_trait]
impl OutboxStore for SqliteStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(1)
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
        Ok(Box::new(SqliteReader::new(&self.0.config)?))
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
