//! The relay's and the operator's side: [`MongoStore`].

mod check;
mod membership;
mod retention;
mod settle;

pub(crate) use check::{identify, inspect, privileges, server};
pub(crate) use membership::paused_topics;
#[cfg(test)]
pub(crate) use settle::among;
pub(crate) use settle::{holds_of, server_now, write_holds};

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::{Client, options::ClientOptions};
use outbox_core::{
    Finding, OutboxStore, StoreError, StoreErrorKind,
    store::{
        Claimed, Epoch, Lease, Membership, OutboxReader, PARTITIONS, Partition, PurgeRequest, Purged,
        QuickStats, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreStats,
    },
};

use crate::{
    MongoConfig, MongoOutbox, config::SELECTION_TIMEOUT, database::Database, error::store_error,
    reader::MongoReader, schema,
};

/// The store of a relay and the tool of an operator. Cheap to clone; all clones share the client.
///
/// Whatever the url or the client says of reads and writes, it asks the primary for what a majority has, and
/// writes to a majority: else a fail-over could undo a claim or a settle.
#[derive(Clone)]
pub struct MongoStore(Arc<Database>);

impl MongoStore {
    /// A store with a client of its own, which connects when it is first used: an unreachable server is a
    /// finding of `check`.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misuse`] if `config` has no url, or one with options that do not go together.
    pub async fn connect_lazy(config: &MongoConfig) -> Result<Self, StoreError> {
        const WHAT: &str = "make a client of the url";
        let connect = config.connect.clone().ok_or_else(|| {
            let what =
                "url is missing: set it to mongodb://user:password@host:port/database, or give a client";
            StoreError::new(StoreErrorKind::Misuse, what)
        })?;
        let mut options = ClientOptions::parse(connect).await.map_err(|error| store_error(WHAT, error))?;
        options.app_name.get_or_insert_with(|| "outbox-relay".to_owned());
        options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
        options.max_pool_size.get_or_insert(config.connections);
        let client = Client::with_options(options.clone()).map_err(|error| store_error(WHAT, error))?;
        Ok(Self(Arc::new(Database::new(client, config, Some(options)))))
    }

    /// A store on the caller's client. Connects when it is first used.
    pub fn new(client: Client, config: &MongoConfig) -> Self {
        Self(Arc::new(Database::new(client, config, None)))
    }

    /// The writer's side of the same outbox.
    pub fn outbox(&self) -> MongoOutbox {
        MongoOutbox::new(&self.0.config)
    }

    /// Creates or upgrades the collections. Does nothing where they are there; two processes may do it at
    /// once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`] if the collections are of a newer version than this program knows.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        schema::migrate(&self.0.majority, self.0.names()).await
    }

    pub(crate) fn database(&self) -> &Arc<Database> {
        &self.0
    }
}

impl fmt::Debug for MongoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoStore").field("config", &self.0.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl OutboxStore for MongoStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(PARTITIONS)
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
        Ok(Box::new(MongoReader::new(Arc::clone(&self.0))))
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
