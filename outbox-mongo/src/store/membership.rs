//! Relays, and the partitions that they own.

use std::{collections::HashMap, time::Duration};

use mongodb::bson::{Bson, Document, doc};
use outbox_core::{
    StoreError,
    store::{Claimed, Epoch, Lease, Membership, Owner, Partition, PartitionView, RelayId},
};
use uuid::Uuid;

use crate::{
    codec::{document::id_of, millis},
    database::{Database, collect},
    error::within,
    schema,
};

/// A relay is alive. One whose expiry is further ahead than it can have been set is left over from before the
/// server's clock was set back.
pub(super) fn alive() -> Document {
    let latest = doc! { "$add": ["$$NOW", { "$multiply": [2, "$ttl_ms"] }] };
    doc! { "$and": [{ "$gt": ["$expires_at", "$$NOW"] }, { "$lte": ["$expires_at", latest] }] }
}

/// An update that gives a relay another `ttl` from now.
fn renew(ttl: Duration) -> Vec<Document> {
    let ttl = millis(ttl);
    let expires_at = doc! { "$add": ["$$NOW", ttl] };
    vec![doc! { "$set": { "expires_at": expires_at, "ttl_ms": ttl, "schema": schema::SCHEMA_VERSION } }]
}

pub(super) async fn join(database: &Database, ttl: Duration) -> Result<RelayId, StoreError> {
    let what = "enter a relay";
    // MongoDB makes any collection by itself when it is written to, and only this says that it is the right
    // one.
    let found = within(what, schema::version(&database.majority, &database.names().meta)).await?;
    let found = found.ok_or_else(|| database.not_migrated(what))?;
    schema::schema(database.names()).refuse_newer(Some(found))?;
    let relay = RelayId(Uuid::now_v7());
    let relays = database.relays();
    let enter = relays.update_one(doc! { "_id": id_of(relay.0) }, renew(ttl)).upsert(true);
    within(what, async { enter.await }).await?;
    Ok(relay)
}

pub(super) async fn beat(database: &Database, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
    let what = "keep a relay alive";
    let relays = database.relays();
    let mine = doc! { "_id": id_of(relay.0), "$expr": alive() };
    let renewed = within(what, async { relays.update_one(mine, renew(ttl)).await }).await?;
    // The partitions keep the name of a relay that is gone: that is how a claim knows that it died.
    let expired = doc! { "$expr": { "$not": [alive()] } };
    within(what, async { relays.delete_many(expired).await }).await?;
    Ok(renewed.matched_count == 1)
}

struct PartitionRow {
    partition: Partition,
    epoch: Epoch,
    owner: Option<Uuid>,
}

struct View {
    partitions: Vec<PartitionRow>,
    alive: Vec<Uuid>,
}

impl View {
    /// Partitions first and relays second: an owner that is not alive by then was not when the partition was
    /// read.
    async fn read(database: &Database, what: &str) -> Result<Self, StoreError> {
        let (partitions, relays) = (database.partitions(), database.relays());
        let partitions = partitions.find(doc! {}).sort(doc! { "_id": 1 });
        let partitions = within(what, async { collect(partitions.await?).await }).await?;
        let relays = relays.find(doc! { "$expr": alive() });
        let relays = within(what, async { collect(relays.await?).await }).await?;
        let row = |document: &Document| {
            Some(PartitionRow {
                partition: Partition::try_from(document.get_i32("_id").ok()?).ok()?,
                epoch: document.get_i64("epoch").ok()?,
                owner: uuid(document, "owner"),
            })
        };
        let view = Self {
            partitions: partitions.iter().filter_map(row).collect(),
            alive: relays.iter().filter_map(|relay| uuid(relay, "_id")).collect(),
        };
        if view.partitions.is_empty() { Err(database.not_migrated(what)) } else { Ok(view) }
    }

    fn is_alive(&self, relay: Uuid) -> bool {
        self.alive.contains(&relay)
    }
}

fn uuid(document: &Document, name: &str) -> Option<Uuid> {
    match document.get(name) {
        Some(Bson::Binary(binary)) => Uuid::from_slice(&binary.bytes).ok(),
        _ => None,
    }
}

pub(super) async fn membership(database: &Database, relay: RelayId) -> Result<Membership, StoreError> {
    let what = "read the membership";
    let view = View::read(database, what).await?;
    let owner = |row: &PartitionRow| match row.owner {
        Some(owner) if !view.is_alive(owner) => Owner::Free,
        Some(owner) if owner == relay.0 => Owner::Mine,
        Some(_) => Owner::Other,
        None => Owner::Free,
    };
    let partition = |row: &PartitionRow| PartitionView::new(row.partition, row.epoch, owner(row));
    Ok(Membership::default()
        .with_relays_live(u32::try_from(view.alive.len()).unwrap_or(u32::MAX))
        .with_partitions(view.partitions.iter().map(partition).collect())
        .with_paused_topics(paused_topics(database, what).await?))
}

pub(crate) async fn paused_topics(database: &Database, what: &str) -> Result<Vec<String>, StoreError> {
    let topics = database.topics();
    let find = topics.find(doc! {}).sort(doc! { "_id": 1 });
    let found = within(what, async { collect(find.await?).await }).await?;
    Ok(found.iter().filter_map(|topic| topic.get_str("_id").ok()).map(str::to_owned).collect())
}

pub(super) async fn claim(
    database: &Database,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> Result<Vec<Claimed>, StoreError> {
    let what = "claim partitions";
    let view = View::read(database, what).await?;
    if !view.is_alive(relay.0) {
        return Ok(Vec::new());
    }
    let seen: HashMap<Partition, Epoch> = seen.iter().copied().collect();
    // A relay that is not alive never will be again, so what is free here stays free until a relay claims it.
    let is_free = |row: &&PartitionRow| {
        seen.get(&row.partition) == Some(&row.epoch) && row.owner.is_none_or(|owner| !view.is_alive(owner))
    };
    let free: Vec<&PartitionRow> = view.partitions.iter().filter(is_free).collect();
    if free.is_empty() {
        return Ok(Vec::new());
    }
    let partitions = database.partitions();
    let of_each: Vec<Document> = free
        .iter()
        .map(
            |row| doc! { "_id": i32::from(row.partition), "epoch": row.epoch, "owner": row.owner.map(id_of) },
        )
        .collect();
    // Each of them is a compare-and-set of its own.
    let claim = doc! { "$set": { "owner": id_of(relay.0) }, "$inc": { "epoch": 1_i64 } };
    within(what, async { partitions.update_many(doc! { "$or": of_each }, claim).await }).await?;
    let ids: Vec<i32> = free.iter().map(|row| row.partition.into()).collect();
    let mine = partitions.find(doc! { "_id": { "$in": ids }, "owner": id_of(relay.0) });
    let mine = within(what, async { collect(mine.await?).await }).await?;
    let has = |row: &&&PartitionRow| {
        mine.iter().any(|found| {
            found.get_i32("_id").ok() == Some(row.partition.into())
                && found.get_i64("epoch").ok() == Some(row.epoch + 1)
        })
    };
    let claimed = |row: &&PartitionRow| {
        Claimed::new(Lease { partition: row.partition, epoch: row.epoch + 1 }, row.owner.is_some())
    };
    Ok(free.iter().filter(has).map(claimed).collect())
}

/// The leases as conditions on the partitions.
pub(super) fn leases_of<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Vec<Document> {
    leases.into_iter().map(|lease| doc! { "_id": i32::from(lease.partition), "epoch": lease.epoch }).collect()
}

pub(super) async fn release(database: &Database, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
    if leases.is_empty() {
        return Ok(());
    }
    let what = "release partitions";
    let mine = doc! { "owner": id_of(relay.0), "$or": leases_of(leases) };
    let partitions = database.partitions();
    let release = partitions.update_many(mine, doc! { "$set": { "owner": Bson::Null } });
    within(what, async { release.await }).await.map(drop)
}

pub(super) async fn leave(database: &Database, relay: RelayId) -> Result<(), StoreError> {
    let what = "leave";
    let (partitions, relays) = (database.partitions(), database.relays());
    let mine = doc! { "owner": id_of(relay.0) };
    let release = partitions.update_many(mine, doc! { "$set": { "owner": Bson::Null } });
    within(what, async { release.await }).await?;
    within(what, async { relays.delete_one(doc! { "_id": id_of(relay.0) }).await }).await.map(drop)
}
