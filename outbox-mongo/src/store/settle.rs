//! Recording what became of events.
//!
//! The first write of each transaction is to the documents of the leases: a claim that comes meanwhile is in
//! its way, and waits or is waited for. Reading them would not do, since a snapshot may be stale.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt as _;
use mongodb::{
    ClientSession,
    bson::{Bson, DateTime as BsonDateTime, Document, Timestamp, doc},
};
use outbox_core::{
    AggregateKey, StoreError, WhenSent,
    store::{Lease, Outcome, Partition, RelayId, Sequence, SettleRequest, Settled, Settlement, Unhold},
};

use super::membership::leases_of;
use crate::{
    codec::{
        after,
        document::{Stored, id_of, pending, whole},
        sequence::{sequence_of, timestamp_of},
    },
    database::{
        Database, index,
        transaction::{transact, write},
    },
    error::{Fault, within},
    holds::{Held, Hold, change, hold_id},
    schema::PENDING,
};

pub(super) async fn begin_attempt(
    database: &Arc<Database>,
    relay: RelayId,
    lease: Lease,
    sequence: Sequence,
    attempts: u32,
) -> Result<bool, StoreError> {
    let context = (Arc::clone(database), relay, lease, sequence, attempts);
    transact(&database.client, "record an attempt", context, |session, context| {
        let (ref database, relay, lease, sequence, attempts) = *context;
        async move {
            if !write_leases(database, session, relay, &[lease]).await?.is_empty() {
                return Ok(false);
            }
            let mut event = doc! { "sequence": timestamp_of(sequence) };
            event.extend(pending());
            let set = doc! { "$set": { "attempts": i64::from(attempts) } };
            let outbox = database.outbox();
            outbox.update_one(event, set).hint(index(PENDING)).session(session).await?;
            Ok(true)
        }
        .boxed()
    })
    .await
}

/// How many bytes one transaction moves to the archive at the most, unless a single event has more.
///
/// The server ends a transaction whose changes take too much of its cache, for ever however often it is run
/// again (`TransactionTooLargeForCache`). The smallest cache has 256 MB, of which a fifth may be changes, and
/// an event that is moved is there about three times: in the archive, in the oplog and as what was deleted.
const ARCHIVE_BYTES_MAX: i64 = 8 << 20;

pub(super) async fn settle(database: &Arc<Database>, request: &SettleRequest) -> Result<Settled, StoreError> {
    const WHAT: &str = "settle";
    if request.when_sent != WhenSent::Archive || request.settlements.len() < 2 {
        return record(database, WHAT, request.clone()).await;
    }
    let parts = within(WHAT, parts(database, request)).await?;
    let mut fenced = BTreeSet::new();
    for part in parts {
        fenced.extend(record(database, WHAT, part).await?.fenced);
    }
    Ok(Settled::default().with_fenced(fenced.into_iter().collect()))
}

async fn record(
    database: &Arc<Database>,
    what: &'static str,
    request: SettleRequest,
) -> Result<Settled, StoreError> {
    transact(&database.client, what, (Arc::clone(database), request), |session, (database, request)| {
        Settling::run(database, session, request).boxed()
    })
    .await
}

/// The request in as many as keep within [`ARCHIVE_BYTES_MAX`], in the order in which settlements apply. Each
/// settlement is recorded with its hold in one transaction. Should the lease be lost in between, what was
/// recorded before stays so, as after a settle whose answer was lost.
async fn parts(database: &Database, request: &SettleRequest) -> Result<Vec<SettleRequest>, Fault> {
    let in_order = request.settlements_in_order(&[]);
    let sent = in_order.iter().filter(|settlement| settlement.outcome == Outcome::Sent);
    let sent: Vec<Timestamp> = sent.map(|settlement| timestamp_of(settlement.sequence)).collect();
    let fields = doc! { "_id": 0, "sequence": 1, "bytes": { "$bsonSize": "$$ROOT" } };
    let mut found = database.outbox().find(among(&sent)).hint(index(PENDING)).projection(fields).await?;
    let mut bytes = HashMap::with_capacity(sent.len());
    while found.advance().await? {
        let event = found.current();
        bytes.extend(
            event.get_timestamp("sequence").ok().zip(event.get("bytes").ok().flatten().and_then(whole)),
        );
    }
    let sized = in_order.into_iter().map(|settlement| {
        let bytes = bytes.get(&timestamp_of(settlement.sequence));
        (settlement.clone(), bytes.copied().unwrap_or_default())
    });
    let mut parts: Vec<SettleRequest> = batches(sized)
        .into_iter()
        .map(|settlements| {
            SettleRequest::new(request.relay, request.leases.clone())
                .with_when_sent(request.when_sent)
                .with_settlements(settlements)
        })
        .collect();
    // They apply after the settlements.
    if let Some(last) = parts.last_mut() {
        last.unholds = request.unholds.clone();
    }
    Ok(parts)
}

/// Batches of [`ARCHIVE_BYTES_MAX`] at the most, each of one at least.
pub(super) fn batches<T>(sized: impl Iterator<Item = (T, i64)>) -> Vec<Vec<T>> {
    let (mut batches, mut batch, mut left) = (Vec::new(), Vec::new(), ARCHIVE_BYTES_MAX);
    for (item, bytes) in sized {
        if bytes > left && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            left = ARCHIVE_BYTES_MAX;
        }
        left -= bytes;
        batch.push(item);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Writes the documents of the leases. The answer is the partitions whose lease is lost.
async fn write_leases(
    database: &Database,
    session: &mut ClientSession,
    relay: RelayId,
    leases: &[Lease],
) -> Result<Vec<Partition>, Fault> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let partitions = database.partitions();
    let mine = doc! { "owner": id_of(relay.0), "$or": leases_of(leases) };
    let write = partitions.update_many(mine.clone(), doc! { "$inc": { "settles": 1_i64 } });
    let written = write.session(&mut *session).await?;
    if written.matched_count == leases.len() as u64 {
        return Ok(Vec::new());
    }
    let mut held = HashSet::new();
    let mut cursor = partitions.find(mine).session(&mut *session).await?;
    while cursor.advance(session).await? {
        held.extend(cursor.current().get_i32("_id").ok().and_then(|id| Partition::try_from(id).ok()));
    }
    let lost = |lease: &&Lease| !held.contains(&lease.partition);
    Ok(leases.iter().filter(lost).map(|lease| lease.partition).collect())
}

/// One settle, in its transaction.
struct Settling<'a> {
    database: &'a Database,
    session: &'a mut ClientSession,
    when_sent: WhenSent,
}

/// The settlements of one kind, whose update is one and the same.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Change<'a> {
    Sent { attempts: u32 },
    Retried { attempts: u32, error: &'a str },
    Failed { attempts: u32, cause: &'static str, error: &'a str },
}

impl<'a> Settling<'a> {
    async fn run(
        database: &'a Database,
        session: &'a mut ClientSession,
        request: &'a SettleRequest,
    ) -> Result<Settled, Fault> {
        // Each lease that is written is in the way of a claim, so those that nothing needs are not.
        let settled = request.settlements.iter().map(|settlement| settlement.partition);
        let needed: HashSet<Partition> =
            settled.chain(request.unholds.iter().map(|unhold| unhold.partition)).collect();
        let leases = request.leases.iter().filter(|lease| needed.contains(&lease.partition));
        let leases: BTreeMap<Partition, Lease> = leases.map(|lease| (lease.partition, *lease)).collect();
        let leases: Vec<Lease> = leases.into_values().collect();
        let lost = write_leases(database, session, request.relay, &leases).await?;
        let fenced = request.fenced(|lease| !lost.contains(&lease.partition));
        let settlements = request.settlements_in_order(&fenced);
        let unholds: Vec<&Unhold> = request.unholds_of(&fenced).collect();
        let mut settling = Self { database, session, when_sent: request.when_sent };
        settling.record(settlements, &unholds).await?;
        Ok(Settled::default().with_fenced(fenced))
    }

    async fn record(&mut self, mut settlements: Vec<&Settlement>, unholds: &[&Unhold]) -> Result<(), Fault> {
        let any_hold = self.database.holds().find_one(doc! {}).session(&mut *self.session).await?.is_some();
        let all_sent = settlements.iter().all(|settlement| settlement.outcome == Outcome::Sent);
        if any_hold || !all_sent {
            // What is still pending decides on holds.
            let sequences = settlements.iter().map(|settlement| settlement.sequence);
            let named = unholds.iter().filter_map(|unhold| unhold.sequence);
            let open = self.open(sequences.chain(named)).await?;
            settlements.retain(|settlement| {
                open.get(&settlement.sequence).is_some_and(|event| event.partition == settlement.partition)
            });
            self.change(&settlements).await?;
            self.hold(&settlements, unholds, &open).await
        } else {
            self.change(&settlements).await
        }
    }

    /// The events among these that are pending.
    async fn open(
        &mut self,
        sequences: impl Iterator<Item = Sequence>,
    ) -> Result<HashMap<Sequence, Open>, Fault> {
        let sequences: Vec<Timestamp> = sequences.map(timestamp_of).collect();
        let fields = ["sequence", "aggregate_type", "aggregate_id", "partition", "available_at"];
        let fields: Document = fields.iter().map(|name| ((*name).to_owned(), Bson::Int32(1))).collect();
        let outbox = self.database.outbox();
        let find = outbox.find(among(&sequences)).hint(index(PENDING)).projection(fields);
        let mut cursor = find.session(&mut *self.session).await?;
        let mut open = HashMap::with_capacity(sequences.len());
        while cursor.advance(self.session).await? {
            let stored = Stored::of(cursor.current());
            let Some(sequence) = stored.sequence() else { continue };
            let (key, _) = stored.key();
            let partition = stored.partition(&key);
            open.insert(sequence, Open { partition, key, available_at: stored.available_at() });
        }
        Ok(open)
    }

    /// Changes the events, those of one kind by one update.
    async fn change(&mut self, settlements: &[&Settlement]) -> Result<(), Fault> {
        let mut changes: BTreeMap<Change<'_>, Vec<Timestamp>> = BTreeMap::new();
        for settlement in settlements {
            let attempts = settlement.attempts;
            let change = match &settlement.outcome {
                Outcome::Sent => Change::Sent { attempts },
                Outcome::Retry { error, .. } => Change::Retried { attempts, error },
                Outcome::Failed { cause, error, .. } => {
                    Change::Failed { attempts, cause: cause.as_str(), error }
                }
            };
            changes.entry(change).or_default().push(timestamp_of(settlement.sequence));
        }
        let (mut updates, mut sent) = (Vec::new(), Vec::new());
        for (change, sequences) in changes {
            let update = match change {
                Change::Sent { .. } if self.when_sent == WhenSent::Delete => {
                    sent.extend(sequences);
                    continue;
                }
                Change::Sent { attempts } => {
                    if self.when_sent == WhenSent::Archive {
                        sent.extend(sequences.iter().copied());
                    }
                    let set = doc! { "status": 1, "attempts": i64::from(attempts) };
                    doc! { "$set": set, "$currentDate": { "sent_at": true } }
                }
                Change::Retried { attempts, error } => {
                    doc! { "$set": { "attempts": i64::from(attempts), "last_error": error } }
                }
                Change::Failed { attempts, cause, error } => {
                    let set = doc! {
                        "status": 2, "attempts": i64::from(attempts), "cause": cause, "last_error": error,
                    };
                    doc! { "$set": set, "$currentDate": { "failed_at": true } }
                }
            };
            updates.push(doc! { "q": among(&sequences), "u": update, "multi": true, "hint": PENDING });
        }
        let outbox = &self.database.names().outbox;
        write(&self.database.majority, self.session, ("update", outbox, "updates"), updates).await?;
        if sent.is_empty() {
            return Ok(());
        }
        match self.when_sent {
            WhenSent::Archive => {
                let sent = doc! { "sequence": { "$in": sent }, "status": 1 };
                archive(self.database, self.session, sent).await.map(drop)
            }
            _ => {
                let outbox = self.database.outbox();
                outbox.delete_many(among(&sent)).hint(index(PENDING)).session(&mut *self.session).await?;
                Ok(())
            }
        }
    }

    /// Changes the holds as the settlements, which have been applied, and then the unholds ask for.
    async fn hold(
        &mut self,
        settlements: &[&Settlement],
        unholds: &[&Unhold],
        open: &HashMap<Sequence, Open>,
    ) -> Result<(), Fault> {
        let keys = settlements.iter().map(|settlement| &settlement.key);
        let keys: HashSet<&AggregateKey> = keys.chain(unholds.iter().map(|unhold| &unhold.key)).collect();
        let before = holds_of(self.database, self.session, keys.into_iter()).await?;
        let now = server_now(self.database, self.session).await?;
        let mut holds = before.clone();
        for settlement in settlements {
            change(&mut holds, &settlement.key, |hold| Hold::settled(hold, settlement, now, after));
        }
        let finished: HashSet<Sequence> = settlements
            .iter()
            .filter(|settlement| !matches!(settlement.outcome, Outcome::Retry { .. }))
            .map(|settlement| settlement.sequence)
            .collect();
        for unhold in unholds {
            let is_open = |sequence: Sequence| {
                !finished.contains(&sequence)
                    && open.get(&sequence).is_some_and(|event| {
                        event.key == unhold.key && event.available_at.is_none_or(|at| at <= now)
                    })
            };
            change(&mut holds, &unhold.key, |hold| hold?.unheld(unhold, now, is_open));
        }
        write_holds(self.database, self.session, &before, &holds).await
    }
}

/// A pending event as far as holds depend on it.
struct Open {
    partition: Partition,
    key: AggregateKey,
    available_at: Option<BsonDateTime>,
}

/// The pending ones of these events.
pub(crate) fn among(sequences: &[Timestamp]) -> Document {
    let mut filter = doc! { "sequence": { "$in": sequences } };
    filter.extend(pending());
    filter
}

/// The holds of these aggregates.
pub(crate) async fn holds_of<'k>(
    database: &Database,
    session: &mut ClientSession,
    keys: impl Iterator<Item = &'k AggregateKey>,
) -> Result<HashMap<AggregateKey, Held>, Fault> {
    let ids: Vec<Bson> = keys.map(hold_id).collect();
    let mut cursor = database.holds().find(doc! { "_id": { "$in": ids } }).session(&mut *session).await?;
    let mut holds = HashMap::new();
    while cursor.advance(session).await? {
        holds.extend(Held::of(cursor.current()));
    }
    Ok(holds)
}

/// Writes the holds that differ from what they were.
pub(crate) async fn write_holds(
    database: &Database,
    session: &mut ClientSession,
    before: &HashMap<AggregateKey, Held>,
    holds: &HashMap<AggregateKey, Held>,
) -> Result<(), Fault> {
    let changed = holds.iter().filter(|(key, hold)| before.get(*key) != Some(*hold));
    let updates = changed
        .map(|(key, hold)| doc! { "q": { "_id": hold_id(key) }, "u": hold.document(), "upsert": true });
    let collection = &database.names().holds;
    write(&database.majority, session, ("update", collection, "updates"), updates.collect()).await?;
    let removed = before.keys().filter(|key| !holds.contains_key(*key));
    let deletes = removed.map(|key| doc! { "q": { "_id": hold_id(key) }, "limit": 1 });
    write(&database.majority, session, ("delete", collection, "deletes"), deletes.collect()).await
}

/// The server's clock, within a transaction.
pub(crate) async fn server_now(
    database: &Database,
    session: &mut ClientSession,
) -> Result<BsonDateTime, Fault> {
    let partitions = database.partitions();
    let find = partitions.find_one(doc! { "_id": 0 }).projection(doc! { "now": "$$NOW" });
    let found = find.session(session).await?;
    let now = found.and_then(|document| document.get_datetime("now").ok().copied());
    now.ok_or_else(|| Fault::Write { code: 26, message: "there is no partition 0".to_owned() })
}

/// Moves events to the archive. The same event, which is there after a restore of the collection, is
/// replaced; another one of that sequence stays.
pub(super) async fn archive(
    database: &Database,
    session: &mut ClientSession,
    events: Document,
) -> Result<u64, Fault> {
    let (outbox, archive) = (database.outbox(), database.archive());
    let (mut documents, mut ids) = (Vec::new(), Vec::new());
    let mut cursor = outbox.find(events).session(&mut *session).await?;
    while cursor.advance(session).await? {
        let document = cursor.current();
        if let Ok(Some(id)) = document.get("_id") {
            ids.push(Bson::try_from(id).map_err(|error| Fault::Driver(error.into()))?);
        }
        debug_assert!(document.get_timestamp("sequence").is_ok_and(|at| sequence_of(at).is_some()));
        documents.push(document.to_owned());
    }
    if documents.is_empty() {
        return Ok(0);
    }
    let of_ids = doc! { "_id": { "$in": ids } };
    archive.delete_many(of_ids.clone()).session(&mut *session).await?;
    archive.insert_many(documents).session(&mut *session).await?;
    Ok(outbox.delete_many(of_ids).session(session).await?.deleted_count)
}
