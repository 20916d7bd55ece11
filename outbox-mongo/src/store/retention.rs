//! Retention and numbers.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use mongodb::{
    bson::{Bson, DateTime as BsonDateTime, Document, doc},
    error::Error,
};
use outbox_core::{
    Disposal, StoreError,
    store::{COUNT_MAX, Count, PurgeRequest, Purged, QuickStats, Status, StoreStats},
};

use super::{
    membership::alive,
    settle::{archive, batches},
};
use crate::{
    codec::{
        document::{Stored, pending, utc},
        millis,
        sequence::{first_of, timestamp_of},
    },
    database::{Database, collect, index, transaction::transact},
    error::within,
    schema::{FAILED, PENDING, SEQUENCE},
};

pub(super) async fn purge(database: &Arc<Database>, request: PurgeRequest) -> Result<Purged, StoreError> {
    let mut purged = Purged::default();
    if let Some((age, disposal)) = request.sent {
        purged.sent = remove(database, Status::Sent, age, disposal, request.rows_max).await?;
    }
    if let Some((age, disposal)) = request.failed {
        purged.failed = remove(database, Status::Failed, age, disposal, request.rows_max).await?;
    }
    Ok(purged)
}

/// Removes a batch of events of a final state. The condition is repeated by the statement that removes, so
/// that one that is put back meanwhile stays.
async fn remove(
    database: &Arc<Database>,
    status: Status,
    age: std::time::Duration,
    disposal: Disposal,
    rows_max: u32,
) -> Result<u64, StoreError> {
    let what = "remove old events";
    if rows_max == 0 {
        return Ok(0);
    }
    let now = database.now(what).await?;
    let latest = BsonDateTime::from_millis(now.timestamp_millis().saturating_sub(millis(age)));
    let mut old = match status {
        // A sent event is found by its sequence: one that was written later than that cannot have been sent
        // sooner.
        Status::Sent => {
            let second = latest.timestamp_millis().div_euclid(1000) + 1;
            doc! {
                "sequence": { "$lt": timestamp_of(first_of(second)) }, "status": 1, "sent_at": { "$lte": latest },
            }
        }
        _ => doc! { "status": 2, "failed_at": { "$lte": latest } },
    };
    let by = if status == Status::Sent { SEQUENCE } else { FAILED };
    let outbox = database.majority.collection::<Document>(&database.names().outbox);
    let find = outbox.find(old.clone()).hint(index(by)).sort(doc! { "sequence": 1 });
    let find = find.limit(rows_max.into());
    match disposal {
        Disposal::Delete => {
            let found =
                within(what, async { collect(find.projection(doc! { "_id": 1 }).await?).await }).await?;
            let ids: Vec<Bson> = found.into_iter().filter_map(|mut event| event.remove("_id")).collect();
            if ids.is_empty() {
                return Ok(0);
            }
            old.insert("_id", doc! { "$in": ids });
            Ok(within(what, async { outbox.delete_many(old).await }).await?.deleted_count)
        }
        Disposal::Archive => {
            let sized = doc! { "_id": 1, "bytes": { "$bsonSize": "$$ROOT" } };
            let found = within(what, async { collect(find.projection(sized).await?).await }).await?;
            let sized = found.into_iter().filter_map(|mut event| {
                let bytes = event.get_i32("bytes").unwrap_or_default();
                Some((event.remove("_id")?, bytes.into()))
            });
            let mut moved = 0;
            for ids in batches(sized) {
                old.insert("_id", doc! { "$in": ids });
                let context = (Arc::clone(database), old.clone());
                moved += transact(&database.client, what, context, |session, (database, old)| {
                    archive(database, session, old.clone()).boxed()
                })
                .await?;
            }
            Ok(moved)
        }
    }
}

pub(super) async fn quick_stats(database: &Database) -> Result<QuickStats, StoreError> {
    let what = "count what waits";
    let mut stats = QuickStats::default();
    stats.oldest_pending_age = oldest_pending_age(database, what).await?;
    within(what, async {
        let counted = COUNT_MAX + 1;
        let outbox = database.outbox();
        let pending = outbox.count_documents(pending()).hint(index(PENDING)).limit(counted).await?;
        let failed = outbox.count_documents(doc! { "status": 2 }).hint(index(FAILED)).limit(counted).await?;
        let holds = database.holds().count_documents(doc! {}).limit(counted).await?;
        stats.pending = Count::up_to_max(pending);
        stats.failed = Count::up_to_max(failed);
        stats.holds = Count::up_to_max(holds);
        (stats.relays_live, stats.partitions_owned) = members(database).await?;
        Ok::<_, Error>(())
    })
    .await?;
    Ok(stats)
}

pub(super) async fn stats(database: &Database) -> Result<StoreStats, StoreError> {
    let what = "count the events";
    let mut stats = StoreStats::default();
    stats.oldest_pending_age = oldest_pending_age(database, what).await?;
    within(what, async {
        let outbox = database.outbox();
        stats.pending = outbox.count_documents(pending()).hint(index(PENDING)).await?;
        stats.sent = outbox.count_documents(doc! { "status": 1 }).await?;
        stats.failed = outbox.count_documents(doc! { "status": 2 }).hint(index(FAILED)).await?;
        stats.holds = database.holds().count_documents(doc! {}).await?;
        (stats.relays_live, stats.partitions_owned) = members(database).await?;
        Ok::<_, Error>(())
    })
    .await?;
    Ok(stats)
}

async fn oldest_pending_age(database: &Database, what: &str) -> Result<Option<Duration>, StoreError> {
    let now = database.now(what).await?;
    let outbox = database.outbox();
    let oldest = outbox.find_one(pending()).hint(index(PENDING)).sort(doc! { "sequence": 1 });
    let oldest = within(what, async { oldest.await }).await?;
    let created_at = oldest.as_ref().and_then(|event| {
        let stored = Stored::of(event);
        stored.sequence().map(|sequence| stored.created_at(sequence))
    });
    Ok(created_at.map(|at| (utc(now) - at).to_std().unwrap_or_default()))
}

/// Live relays, and the partitions that they own.
async fn members(database: &Database) -> Result<(u32, u32), Error> {
    let relays = collect(database.relays().find(doc! { "$expr": alive() }).await?).await?;
    let live = u32::try_from(relays.len()).unwrap_or(u32::MAX);
    let owners: Vec<Bson> = relays.into_iter().filter_map(|mut relay| relay.remove("_id")).collect();
    let owned = database.partitions().count_documents(doc! { "owner": { "$in": owners } }).await?;
    Ok((live, u32::try_from(owned).unwrap_or(u32::MAX)))
}
