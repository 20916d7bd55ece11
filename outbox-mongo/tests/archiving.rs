//! The archive: what is large, and what comes twice.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use futures::TryStreamExt as _;
use mongodb::bson::{Bson, Document, Timestamp, doc};
use outbox_core::{
    Disposal, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, WhenSent,
    store::{
        EventRecord, FailureCause, HoldReason, Lease, Outcome, PurgeRequest, RelayId, Sequence,
        SettleRequest, Settlement, Successors,
    },
};
use support::{Place, event, key, sequences, settle};
use uuid::Uuid;

/// More than the server takes in one transaction, if each is moved with its payload of a megabyte.
const EVENTS: usize = 160;

async fn commit_large(place: &Place) -> Vec<Sequence> {
    let large = |n: usize| {
        let payload = vec![b'x'; 1_000_000];
        Event::builder("order", n.to_string(), "e").payload(payload).build().unwrap()
    };
    let mut all = Vec::new();
    for batch in 0..EVENTS / 10 {
        let events: Vec<_> = (0..10).map(|n| large(10 * batch + n)).collect();
        all.extend(place.commit(&events).await);
    }
    all
}

/// An outcome for each of these events, without reading them.
async fn request_of(
    place: &Place,
    relay: RelayId,
    leases: &[Lease],
    outcome: impl Fn(usize) -> Outcome,
) -> SettleRequest {
    let fields = doc! { "sequence": 1, "partition": 1, "aggregate_id": 1 };
    let outbox = place.collection("outbox");
    let found = outbox.find(doc! {}).projection(fields).sort(doc! { "sequence": 1 });
    let found: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
    let settlement = |(n, event): (usize, &Document)| {
        let at = event.get_timestamp("sequence").unwrap();
        let sequence = i64::from(at.time) << 31 | i64::from(at.increment);
        let partition = u16::try_from(event.get_i32("partition").unwrap()).unwrap();
        Settlement::new(sequence, partition, key(event.get_str("aggregate_id").unwrap()), 1, outcome(n))
    };
    SettleRequest::new(relay, leases.to_vec())
        .with_when_sent(WhenSent::Archive)
        .with_settlements(found.iter().enumerate().map(settlement).collect())
}

async fn archived(place: &Place) -> Vec<Sequence> {
    let fields = doc! { "sequence": 1, "bytes": { "$bsonSize": "$$ROOT" } };
    let archive = place.collection("outbox_archive");
    let found = archive.find(doc! {}).projection(fields).sort(doc! { "sequence": 1 });
    let found: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
    let sequence = |event: &Document| {
        assert!(event.get_i32("bytes").unwrap() > 1_000_000, "with its payload");
        let at = event.get_timestamp("sequence").unwrap();
        i64::from(at.time) << 31 | i64::from(at.increment)
    };
    found.iter().map(sequence).collect()
}

#[tokio::test]
async fn large_events_are_archived_as_they_are_sent() {
    let Some(place) = Place::new().await else { return };
    let all = commit_large(&place).await;
    let (relay, leases) = place.relay().await;
    // Among them are some that are not sent, with their holds.
    let outcome = |n: usize| match n % 40 {
        1 => Outcome::Retry { after: Duration::MAX, error: "no".to_owned(), reason: HoldReason::Backoff },
        2 => Outcome::Failed {
            cause: FailureCause::Permanent,
            error: "no".to_owned(),
            successors: Successors::Park,
        },
        _ => Outcome::Sent,
    };
    let request = request_of(&place, relay, &leases, outcome).await;
    assert_eq!(request.settlements.len(), EVENTS);
    assert!(place.store.settle(&request).await.unwrap().fenced.is_empty());
    let sent = |n: &usize| !matches!(n % 40, 1 | 2);
    let expected: Vec<_> = (0..EVENTS).filter(sent).map(|n| all[n]).collect();
    assert_eq!(archived(&place).await, expected);
    let stats = place.store.stats().await.unwrap();
    assert_eq!((stats.pending, stats.failed, stats.sent, stats.holds), (4, 4, 0, 8));
    // Once more, as after an answer that was lost: it changes nothing.
    assert!(place.store.settle(&request).await.unwrap().fenced.is_empty());
    assert_eq!(archived(&place).await, expected);
    // A relay whose lease is gone moves nothing.
    place.store.leave(relay).await.unwrap();
    let again = request_of(&place, relay, &leases, |_| Outcome::Sent).await;
    assert!(!place.store.settle(&again).await.unwrap().fenced.is_empty());
    assert_eq!(archived(&place).await, expected);
    place.drop().await;
}

#[tokio::test]
async fn large_events_are_archived_by_retention() {
    let Some(place) = Place::new().await else { return };
    let all = commit_large(&place).await;
    let at = mongodb::bson::DateTime::from_millis(1_760_000_000_000);
    let failed = doc! { "$set": { "status": 2, "failed_at": at } };
    place.collection("outbox").update_many(doc! {}, failed).await.unwrap();
    let old = Some((Duration::ZERO, Disposal::Archive));
    let purged = place.store.purge(PurgeRequest::new(1_000).with_failed(old)).await.unwrap();
    assert_eq!(purged.failed, EVENTS as u64);
    assert_eq!(archived(&place).await, all);
    assert_eq!(place.count("outbox").await, 0);
    place.drop().await;
}

fn shown(records: &[EventRecord]) -> Vec<(Sequence, Uuid)> {
    let mut shown: Vec<_> = records.iter().map(|record| (record.sequence, record.id.unwrap())).collect();
    shown.sort();
    shown
}

#[tokio::test]
async fn the_archive_takes_what_comes_twice() {
    let Some(place) = Place::new().await else { return };
    let first = place.commit(&[event("1"), event("2"), event("3")]).await;
    let (relay, leases) = place.relay().await;
    let archive_all = async || {
        let mut reader = place.store.reader(relay).await.unwrap();
        let rows = reader.fetch(support::request(&leases)).await.unwrap().rows;
        let request = settle(relay, &leases, &rows, &Outcome::Sent).with_when_sent(WhenSent::Archive);
        assert!(place.store.settle(&request).await.unwrap().fenced.is_empty());
        sequences(&rows)
    };
    assert_eq!(archive_all().await, first);
    let filter = EventFilter::default().in_archive();
    let mut expected = shown(&place.store.list(&filter, 10).await.unwrap());
    let (outbox, archive) = (place.collection("outbox"), place.collection("outbox_archive"));
    let copies: Vec<Document> = archive.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    // The same sequences with other ids, as after a restore from another cluster, twice.
    for round in 0..2_u8 {
        for (n, copy) in copies.iter().enumerate() {
            let id = Uuid::from_bytes([16 * round + u8::try_from(n).unwrap(); 16]);
            let mut copy = copy.clone();
            copy.remove("status");
            copy.insert("_id", id.to_string());
            outbox.insert_one(copy).await.unwrap();
            expected.push((first[n], id));
        }
        assert_eq!(archive_all().await, first);
    }
    expected.sort();
    assert_eq!(shown(&place.store.list(&filter, 100).await.unwrap()), expected);
    // The same events again, as after a restore of the collection; retention moves them.
    for mut copy in copies {
        let at = mongodb::bson::DateTime::from_millis(1_760_000_000_000);
        copy.extend(doc! { "status": 2, "cause": "permanent", "failed_at": at });
        outbox.insert_one(copy).await.unwrap();
    }
    let old = Some((Duration::ZERO, Disposal::Archive));
    assert_eq!(place.store.purge(PurgeRequest::new(10).with_failed(old)).await.unwrap().failed, 3);
    let listed = place.store.list(&filter, 100).await.unwrap();
    assert_eq!(shown(&listed), expected, "each once");
    let failed: Vec<_> = listed.iter().filter_map(|record| record.failed_at).collect();
    assert_eq!(failed.iter().map(chrono::DateTime::timestamp).collect::<Vec<_>>(), [1_760_000_000; 3]);
    // Page by page, whatever their size: no event is missing and none comes twice.
    for rows_max in 1..=9 {
        let (mut paged, mut filter) = (Vec::new(), filter.clone());
        loop {
            let page = place.store.list(&filter, rows_max).await.unwrap();
            let Some(last) = page.last() else { break };
            filter = filter.after(last.sequence);
            paged.extend(page);
        }
        assert_eq!(shown(&paged), expected, "{rows_max} at a time");
    }
    let unfilled = doc! { "sequence": { "$lte": Timestamp { time: 0, increment: 0 } } };
    assert_eq!(archive.count_documents(unfilled).await.unwrap(), 0);
    assert_eq!(outbox.count_documents(doc! { "_id": { "$ne": Bson::Null } }).await.unwrap(), 0);
    place.drop().await;
}
