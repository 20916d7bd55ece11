//! A store whose reads wait for a signal, so that relays share their partitions before a drain begins.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Finding, OutboxStore, StoreError,
    store::{
        Claimed, Epoch, FetchRequest, Fetched, Lease, Membership, OutboxReader, Partition, PurgeRequest,
        Purged, QuickStats, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreStats,
    },
};
use tokio::sync::watch;

pub struct Gated {
    pub inner: Arc<dyn OutboxStore>,
    pub open: watch::Receiver<bool>,
}

struct GatedReader(Box<dyn OutboxReader>, watch::Receiver<bool>);

#[async_trait]
impl OutboxReader for GatedReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        // Nothing is found until then, so that relays which settle their shares are not held up.
        if !*self.1.borrow() {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.1.wait_for(|open| *open)).await;
            return Ok(Fetched::default());
        }
        self.0.fetch(request).await
    }
}

#[async_trait]
impl OutboxStore for Gated {
    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.check().await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        self.inner.join(ttl).await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        self.inner.beat(relay, ttl).await
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        self.inner.membership(relay).await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        self.inner.claim(relay, seen).await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        self.inner.release(relay, leases).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.inner.leave(relay).await
    }

    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        Ok(Box::new(GatedReader(self.inner.reader(relay).await?, self.open.clone())))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        self.inner.begin_attempt(relay, lease, sequence, attempts).await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        self.inner.settle(request).await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        self.inner.purge(request).await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        self.inner.quick_stats().await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.inner.stats().await
    }
}
