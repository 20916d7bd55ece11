//! From every released version of the collections to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use futures::TryStreamExt as _;
use mongodb::{
    bson::{Binary, Bson, Document, Timestamp, doc, spec::BinarySubtype},
    options::Hint,
};
use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::{
    Disposal, EventFilter, OutboxAdmin as _, OutboxStore as _,
    store::{FailureCause, HoldReason, Outcome, PurgeRequest, Sequence, Successors},
};
use outbox_mongo::MongoStore;
use support::{Place, request, settle};

/// What each version left behind, as commands, the first one first. A version that is released gets its file,
/// which stays.
const VERSIONS: [&str; 2] = [include_str!("fixtures/schema_1.json"), include_str!("fixtures/schema_2.json")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_001_000, number };

async fn used(version: usize) -> Option<Place> {
    let place = Place::empty().await?;
    let commands: Vec<Document> = serde_json::from_str(VERSIONS[version]).unwrap();
    for command in commands {
        let answer = place.database.run_command(command.clone()).await.unwrap();
        assert!(!answer.contains_key("writeErrors"), "{command}: {answer}");
    }
    Some(place)
}

/// Every collection and index, as the server describes it.
async fn schema(place: &Place) -> Vec<String> {
    let mut lines = Vec::new();
    let collections = place.database.list_collections().await.unwrap();
    for collection in collections.try_collect::<Vec<_>>().await.unwrap() {
        let (name, options) = (&collection.name, &collection.options);
        lines.push(format!("{name} {:?} {options:?}", collection.collection_type));
        let answer = place.database.run_command(doc! { "listIndexes": name }).await.unwrap();
        let indexes = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap().clone();
        lines.extend(indexes.iter().map(|index| format!("{name} {index}")));
    }
    lines.sort();
    lines
}

async fn say_version(place: &Place, version: i64) {
    let update = doc! { "$set": { "value": version } };
    place.collection("outbox_meta").update_one(doc! { "_id": "schema_version" }, update).await.unwrap();
}

async fn version(place: &Place) -> usize {
    let meta = place.collection("outbox_meta").find_one(doc! { "_id": "schema_version" }).await.unwrap();
    usize::try_from(meta.unwrap().get_i64("value").unwrap()).unwrap()
}

#[tokio::test]
async fn every_released_version_is_migrated_with_its_data() {
    for (index, _) in VERSIONS.iter().enumerate() {
        let Some(place) = used(index).await else { return };
        let fresh = Place::new().await.unwrap();
        assert_eq!(version(&fresh).await, VERSIONS.len(), "every version has its file");
        // The second time there is nothing to do.
        for _ in 0..2 {
            place.store.migrate().await.unwrap();
        }
        assert_eq!(schema(&place).await, schema(&fresh).await, "from version {}", index + 1);
        assert_eq!(place.store.check().await.unwrap(), []);
        expect_upgraded(&place.store, WRITTEN).await;
        fresh.drop().await;
        place.drop().await;
    }
}

/// Version 1 took names of any length. No document of it is in the way of anything.
#[tokio::test]
async fn what_version_1_took_and_version_2_refuses_fails_alone() {
    let Some(place) = used(0).await else { return };
    let long = "x".repeat(256);
    let document = |field: &str, status: i32, increment: u32| {
        let mut document = doc! {
            "sequence": Timestamp { time: 1_760_000_000, increment }, "aggregate_type": "long",
            "aggregate_id": "long", "event_type": "e", "payload": "{}", "status": status,
        };
        let at = mongodb::bson::DateTime::from_millis(1_760_000_000_000);
        document.extend(doc! { "sent_at": at, "failed_at": at, field: &long });
        document
    };
    let documents = [
        document("aggregate_id", 0, 8),
        document("event_type", 0, 9),
        document("topic", 0, 10),
        document("topic", 1, 11),
        document("topic", 2, 12),
    ];
    place.collection("outbox").insert_many(documents).await.unwrap();
    let before = place.store.list(&EventFilter::default(), 100).await.unwrap();
    place.store.migrate().await.unwrap();
    let after = place.store.list(&EventFilter::default(), 100).await.unwrap();
    assert_eq!(after, before, "every document as it was, partitions too");
    assert_eq!(place.store.check().await.unwrap(), []);

    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let rows: Vec<_> = rows.into_iter().filter(|row| number(row.sequence) > 7).collect();
    let said: Vec<_> =
        rows.iter().map(|row| (number(row.sequence), row.content.as_ref().unwrap_err().as_str())).collect();
    let expected = [
        (8, "aggregate_id has 256 bytes, more than the limit of 255"),
        (9, "event_type has 256 bytes, more than the limit of 255"),
        (10, "topic has 256 bytes, more than the limit of 255"),
    ];
    assert_eq!(said, expected);
    let error = said[2].1.to_owned();
    let (cause, successors) = (FailureCause::Undecodable, Successors::Park);
    let retry = Outcome::Retry { after: Duration::ZERO, error: error.clone(), reason: HoldReason::Backoff };
    for (row, outcome) in
        rows.iter().zip([retry, Outcome::Sent, Outcome::Failed { cause, error: error.clone(), successors }])
    {
        let request = settle(relay, &leases, std::slice::from_ref(row), &outcome);
        assert!(place.store.settle(&request).await.unwrap().fenced.is_empty());
    }
    let undecodable = EventFilter::default().with_cause(cause);
    let listed = place.store.list(&undecodable, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].last_error.as_deref() == Some(&error) && listed[0].failed_at.is_some());
    assert_eq!(place.store.requeue(&undecodable).await.unwrap(), 1);
    place.store.discard(&EventFilter::default()).await.unwrap();
    let all = Some((Duration::ZERO, Disposal::Archive));
    // The clocks have milliseconds, and sent events are looked for by the second.
    while place.store.stats().await.unwrap().failed + place.store.stats().await.unwrap().sent > 0 {
        place.store.purge(PurgeRequest::new(100).with_sent(all).with_failed(all)).await.unwrap();
    }
    let archived = place.store.list(&EventFilter::default().in_archive(), 100).await.unwrap();
    let archived: Vec<_> = archived.iter().map(|record| number(record.sequence)).collect();
    assert_eq!(archived, [1, 2, 4, 8, 9, 10, 11, 12, 100]);
    place.drop().await;
}

/// The names that version 1 gives to the server, as its release has them.
#[tokio::test]
async fn a_relay_of_version_1_is_refused_by_its_fetch_and_a_producer_is_right() {
    let Some(place) = used(0).await else { return };
    let outbox = place.collection("outbox");
    let pending = doc! { "status": { "$in": [0, Bson::Null] } };
    let fetch = async |index: &str| outbox.find_one(pending.clone()).hint(Hint::Name(index.to_owned())).await;
    for index in ["pending", "pending_by_key"] {
        assert!(fetch(index).await.unwrap().is_some());
    }
    // One that is alive, and has everything.
    let (relays, partitions) = (place.collection("outbox_relays"), place.collection("outbox_partitions"));
    let old = Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![2; 16] });
    let expires_at = mongodb::bson::DateTime::from_millis(place.now().await.timestamp_millis() + 60_000);
    let beaten = doc! { "_id": &old, "expires_at": expires_at, "ttl_ms": 60_000_i64 };
    relays.insert_one(beaten).await.unwrap();
    partitions.update_many(doc! {}, doc! { "$set": { "owner": &old } }).await.unwrap();
    place.store.migrate().await.unwrap();
    // Its next beat finds out, and its next attempt to join reads the version.
    assert_eq!(relays.count_documents(doc! {}).await.unwrap(), 0);
    assert_eq!(version(&place).await, 2);
    for index in ["pending", "pending_by_key"] {
        let refused = fetch(index).await.unwrap_err().to_string();
        assert!(refused.contains("hint provided does not correspond to an existing index"), "{refused}");
    }
    // Nor does its script bring them back.
    let commands: Vec<Document> = serde_json::from_str(VERSIONS[0]).unwrap();
    let refused = place.database.run_command(commands[0].clone()).await.unwrap_err().to_string();
    assert!(refused.contains("already exists with a different name"), "{refused}");
    // A service goes on. It wrote every payload as binary.
    let id = Binary { subtype: BinarySubtype::Uuid, bytes: vec![1; 16] };
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: b"{\"n\": 8}".to_vec() };
    let written = doc! {
        "_id": id, "sequence": Timestamp { time: 0, increment: 0 }, "partition": 42, "aggregate_type": "order",
        "aggregate_id": "z", "event_type": "order.placed", "version": 1, "payload": bytes,
        "content_type": "application/json", "created_at": mongodb::bson::DateTime::now(),
    };
    outbox.insert_one(written).await.unwrap();
    // A relay of today has its partitions, and keeps them when the migration is run again.
    let (relay, leases) = place.relay().await;
    assert_eq!(leases.len(), 64);
    place.store.migrate().await.unwrap();
    assert!(place.store.beat(relay, Duration::from_secs(60)).await.unwrap());
    let rows = place.store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
    let row = rows.iter().find(|row| row.key.aggregate_id() == "z").unwrap();
    assert_eq!(row.content.as_ref().unwrap().body(), br#"{"n": 8}"#);
    place.drop().await;
}

/// A change of the collections is a version of its own.
#[tokio::test]
async fn the_newest_version_is_what_its_file_says() {
    let Some(newest) = used(VERSIONS.len() - 1).await else { return };
    let fresh = Place::new().await.unwrap();
    assert_eq!(schema(&newest).await, schema(&fresh).await);
    assert!(schema(&fresh).await.len() > 15, "the collections are seen");
    fresh.drop().await;
    newest.drop().await;
}

#[tokio::test]
async fn an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept() {
    let Some(place) = used(0).await else { return };
    let said = async |code: &str| {
        let findings = place.store.check().await.unwrap();
        findings.iter().find(|finding| finding.code == code).map(ToString::to_string).unwrap_or_default()
    };
    say_version(&place, 0).await;
    let older = said("schema-older").await;
    assert!(
        older.contains(
            "version 0, older than 2: migrations 1 (the collections of the outbox), 2 (tombstones, "
        ),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    say_version(&place, 9).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 2") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    // The commands of an older release, run by a user's own tool.
    for command in serde_json::from_str::<Vec<Document>>(VERSIONS[0]).unwrap() {
        if command.contains_key("update") && command.get_str("update").unwrap() == "outbox_meta" {
            place.database.run_command(command).await.unwrap();
        }
    }
    assert_eq!(version(&place).await, 9);
    place.drop().await;
}

/// Both from version 1 and from nothing.
#[tokio::test]
async fn two_processes_may_migrate_at_once() {
    let Some(place) = used(0).await else { return };
    say_version(&place, 0).await;
    for place in [place, Place::empty().await.unwrap()] {
        let migrations = [(); 4].map(|()| {
            let config = place.config.clone();
            // Each with a client of its own, as a process has.
            tokio::spawn(async move { MongoStore::connect_lazy(&config).await.unwrap().migrate().await })
        });
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        place.drop().await;
    }
}

/// The number that a sequence has within its second: all are of the same one.
fn number(sequence: Sequence) -> Sequence {
    assert_eq!(sequence >> 31, 1_760_000_000);
    sequence & 0x7fff_ffff
}
