//! The store in memory with one fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, Disposal, EventFilter, Finding, OutboxAdmin, OutboxStore, StoreError, StoreErrorKind,
    WhenSent,
    memory::MemoryStore,
    store::{
        Claimed, Count, Epoch, EventRecord, FailureCause, HoldReason, HoldRecord, Lease, Membership,
        OutboxReader, Outcome, Owner, Partition, PurgeRequest, Purged, QuickStats, RelayId, Sequence,
        SettleRequest, Settled, Settlement, Status, StoreCapabilities, StoreStats, Successors, Unhold,
    },
};

use crate::{faults::Fault, reader::BrokenReader};

#[derive(Clone)]
pub(crate) struct Broken {
    pub(crate) memory: MemoryStore,
    pub(crate) fault: Fault,
    seen: Arc<Mutex<Seen>>,
}

/// What a fault needs to know and the store does not tell.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) returned: BTreeSet<Sequence>,
    pub(crate) held_by: BTreeMap<AggregateKey, RelayId>,
    owners: BTreeMap<Partition, (RelayId, Lease)>,
    joined: u32,
    settled: BTreeSet<(Sequence, u32)>,
    /// What the database refuses to record.
    pub(crate) refused: Option<AggregateKey>,
    pub(crate) holds_forgotten: BTreeSet<AggregateKey>,
    /// Holds whose reason should have changed and did not.
    pub(crate) reasons_kept: BTreeMap<AggregateKey, HoldReason>,
}

impl Broken {
    pub(crate) fn new(memory: MemoryStore, fault: Fault) -> Self {
        Self { memory, fault, seen: Arc::default() }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(crate) fn owner_of(&self, partition: Partition) -> Option<(RelayId, Lease)> {
        self.seen().owners.get(&partition).copied()
    }

    async fn claim_and_note(
        &self,
        relay: RelayId,
        seen: &[(Partition, Epoch)],
    ) -> Result<Vec<Claimed>, StoreError> {
        let claimed = self.memory.claim(relay, seen).await?;
        let mut notes = self.seen();
        notes.owners.extend(claimed.iter().map(|claimed| (claimed.lease.partition, (relay, claimed.lease))));
        drop(notes);
        Ok(claimed)
    }

    async fn epochs(&self) -> Result<BTreeMap<Partition, Epoch>, StoreError> {
        let membership = self.memory.membership(RelayId(uuid::Uuid::nil())).await?;
        Ok(membership.partitions.iter().map(|view| (view.partition, view.epoch)).collect())
    }

    async fn rob(&self, partitions: &[(Partition, Epoch)]) -> Result<(), StoreError> {
        for (partition, _) in partitions {
            if let Some((owner, lease)) = self.owner_of(*partition) {
                self.memory.release(owner, &[lease]).await?;
            }
        }
        Ok(())
    }

    /// Refuses what the harness had it refuse.
    fn refuse(&self, key: &AggregateKey) -> Result<(), StoreError> {
        if self.seen().refused.as_ref() != Some(key) {
            return Ok(());
        }
        let kind = match self.fault {
            Fault::RefusalCalledOutage => StoreErrorKind::Unavailable,
            Fault::RefusalCalledConflict => StoreErrorKind::Conflict,
            _ => StoreErrorKind::Unexpected,
        };
        Err(StoreError::new(kind, "a trigger refuses it"))
    }

    /// Settles one event as the owner of its partition, whichever relay that is.
    pub(crate) async fn settle_as_owner(
        &self,
        record: &EventRecord,
        outcome: Outcome,
        when_sent: WhenSent,
    ) -> Result<Settled, StoreError> {
        let Some((relay, lease)) = self.owner_of(record.partition) else { return Ok(Settled::default()) };
        let settlement =
            Settlement::new(record.sequence, record.partition, record.key.clone(), record.attempts, outcome);
        let settlements = vec![settlement];
        let request =
            SettleRequest::new(relay, vec![lease]).with_settlements(settlements).with_when_sent(when_sent);
        self.memory.settle(&request).await
    }
}

#[async_trait]
impl OutboxStore for Broken {
    fn capabilities(&self) -> StoreCapabilities {
        match self.fault {
            Fault::PartitionsUnderstated => StoreCapabilities::new(32),
            _ => self.memory.capabilities(),
        }
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        if self.is(Fault::CheckFindsSomething) {
            return Ok(vec![Finding::warning("spots", "the table has spots", "clean it")]);
        }
        self.memory.check().await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        self.seen().joined += 1;
        self.memory.join(ttl).await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        let alive = self.memory.beat(relay, ttl).await?;
        Ok(match self.fault {
            Fault::BeatFalse => false,
            Fault::BeatTrue => true,
            _ => alive,
        })
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        let mut membership = self.memory.membership(relay).await?;
        match self.fault {
            Fault::DeadCounted => membership.relays_live = self.seen().joined,
            Fault::TopicsNotTold => membership.paused_topics.clear(),
            Fault::OwnersMixedUp => {
                for view in membership.partitions.iter_mut().filter(|view| view.owner == Owner::Other) {
                    view.owner = Owner::Mine;
                }
            }
            _ => {}
        }
        Ok(membership)
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        match self.fault {
            Fault::EpochNotCompared => {
                let epochs = self.epochs().await?;
                let present =
                    |(partition, _): &(Partition, Epoch)| Some((*partition, *epochs.get(partition)?));
                let present: Vec<_> = seen.iter().filter_map(present).collect();
                self.claim_and_note(relay, &present).await
            }
            Fault::LivingRobbed => {
                let epochs = self.epochs().await?;
                let same: Vec<_> =
                    seen.iter().filter(|(part, epoch)| epochs.get(part) == Some(epoch)).copied().collect();
                self.rob(&same).await?;
                self.claim_and_note(relay, seen).await
            }
            Fault::ClaimNotAtomic => {
                // It looks, and long after that it takes, whatever has happened between.
                let view = self.memory.membership(relay).await?.partitions;
                let free = |(part, epoch): &&(Partition, Epoch)| {
                    let same = |view: &&outbox_core::store::PartitionView| view.partition == *part;
                    view.iter()
                        .find(same)
                        .is_some_and(|view| view.owner == Owner::Free && view.epoch == *epoch)
                };
                let free: Vec<_> = seen.iter().filter(free).copied().collect();
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let before = self.epochs().await?;
                let moved: Vec<_> =
                    free.iter().filter(|(part, epoch)| before.get(part) != Some(epoch)).copied().collect();
                self.rob(&moved).await?;
                let present: Vec<_> =
                    free.iter().filter_map(|(part, _)| Some((*part, *before.get(part)?))).collect();
                self.claim_and_note(relay, &present).await
            }
            Fault::DeadClaim => {
                let mut claimed = self.claim_and_note(relay, seen).await?;
                if claimed.is_empty() && self.memory.membership(relay).await?.relays_live > 0 {
                    let ghost = self.memory.join(Duration::from_secs(3600)).await?;
                    claimed = self.memory.claim(ghost, seen).await?;
                }
                Ok(claimed)
            }
            Fault::DeathForgotten => {
                let mut claimed = self.claim_and_note(relay, seen).await?;
                claimed.iter_mut().for_each(|claimed| claimed.owner_died = false);
                Ok(claimed)
            }
            _ => self.claim_and_note(relay, seen).await,
        }
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        if self.is(Fault::ReleaseUnfenced) {
            let partitions: Vec<_> = leases.iter().map(|lease| (lease.partition, lease.epoch)).collect();
            return self.rob(&partitions).await;
        }
        self.memory.release(relay, leases).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        if self.is(Fault::LeaveIsDeath) {
            return self.memory.beat(relay, Duration::ZERO).await.map(drop);
        }
        self.memory.leave(relay).await
    }

    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        let inner = self.memory.reader(relay).await?;
        Ok(Box::new(BrokenReader::new(self.clone(), relay, inner)))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        let key = self.memory.list(&EventFilter::default().after(sequence - 1), 1).await?.pop();
        key.map_or(Ok(()), |record| self.refuse(&record.key))?;
        match (self.fault, self.owner_of(lease.partition)) {
            (Fault::AttemptForgotten, _) => Ok(true),
            (Fault::AttemptUnfenced, Some((owner, lease))) => {
                self.memory.begin_attempt(owner, lease, sequence, attempts).await
            }
            _ => self.memory.begin_attempt(relay, lease, sequence, attempts).await,
        }
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        let mut request = request.clone();
        let refused = request.settlements.iter().find_map(|one| self.refuse(&one.key).err());
        match refused {
            Some(_) if self.is(Fault::RefusedHalfWritten) => {
                let written = |one: &Settlement| self.refuse(&one.key).is_ok();
                request.settlements.retain(written);
                self.memory.settle(&request).await?;
                return Err(StoreError::new(StoreErrorKind::Unexpected, "a trigger refuses one of it"));
            }
            Some(_) if self.is(Fault::RefusalUntold) => {
                request.settlements.retain(|one| self.refuse(&one.key).is_ok());
            }
            Some(error) => return Err(error),
            None => {}
        }
        match self.fault {
            Fault::KeepDeletes if request.when_sent == WhenSent::Keep => request.when_sent = WhenSent::Delete,
            Fault::DeleteKeeps if request.when_sent == WhenSent::Delete => request.when_sent = WhenSent::Keep,
            Fault::DeleteArchives if request.when_sent == WhenSent::Delete => {
                request.when_sent = WhenSent::Archive;
            }
            Fault::ArchiveDeletes if request.when_sent == WhenSent::Archive => {
                request.when_sent = WhenSent::Delete;
            }
            Fault::OnlyAHundred => request.settlements.truncate(100),
            Fault::SettleUnfenced => return self.settle_for_the_owners(&request).await,
            Fault::SettledAsGiven => return self.settle_as_given(request).await,
            Fault::SettleByOwnerOnly => {
                for lease in &mut request.leases {
                    if let Some((owner, present)) = self.owner_of(lease.partition)
                        && owner == request.relay
                    {
                        *lease = present;
                    }
                }
            }
            Fault::FencedDropsAll => {
                let lost = |lease: &Lease| self.owner_of(lease.partition) != Some((request.relay, *lease));
                let fenced: Vec<_> =
                    request.leases.iter().filter(|lease| lost(lease)).map(|lease| lease.partition).collect();
                if !fenced.is_empty() {
                    return Ok(Settled::default().with_fenced(fenced));
                }
            }
            _ => {}
        }
        for settlement in &mut request.settlements {
            self.spoil_settlement(settlement, request.relay);
        }
        let before = self.memory.holds(u32::MAX).await?;
        let settled = self.memory.settle(&request).await?;
        self.spoil_settled(&request, &before).await?;
        Ok(settled)
    }

    async fn purge(&self, mut request: PurgeRequest) -> Result<Purged, StoreError> {
        let states = [&mut request.sent, &mut request.failed];
        for (age, disposal) in states.into_iter().flatten() {
            match self.fault {
                Fault::PurgeIgnoresAge => *age = Duration::ZERO,
                Fault::PurgeArchivesNothing => *disposal = Disposal::Delete,
                _ => {}
            }
        }
        let mut purged = self.memory.purge(request).await?;
        if self.is(Fault::PurgeTakesRequeued) && request.failed.is_some() {
            // What had failed when the purge looked, and was requeued before it removed it.
            let pending = self.memory.list(&EventFilter::status(Status::Pending), u32::MAX).await?;
            for record in pending.iter().filter(|record| record.attempts == 0 && record.last_error.is_some())
            {
                self.settle_as_owner(record, Outcome::Sent, WhenSent::Delete).await?;
                purged.failed += 1;
            }
        }
        Ok(purged)
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        let mut stats = self.memory.quick_stats().await?;
        if self.is(Fault::QuickStatsCountSent) {
            stats.pending = Count::exactly(stats.pending.at_least + self.memory.stats().await?.sent);
        }
        Ok(stats)
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let mut stats = self.memory.stats().await?;
        if self.is(Fault::StatsCountTheDead) {
            stats.relays_live = self.seen().joined;
        }
        Ok(stats)
    }
}

impl Broken {
    async fn settle_for_the_owners(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        for lease in &request.leases {
            let Some((relay, present)) = self.owner_of(lease.partition) else { continue };
            let mut part = request.clone().with_relay(relay).with_leases(vec![present]);
            part.settlements.retain(|settlement| settlement.partition == lease.partition);
            part.unholds.retain(|unhold| unhold.partition == lease.partition);
            self.memory.settle(&part).await?;
        }
        Ok(Settled::default())
    }

    /// One by one in the order given, in place of the order of their sequences.
    async fn settle_as_given(&self, mut request: SettleRequest) -> Result<Settled, StoreError> {
        for settlement in std::mem::take(&mut request.settlements) {
            let unholds = Vec::new();
            let one = request.clone().with_settlements(vec![settlement]).with_unholds(unholds);
            self.memory.settle(&one).await?;
        }
        self.memory.settle(&request).await
    }

    fn spoil_settlement(&self, settlement: &mut Settlement, relay: RelayId) {
        let mut seen = self.seen();
        if matches!(settlement.outcome, Outcome::Retry { .. }) {
            seen.held_by.insert(settlement.key.clone(), relay);
        }
        match (self.fault, &mut settlement.outcome) {
            (Fault::CauseForgotten, Outcome::Failed { cause, .. }) => *cause = FailureCause::Exhausted,
            (Fault::ParkReleases, Outcome::Failed { successors, .. }) => *successors = Successors::Release,
            (Fault::AttemptsAdded, _) if !seen.settled.insert((settlement.sequence, settlement.attempts)) => {
                settlement.attempts += 1;
            }
            _ => {}
        }
    }

    async fn spoil_settled(&self, request: &SettleRequest, before: &[HoldRecord]) -> Result<(), StoreError> {
        for settlement in &request.settlements {
            let Some(hold) = before.iter().find(|hold| hold.key == settlement.key) else { continue };
            let of_another = hold.sequence.is_some_and(|sequence| sequence != settlement.sequence);
            let is_retry = matches!(settlement.outcome, Outcome::Retry { .. });
            self.seen().reasons_kept.remove(&settlement.key);
            match self.fault {
                Fault::ReasonKept if of_another && is_retry && !hold.paused => {
                    self.seen().reasons_kept.insert(settlement.key.clone(), hold.reason);
                }
                Fault::ReasonKeptBeneathPause if !of_another && is_retry && hold.paused => {
                    self.seen().reasons_kept.insert(settlement.key.clone(), hold.reason);
                }
                Fault::SoonerTimeWins if of_another && is_retry => {
                    self.memory.resume(&settlement.key).await?;
                }
                Fault::AnyEndRemovesHold if of_another && !is_retry => {
                    self.seen().holds_forgotten.insert(settlement.key.clone());
                }
                Fault::PauseEndsWithEvent if hold.paused => {
                    self.memory.resume(&settlement.key).await?;
                }
                _ => {}
            }
        }
        if self.is(Fault::UnholdUnconditional) {
            let keys = request.unholds.iter().map(|unhold: &Unhold| unhold.key.clone());
            self.seen().holds_forgotten.extend(keys);
        }
        Ok(())
    }
}
