//! Membership, leases, retention and numbers.

use std::time::Duration;

use async_trait::async_trait;
use outbox_core::{
    Disposal, Finding, OutboxStore, StoreError,
    store::{
        COUNT_MAX, Claimed, Count, Epoch, Lease, Membership, OutboxReader, Owner, Partition, PartitionView,
        PurgeRequest, Purged, QuickStats, RelayId, Sequence, SettleRequest, Settled, Status,
        StoreCapabilities, StoreStats,
    },
};
use redb::{ReadableTable, ReadableTableMetadata, Table, WriteTransaction};
use uuid::Uuid;

use crate::{
    RedbStore, now,
    reader::RedbReader,
    record::{after, micros},
    settle::{has_lease, settle},
    tables::{self, DONE, EVENTS, HOLDS, IDS, META, PARTITIONS, PENDING, RELAYS, TOPICS, Tables, event},
};

fn is_alive(relays: &impl ReadableTable<u128, i64>, relay: u128, now: i64) -> Result<bool, redb::Error> {
    Ok(relays.get(relay)?.is_some_and(|expires_at| expires_at.value() > now))
}

#[async_trait]
impl OutboxStore for RedbStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(1)
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        let found = self.read("check the tables", |transaction| {
            tables::number(&transaction.open_table(META)?, "version")
        });
        // The tables were made when the file was opened, and no other program can have it open.
        Ok(tables::schema().check(found.await?).into_iter().collect())
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        self.write("join", move |transaction| {
            let relay = Uuid::now_v7();
            transaction.open_table(RELAYS)?.insert(relay.as_u128(), after(now(), ttl))?;
            Ok(RelayId(relay))
        })
        .await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        self.write("renew the lease", move |transaction| {
            let (now, mut relays) = (now(), transaction.open_table(RELAYS)?);
            let alive = is_alive(&relays, relay.0.as_u128(), now)?;
            if alive {
                relays.insert(relay.0.as_u128(), after(now, ttl))?;
            }
            relays.retain(|_, expires_at| expires_at > now)?;
            Ok(alive)
        })
        .await
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        self.read("read the membership", move |transaction| {
            let (now, relays) = (now(), transaction.open_table(RELAYS)?);
            let mut membership = Membership::default();
            for entry in relays.iter()? {
                membership.relays_live += u32::from(entry?.1.value() > now);
            }
            for entry in transaction.open_table(PARTITIONS)?.iter()? {
                let (partition, row) = entry?;
                let (epoch, owner) = row.value();
                let owner = match is_alive(&relays, owner, now)? {
                    true if owner == relay.0.as_u128() => Owner::Mine,
                    true => Owner::Other,
                    false => Owner::Free,
                };
                membership.partitions.push(PartitionView::new(partition.value(), epoch, owner));
            }
            for entry in transaction.open_table(TOPICS)?.iter()? {
                membership.paused_topics.push(entry?.0.value().to_owned());
            }
            Ok(membership)
        })
        .await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        let seen = seen.to_vec();
        self.write("claim partitions", move |transaction| {
            let (now, relays) = (now(), transaction.open_table(RELAYS)?);
            let mut partitions = transaction.open_table(PARTITIONS)?;
            let mut claimed = Vec::new();
            if !is_alive(&relays, relay.0.as_u128(), now)? {
                return Ok(claimed);
            }
            for (partition, epoch_seen) in seen {
                let Some((epoch, owner)) = partitions.get(partition)?.map(|row| row.value()) else {
                    continue;
                };
                if epoch == epoch_seen && !is_alive(&relays, owner, now)? {
                    let lease = Lease { partition, epoch: epoch + 1 };
                    partitions.insert(partition, (lease.epoch, relay.0.as_u128()))?;
                    claimed.push(Claimed::new(lease, owner != 0));
                }
            }
            Ok(claimed)
        })
        .await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        let leases = leases.to_vec();
        self.write("release partitions", move |transaction| {
            let mut partitions = transaction.open_table(PARTITIONS)?;
            for lease in leases {
                if has_lease(&partitions, relay, lease)? {
                    partitions.insert(lease.partition, (lease.epoch, 0))?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        let membership = self.membership(relay).await?;
        let owned = |view: &PartitionView| Lease { partition: view.partition, epoch: view.epoch };
        // One that has expired may still own its partitions, and releases them as well.
        self.release(relay, &membership.partitions.iter().map(owned).collect::<Vec<_>>()).await?;
        self.write("leave", move |transaction| {
            transaction.open_table(RELAYS)?.remove(relay.0.as_u128())?;
            Ok(())
        })
        .await
    }

    async fn reader(&self, _relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        Ok(Box::new(RedbReader::new(self.clone())))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        self.write("record an attempt", move |transaction| {
            if !has_lease(&transaction.open_table(PARTITIONS)?, relay, lease)? {
                return Ok(false);
            }
            let mut tables = Tables::open(transaction)?;
            if let Some(mut record) = event(&tables.events, sequence)?
                && record.status == Status::Pending
            {
                record.attempts = attempts;
                tables.put(sequence, &record)?;
            }
            Ok(true)
        })
        .await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        let request = request.clone();
        self.write("record outcomes", move |transaction| settle(transaction, &request)).await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        self.write("remove old events", move |transaction| {
            let mut ids = transaction.open_table(IDS)?;
            let mut purge = |status, which: Option<_>| match which {
                Some((age, disposal)) => {
                    purge(transaction, &mut ids, status, (age, disposal), request.rows_max)
                }
                None => Ok(0),
            };
            let sent = purge(Status::Sent, request.sent)?;
            Ok(Purged::default().with_sent(sent).with_failed(purge(Status::Failed, request.failed)?))
        })
        .await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        let membership = self.membership(RelayId(Uuid::nil())).await?;
        let owned = membership.partitions.iter().filter(|view| view.owner != Owner::Free).count();
        self.read("count what waits", move |transaction| {
            let (pending, events) = (transaction.open_table(PENDING)?, transaction.open_table(EVENTS)?);
            let mut stats = QuickStats::default();
            let oldest = pending.first()?.map(|(sequence, _)| event(&events, sequence.value()));
            let oldest = oldest.transpose()?.flatten().map(|record| record.created_at);
            stats.oldest_pending_age = oldest.map(|at| micros(now().saturating_sub(at)));
            // The library keeps the length of a table; of what has failed it is counted, and no further than
            // asked.
            stats.pending = Count::up_to_max(pending.len()?);
            let status = Status::Failed.code();
            let done = transaction.open_table(DONE)?;
            let failed = done.range((status, i64::MIN, 0)..(status + 1, i64::MIN, 0))?;
            stats.failed = Count::up_to_max(failed.take(COUNT_MAX as usize + 1).count() as u64);
            stats.holds = Count::up_to_max(transaction.open_table(HOLDS)?.len()?);
            (stats.relays_live, stats.partitions_owned) = (membership.relays_live, owned as u32);
            Ok(stats)
        })
        .await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let membership = self.membership(RelayId(Uuid::nil())).await?;
        let owned = membership.partitions.iter().filter(|view| view.owner != Owner::Free).count();
        self.read("count events", move |transaction| {
            let (pending, events) = (transaction.open_table(PENDING)?, transaction.open_table(EVENTS)?);
            let done = transaction.open_table(DONE)?;
            let count = |status: Status| -> Result<u64, redb::Error> {
                let (from, to) = ((status.code(), i64::MIN, 0), (status.code() + 1, i64::MIN, 0));
                Ok(done.range(from..to)?.count() as u64)
            };
            let mut stats = StoreStats::default();
            let oldest = pending.first()?.map(|(sequence, _)| event(&events, sequence.value()));
            let oldest = oldest.transpose()?.flatten().map(|record| record.created_at);
            stats.oldest_pending_age = oldest.map(|at| micros(now().saturating_sub(at)));
            (stats.pending, stats.sent, stats.failed) =
                (pending.len()?, count(Status::Sent)?, count(Status::Failed)?);
            stats.holds = transaction.open_table(HOLDS)?.len()?;
            (stats.relays_live, stats.partitions_owned) = (membership.relays_live, owned as u32);
            Ok(stats)
        })
        .await
    }
}

fn purge(
    transaction: &WriteTransaction,
    ids: &mut Table<'_, u128, i64>,
    status: Status,
    (age, disposal): (Duration, Disposal),
    rows_max: u32,
) -> Result<u64, redb::Error> {
    let mut tables = Tables::open(transaction)?;
    let until = now().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
    let range = (status.code(), i64::MIN, 0)..=(status.code(), until, i64::MAX);
    let old = tables.done.range(range)?.take(rows_max as usize).map(|entry| Ok(entry?.0.value().2));
    let old: Vec<Sequence> = old.collect::<Result<_, redb::Error>>()?;
    for sequence in &old {
        if let Some(record) = event(&tables.events, *sequence)? {
            tables.remove(ids, *sequence, &record, disposal == Disposal::Archive)?;
        }
    }
    Ok(old.len() as u64)
}
