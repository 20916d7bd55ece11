//! A store in an `Arc` or a `Box` is that store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Claimed, Epoch, EventFilter, EventRecord, HoldRecord, Lease, Membership, OutboxAdmin, OutboxReader,
    OutboxStore, Partition, PurgeRequest, Purged, QuickStats, RelayId, Sequence, SettleRequest, Settled,
    StoreCapabilities, StoreStats,
};
use crate::{AggregateKey, Finding, StoreError};

macro_rules! forward_store {
    ($pointer:ident) => {
        // A method that is added to the trait, with a default or not, must be forwarded.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: OutboxStore + ?Sized> OutboxStore for $pointer<T> {
            fn capabilities(&self) -> StoreCapabilities {
                (**self).capabilities()
            }

            async fn check(&self) -> Result<Vec<Finding>, StoreError> {
                (**self).check().await
            }

            async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
                (**self).join(ttl).await
            }

            async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
                (**self).beat(relay, ttl).await
            }

            async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
                (**self).membership(relay).await
            }

            async fn claim(
                &self,
                relay: RelayId,
                seen: &[(Partition, Epoch)],
            ) -> Result<Vec<Claimed>, StoreError> {
                (**self).claim(relay, seen).await
            }

            async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
                (**self).release(relay, leases).await
            }

            async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
                (**self).leave(relay).await
            }

            async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
                (**self).reader(relay).await
            }

            async fn begin_attempt(
                &self,
                relay: RelayId,
                lease: Lease,
                sequence: Sequence,
                attempts: u32,
            ) -> Result<bool, StoreError> {
                (**self).begin_attempt(relay, lease, sequence, attempts).await
            }

            async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
                (**self).settle(request).await
            }

            async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
                (**self).purge(request).await
            }

            async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
                (**self).quick_stats().await
            }

            async fn stats(&self) -> Result<StoreStats, StoreError> {
                (**self).stats().await
            }
        }

        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: OutboxAdmin + ?Sized> OutboxAdmin for $pointer<T> {
            async fn list(
                &self,
                filter: &EventFilter,
                rows_max: u32,
            ) -> Result<Vec<EventRecord>, StoreError> {
                (**self).list(filter, rows_max).await
            }

            async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
                (**self).holds(rows_max).await
            }

            async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
                (**self).requeue(filter).await
            }

            async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
                (**self).discard(filter).await
            }

            async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
                (**self).pause(key).await
            }

            async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
                (**self).resume(key).await
            }

            async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
                (**self).pause_topic(topic).await
            }

            async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
                (**self).resume_topic(topic).await
            }

            async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
                (**self).paused_topics().await
            }
        }
    };
}

forward_store!(Arc);
forward_store!(Box);
