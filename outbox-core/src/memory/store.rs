//! [`MemoryStore`]: membership, leases, retention and numbers.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    database::Database,
    reader::MemoryReader,
    state::{Life, PartitionRow, State},
    time::{Time, after, between},
    transaction::MemoryTransaction,
};
use crate::{
    AggregateKey, Disposal, Enqueue, EnqueueError, Event, Finding, OutboxStore, StoreError,
    clock::Clock,
    store::{
        Claimed, Count, Epoch, EventRecord, Lease, Membership, OutboxReader, Owner, PARTITIONS, Partition,
        PartitionView, PurgeRequest, Purged, QuickStats, RelayId, Sequence, SettleRequest, Settled,
        StoreCapabilities, StoreStats,
    },
};

/// The reference store: the whole contract in memory. Cheap to clone; all clones are the same store.
///
/// ```
/// use std::sync::Arc;
/// use outbox_core::{Event, memory::MemoryStore, relay::TokioClock};
///
/// let store = MemoryStore::new(Arc::new(TokioClock::default()));
/// let mut transaction = store.begin();
/// transaction.put("order-4711", "placed");
/// transaction.enqueue(&Event::builder("order", "4711", "order.placed").build()?)?;
/// transaction.commit();
/// assert_eq!(store.get("order-4711").as_deref(), Some("placed"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryStore {
    pub(super) database: Database,
}

impl MemoryStore {
    /// An empty store whose database clock is `clock`, counted from 2026-01-01T00:00:00Z.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { database: Database::new(clock) }
    }

    /// The time by the store's own clock: what a scheduled event's `available_at` is compared with.
    pub fn now(&self) -> DateTime<Utc> {
        self.database.now()
    }

    /// Has the store refuse to record what becomes of this aggregate's events, or take it again: as a trigger
    /// or a constraint of the user's may do in a database.
    pub fn refuse(&self, key: &AggregateKey, refused: bool) {
        let mut state = self.lock();
        if refused {
            state.refused.insert(key.clone());
        } else {
            state.refused.remove(key);
        }
    }

    /// Begins a transaction. Any number of them can be open at a time.
    pub fn begin(&self) -> MemoryTransaction {
        MemoryTransaction::new(self.database.clone())
    }

    /// The committed business row `key`: see [`MemoryTransaction::put`].
    pub fn get(&self, key: &str) -> Option<String> {
        self.lock().values.get(key).cloned()
    }

    /// The events that were moved to the archive, in ascending sequence.
    pub fn archive(&self) -> Vec<EventRecord> {
        self.lock().archive.iter().map(|(sequence, row)| row.to_record(*sequence)).collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.database.lock()
    }
}

impl Enqueue<MemoryTransaction> for MemoryStore {
    async fn enqueue(
        &self,
        transaction: &mut MemoryTransaction,
        event: &Event,
    ) -> Result<Sequence, EnqueueError> {
        transaction.check_database(&self.database, "enqueue in memory")?;
        transaction.enqueue(event)
    }

    async fn enqueue_all(
        &self,
        transaction: &mut MemoryTransaction,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        transaction.check_database(&self.database, "enqueue in memory")?;
        transaction.enqueue_all(events)
    }
}

#[async_trait]
impl OutboxStore for MemoryStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(PARTITIONS)
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(Vec::new())
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        state.relay_last += 1;
        let relay = RelayId(Uuid::from_u128(state.relay_last));
        state.relays.insert(relay, after(now, ttl));
        Ok(relay)
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        let alive = state.is_alive(relay, now);
        if alive {
            state.relays.insert(relay, after(now, ttl));
        }
        // The partitions keep the name of a relay that is gone: that is how a claim knows that it died.
        state.relays.retain(|_, expires_at| *expires_at > now);
        Ok(alive)
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        let now = self.now();
        let state = self.lock();
        let view = |(partition, row): (Partition, &PartitionRow)| PartitionView {
            partition,
            epoch: row.epoch,
            owner: match row.owner {
                Some(owner) if !state.is_alive(owner, now) => Owner::Free,
                Some(owner) if owner == relay => Owner::Mine,
                Some(_) => Owner::Other,
                None => Owner::Free,
            },
        };
        Ok(Membership {
            relays_live: state.relays_live(now),
            partitions: (0..).zip(&state.partitions).map(view).collect(),
            paused_topics: state.paused_topics.iter().cloned().collect(),
        })
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        let mut claimed = Vec::new();
        if !state.is_alive(relay, now) {
            return Ok(claimed);
        }
        for &(partition, epoch_seen) in seen {
            let Some(row) = state.partitions.get(usize::from(partition)).copied() else { continue };
            if row.epoch != epoch_seen || row.owner.is_some_and(|owner| state.is_alive(owner, now)) {
                continue;
            }
            let lease = Lease { partition, epoch: row.epoch + 1 };
            state.partitions[usize::from(partition)] =
                PartitionRow { owner: Some(relay), epoch: lease.epoch };
            claimed.push(Claimed { lease, owner_died: row.owner.is_some() });
        }
        Ok(claimed)
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        let mut state = self.lock();
        for &lease in leases {
            if state.has_lease(relay, lease) {
                state.partitions[usize::from(lease.partition)].owner = None;
            }
        }
        Ok(())
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        let mut state = self.lock();
        for row in state.partitions.iter_mut().filter(|row| row.owner == Some(relay)) {
            row.owner = None;
        }
        state.relays.remove(&relay);
        Ok(())
    }

    async fn reader(&self, _relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        Ok(Box::new(MemoryReader::new(self.database.clone())))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        let mut state = self.lock();
        if !state.has_lease(relay, lease) {
            return Ok(false);
        }
        state.check_refused(state.rows.get(&sequence).iter().map(|row| &row.key))?;
        // The lease holds, so this is not fenced, whether or not an operator has finished the event
        // meanwhile.
        state.update(sequence, |row| {
            let applies = row.life == Life::Pending && row.partition == lease.partition;
            if applies {
                row.attempts = attempts;
            }
            applies
        });
        Ok(true)
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        let settlements = request.settlements.iter().map(|settlement| &settlement.key);
        state.check_refused(settlements.chain(request.unholds.iter().map(|unhold| &unhold.key)))?;
        Ok(state.settle(request, now))
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        let now = self.now();
        let mut state = self.lock();
        let old = |finished: &BTreeSet<(Time, Sequence)>, age: Duration| -> Vec<Sequence> {
            finished
                .iter()
                .take_while(|(at, _)| between(*at, now) >= age)
                .map(|(_, sequence)| *sequence)
                .take(request.rows_max as usize)
                .collect()
        };
        let count =
            |found: &Option<(Vec<Sequence>, _)>| found.as_ref().map_or(0, |(rows, _)| rows.len() as u64);
        let sent = request.sent.map(|(age, disposal)| (old(&state.sent, age), disposal));
        let failed = request.failed.map(|(age, disposal)| (old(&state.failed, age), disposal));
        let purged = Purged { sent: count(&sent), failed: count(&failed) };
        for (sequences, disposal) in [sent, failed].into_iter().flatten() {
            for sequence in sequences {
                if let Some(row) = state.remove(sequence)
                    && disposal == Disposal::Archive
                {
                    state.archive.insert(sequence, row);
                }
            }
        }
        Ok(purged)
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        // In memory the sent rows have an index of their own, and are not looked at.
        let stats = self.stats().await?;
        Ok(QuickStats {
            pending: Count::up_to_max(stats.pending),
            oldest_pending_age: stats.oldest_pending_age,
            failed: Count::up_to_max(stats.failed),
            holds: Count::up_to_max(stats.holds),
            relays_live: stats.relays_live,
            partitions_owned: stats.partitions_owned,
        })
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let now = self.now();
        let state = self.lock();
        let oldest =
            state.pending.iter().filter_map(|sequence| state.rows.get(sequence)).map(|row| row.created_at);
        let owned =
            state.partitions.iter().filter(|row| row.owner.is_some_and(|owner| state.is_alive(owner, now)));
        Ok(StoreStats {
            pending: state.pending.len() as u64,
            oldest_pending_age: oldest.min().map(|created_at| between(created_at, now)),
            sent: state.sent.len() as u64,
            failed: state.failed.len() as u64,
            holds: state.holds.len() as u64,
            relays_live: state.relays_live(now),
            partitions_owned: u32::try_from(owned.count()).unwrap_or(u32::MAX),
        })
    }
}
