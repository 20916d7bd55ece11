//! The operator's side. Every call is one transaction, and needs no relay to be running.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use mongodb::{
    ClientSession, Collection,
    bson::{Bson, DateTime as BsonDateTime, Document, RawDocumentBuf, Timestamp, doc},
};
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{EventRecord, HoldReason, HoldRecord, Sequence, Status},
};

use crate::{
    MongoStore,
    codec::{
        document::{Stored, partition_of, pending, spellings_of},
        sequence::{created_at_expression, first_of, timestamp_of},
    },
    database::{Database, transaction::transact},
    error::{Fault, within},
    holds::{Held, Hold, change, hold_id},
    store::{holds_of, paused_topics, server_now, write_holds},
};

#[async_trait]
impl OutboxAdmin for MongoStore {
    /// Pending and failed events are found by their indexes, ids by theirs; any other condition reads the
    /// collection from `after` on until it has found enough, which takes its time where it is large.
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let database = self.database();
        if rows_max == 0 {
            return Ok(Vec::new());
        }
        within("list events", async {
            if !filter.archived {
                return page(&database.outbox(), condition(filter), rows_max.into()).await;
            }
            // In the archive several events can have one sequence. The next page begins behind the last
            // sequence, so that a page has all of that one, and may be longer than was asked for.
            let archive = database.archive();
            let mut records = page(&archive, condition(filter), rows_max.into()).await?;
            let last = records.last().map(|record| record.sequence);
            if let Some(last) = last.filter(|_| records.len() == rows_max as usize) {
                let same = doc! { "$and": [condition(filter), { "sequence": timestamp_of(last) }] };
                records.retain(|record| record.sequence < last);
                records.extend(page(&archive, same, 0).await?);
            }
            Ok(records)
        })
        .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        if rows_max == 0 {
            return Ok(Vec::new());
        }
        // Those without an end come last, and so do those that are paused.
        let no_date = doc! { "$or": ["$paused_at", { "$not": ["$until"] }] };
        let due_ms = doc! { "$max": [0_i64, { "$subtract": ["$until", "$$NOW"] }] };
        let pipeline = [
            doc! { "$addFields": { "endless": { "$toBool": no_date }, "due_ms": due_ms } },
            doc! { "$sort": { "endless": 1, "until": 1, "_id": 1 } },
            doc! { "$limit": i64::from(rows_max) },
        ];
        let holds = self.database().holds();
        within("list holds", async {
            let mut cursor = holds.aggregate(pipeline).await?;
            let mut records = Vec::new();
            while cursor.advance().await? {
                let document = cursor.current();
                let Some((key, Held { partition, hold })) = Held::of(document) else { continue };
                let paused = hold.is_paused();
                let due_ms = document.get_i64("due_ms").ok().and_then(|ms| u64::try_from(ms).ok());
                records.push(
                    HoldRecord::new(key, partition, hold.sequence, hold.reason)
                        .with_due_in(
                            due_ms.filter(|_| !paused && hold.until.is_some()).map(Duration::from_millis),
                        )
                        .with_paused(paused),
                );
            }
            Ok::<_, Fault>(records)
        })
        .await
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        transact(
            &database.client,
            "requeue events",
            (Arc::clone(database), filter.clone()),
            |session, (database, filter)| requeue(database, session, filter).boxed(),
        )
        .await
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        transact(
            &database.client,
            "discard events",
            (Arc::clone(database), filter.clone()),
            |session, (database, filter)| discard(database, session, filter).boxed(),
        )
        .await
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        // The rule of `Hold::paused`: the event and the reason stay beneath the pause, the time does not.
        let or = |name: &str, other: Bson| doc! { "$ifNull": [format!("${name}"), other] };
        let set = doc! {
            "partition": or("partition", i32::from(partition_of(key)).into()),
            "sequence": or("sequence", Bson::Null),
            "until": Bson::Null,
            "reason": or("reason", HoldReason::Paused.as_str().into()),
            "paused_at": "$$NOW",
        };
        let holds = self.database().holds();
        let pause = holds.update_one(doc! { "_id": hold_id(key) }, vec![doc! { "$set": set }]).upsert(true);
        within("pause an aggregate", async { pause.await }).await.map(drop)
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let due = vec![doc! { "$set": { "until": "$$NOW" } }, doc! { "$unset": "paused_at" }];
        let holds = self.database().holds();
        let resume = holds.update_one(doc! { "_id": hold_id(key) }, due);
        Ok(within("resume an aggregate", async { resume.await }).await?.matched_count > 0)
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        let topics = self.database().topics();
        let set = vec![doc! { "$set": { "paused_at": { "$ifNull": ["$paused_at", "$$NOW"] } } }];
        let pause = topics.update_one(doc! { "_id": topic }, set).upsert(true);
        within("pause a topic", async { pause.await }).await.map(drop)
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let database = self.database();
        transact(
            &database.client,
            "resume a topic",
            (Arc::clone(database), topic.to_owned()),
            |session, (database, topic)| {
                async move {
                    // A hold does not say of which topic it is: those of another that is still paused are
                    // held again. Beneath a pause there is no time.
                    let paused = doc! { "$gt": ["$paused_at", Bson::Null] };
                    let until = doc! { "$cond": [paused, Bson::Null, "$$NOW"] };
                    let due = vec![doc! { "$set": { "until": until } }];
                    let of_topics = doc! { "reason": HoldReason::Topic.as_str() };
                    database.holds().update_many(of_topics, due).session(&mut *session).await?;
                    let resumed =
                        database.topics().delete_one(doc! { "_id": topic }).session(session).await?;
                    Ok(resumed.deleted_count > 0)
                }
                .boxed()
            },
        )
        .await
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        paused_topics(self.database(), "list paused topics").await
    }
}

/// Events in order, at most `limit`; with 0 all.
async fn page(
    events: &Collection<RawDocumentBuf>,
    condition: Document,
    limit: i64,
) -> Result<Vec<EventRecord>, Fault> {
    let mut cursor = events.find(condition).sort(doc! { "sequence": 1 }).limit(limit).await?;
    let mut records = Vec::new();
    while cursor.advance().await? {
        let stored = Stored::of(cursor.current());
        records.extend(stored.sequence().map(|sequence| stored.record(sequence)));
    }
    Ok(records)
}

fn condition(filter: &EventFilter) -> Document {
    let mut condition = Vec::new();
    if !filter.ids.is_empty() {
        let ids: Vec<Bson> = filter.ids.iter().flat_map(|id| spellings_of(*id)).collect();
        condition.push(doc! { "_id": { "$in": ids } });
    }
    match filter.status {
        Some(Status::Pending) => condition.push(pending()),
        Some(status) => condition.push(doc! { "status": i32::from(status.code()) }),
        None => {}
    }
    if let Some(cause) = filter.cause {
        // Only what failed has a cause, and has an index.
        condition.push(doc! { "status": 2, "cause": cause.as_str() });
    }
    let texts = [
        ("aggregate_type", &filter.aggregate_type),
        ("aggregate_id", &filter.aggregate_id),
        ("event_type", &filter.event_type),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            condition.push(doc! { name: text });
        }
    }
    // The sequence has the second, and an index.
    let second = |time: DateTime<Utc>| timestamp_of(first_of(time.timestamp()));
    let millis = |time: DateTime<Utc>| {
        BsonDateTime::from_millis(
            time.timestamp_millis() + i64::from(!time.timestamp_subsec_nanos().is_multiple_of(1_000_000)),
        )
    };
    if let Some(from) = filter.created_from {
        let exactly = doc! { "$gte": [created_at_expression(), millis(from)] };
        condition.push(doc! { "sequence": { "$gte": second(from) }, "$expr": exactly });
    }
    if let Some(before) = filter.created_before {
        let exactly = doc! { "$lt": [created_at_expression(), millis(before)] };
        let next = second(before.checked_add_signed(TimeDelta::seconds(1)).unwrap_or(before));
        condition.push(doc! { "sequence": { "$lt": next }, "$expr": exactly });
    }
    // Without a sequence it is not an event.
    let after = timestamp_of(filter.after.unwrap_or_default());
    condition.push(doc! { "sequence": { "$gt": after } });
    doc! { "$and": condition }
}

/// The events of a filter that also meet `also`: sequence and aggregate.
async fn matching(
    database: &Database,
    session: &mut ClientSession,
    filter: &EventFilter,
    also: Document,
) -> Result<Vec<(Sequence, AggregateKey)>, Fault> {
    let outbox = database.outbox();
    let find = outbox.find(doc! { "$and": [condition(filter), also] }).sort(doc! { "sequence": 1 });
    let find = find.projection(doc! { "sequence": 1, "aggregate_type": 1, "aggregate_id": 1 });
    let mut cursor = find.session(&mut *session).await?;
    let mut found = Vec::new();
    while cursor.advance(session).await? {
        let stored = Stored::of(cursor.current());
        found.extend(stored.sequence().map(|sequence| (sequence, stored.key().0)));
    }
    Ok(found)
}

async fn requeue(
    database: &Database,
    session: &mut ClientSession,
    filter: &EventFilter,
) -> Result<u64, Fault> {
    let failed = matching(database, session, filter, doc! { "status": 2 }).await?;
    if failed.is_empty() {
        return Ok(0);
    }
    let sequences: Vec<Timestamp> = failed.iter().map(|(sequence, _)| timestamp_of(*sequence)).collect();
    let put_back =
        doc! { "$set": { "status": 0, "attempts": 0_i64 }, "$unset": { "cause": "", "failed_at": "" } };
    let events = doc! { "sequence": { "$in": sequences }, "status": 2 };
    let requeued = database.outbox().update_many(events, put_back).session(&mut *session).await?;
    let mut of_each: HashMap<AggregateKey, Vec<Sequence>> = HashMap::new();
    for (sequence, key) in failed {
        of_each.entry(key).or_default().push(sequence);
    }
    let before = holds_of(database, session, of_each.keys()).await?;
    let now = server_now(database, session).await?;
    let mut holds = before.clone();
    for (key, sequences) in &of_each {
        change(&mut holds, key, |hold| Hold::requeued(hold, sequences, now));
    }
    write_holds(database, session, &before, &holds).await?;
    Ok(requeued.modified_count)
}

async fn discard(
    database: &Database,
    session: &mut ClientSession,
    filter: &EventFilter,
) -> Result<u64, Fault> {
    let failed = matching(database, session, filter, doc! { "status": 2 }).await?;
    // Of those that wait only the event that a hold names: another one may be on its way.
    let held = held_events(database, session).await?;
    let waiting = match held.is_empty() {
        true => Vec::new(),
        false => {
            let mut also = pending();
            also.insert(
                "sequence",
                doc! { "$in": held.keys().map(|held| timestamp_of(*held)).collect::<Vec<_>>() },
            );
            matching(database, session, filter, also).await?
        }
    };
    let waiting: Vec<(Sequence, AggregateKey)> =
        waiting.into_iter().filter(|(sequence, key)| held.get(sequence) == Some(key)).collect();
    let list = |events: &[(Sequence, AggregateKey)]| -> Vec<Timestamp> {
        events.iter().map(|(sequence, _)| timestamp_of(*sequence)).collect()
    };
    let outbox = database.outbox();
    // The age that retention counts is that of the failure, not of giving it up.
    let given_up = doc! { "$set": { "cause": "discarded" } };
    let events = doc! { "sequence": { "$in": list(&failed) }, "status": 2 };
    outbox.update_many(events, given_up).session(&mut *session).await?;
    let given_up =
        doc! { "$set": { "status": 2, "cause": "discarded" }, "$currentDate": { "failed_at": true } };
    let mut events = doc! { "sequence": { "$in": list(&waiting) } };
    events.extend(pending());
    outbox.update_many(events, given_up).session(&mut *session).await?;
    // What waited for one of them has nothing to wait for any more.
    let discarded = [failed, waiting].concat();
    let before = holds_of(database, session, discarded.iter().map(|(_, key)| key)).await?;
    let now: BsonDateTime = server_now(database, session).await?;
    let mut holds = before.clone();
    for (sequence, key) in &discarded {
        change(&mut holds, key, |hold| Some(hold?.discarded(*sequence, now)));
    }
    write_holds(database, session, &before, &holds).await?;
    Ok(discarded.len() as u64)
}

/// The events that holds name.
async fn held_events(
    database: &Database,
    session: &mut ClientSession,
) -> Result<HashMap<Sequence, AggregateKey>, Fault> {
    let mut cursor = database.holds().find(doc! {}).session(&mut *session).await?;
    let mut held = HashMap::new();
    while cursor.advance(session).await? {
        let found = Held::of(cursor.current());
        held.extend(found.and_then(|(key, held)| Some((held.hold.sequence?, key))));
    }
    Ok(held)
}
