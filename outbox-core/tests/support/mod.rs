//! The store in memory behind a door: shut, no call is answered; broken, every call fails.

use std::time::Duration;

use async_trait::async_trait;
use outbox_core::{
    Event, Finding, OutboxStore, StoreError, StoreErrorKind,
    memory::MemoryStore,
    store::{
        Claimed, Epoch, FetchRequest, Fetched, Lease, Membership, OutboxReader, Partition, PurgeRequest,
        Purged, QuickStats, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities, StoreStats,
    },
};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every program of tests breaks the door")]
pub(crate) enum Door {
    Open,
    Shut,
    Broken,
}

#[derive(Clone)]
pub(crate) struct DoorStore {
    pub(crate) inner: MemoryStore,
    pub(crate) door: watch::Receiver<Door>,
    pub(crate) settle_events_max: Option<usize>,
    /// The door is before claims alone.
    claims_alone: bool,
}

impl DoorStore {
    /// A store with an open door, and what moves the door.
    pub(crate) fn new(inner: MemoryStore) -> (Self, watch::Sender<Door>) {
        let (mover, door) = watch::channel(Door::Open);
        (Self { inner, door, settle_events_max: None, claims_alone: false }, mover)
    }

    /// The same, and all but claims goes past the door.
    #[allow(dead_code, reason = "not every program of tests has such a store")]
    pub(crate) fn with_claims_behind_the_door(mut self) -> Self {
        self.claims_alone = true;
        self
    }

    async fn pass(&self) -> Result<(), StoreError> {
        if self.claims_alone { Ok(()) } else { self.pass_door().await }
    }

    async fn pass_door(&self) -> Result<(), StoreError> {
        let door = self.door.clone().wait_for(|door| *door != Door::Shut).await.map(|door| *door);
        match door {
            Ok(Door::Broken) => {
                let refused = std::io::Error::other("connection refused");
                Err(StoreError::new(StoreErrorKind::Unavailable, "cannot reach the store")
                    .with_source(refused))
            }
            _ => Ok(()),
        }
    }
}

/// Commits so many events of an aggregate.
pub(crate) fn commit(store: &MemoryStore, aggregate: &str, count: usize) {
    let mut transaction = store.begin();
    for number in 0..count {
        let event = Event::builder("order", aggregate, number.to_string()).build().expect("a valid event");
        transaction.enqueue(&event).expect("enqueue");
    }
    transaction.commit();
}

#[async_trait]
impl OutboxStore for DoorStore {
    fn capabilities(&self) -> StoreCapabilities {
        let capabilities = self.inner.capabilities();
        match self.settle_events_max {
            Some(max) => capabilities.with_settle_events_max(max),
            None => capabilities,
        }
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        self.pass().await?;
        self.inner.check().await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        self.pass().await?;
        self.inner.join(ttl).await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        self.pass().await?;
        self.inner.beat(relay, ttl).await
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        self.pass().await?;
        self.inner.membership(relay).await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        self.pass_door().await?;
        self.inner.claim(relay, seen).await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        self.pass().await?;
        self.inner.release(relay, leases).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.pass().await?;
        self.inner.leave(relay).await
    }

    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        let inner = self.inner.reader(relay).await?;
        Ok(Box::new(DoorReader { store: self.clone(), inner }))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        self.pass().await?;
        self.inner.begin_attempt(relay, lease, sequence, attempts).await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        self.pass().await?;
        self.inner.settle(request).await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        self.pass().await?;
        self.inner.purge(request).await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        self.pass().await?;
        self.inner.quick_stats().await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.pass().await?;
        self.inner.stats().await
    }
}

struct DoorReader {
    store: DoorStore,
    inner: Box<dyn OutboxReader>,
}

#[async_trait]
impl OutboxReader for DoorReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        self.store.pass().await?;
        self.inner.fetch(request).await
    }
}
