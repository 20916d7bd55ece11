//! From every released version of the collections to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use outbox_core::{
    EventFilter, FailureCause, HoldReason, MemoryPublisher, OutboxAdmin as _, OutboxStore as _, Relay,
    RelayConfig, Sequence, Status,
};
use outbox_mongo::MongoStore;
use support::Place;

/// What each version left behind, as commands, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; 1] = [include_str!("fixtures/schema_1.json")];

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
        assert_in_use(&place.store).await;
        fresh.drop().await;
        place.drop().await;
    }
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
        older.contains("version 0, older than 1: migration 1 (the collections of the outbox) is missing"),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    say_version(&place, 9).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 1") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    // The commands of an older release, run by somebody's own tool.
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
            tokio::spawn(async move { MongoStore::connect(&config).await.unwrap().migrate().await })
        });
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        place.drop().await;
    }
}

/// The number that a sequence has within its second: all are of the same one.
fn count(sequence: Sequence) -> Sequence {
    assert_eq!(sequence >> 31, 1_760_000_000);
    sequence & 0x7fff_ffff
}

/// What version 1 left behind is there, and what was waiting arrives in order.
async fn assert_in_use(store: &MongoStore) {
    let listed = store.list(&EventFilter::default(), 100).await.unwrap();
    let shown: Vec<_> =
        listed.iter().map(|e| (count(e.sequence), e.status, e.attempts, e.key.aggregate_id())).collect();
    let (pending, sent, failed) = (Status::Pending, Status::Sent, Status::Failed);
    let expected = [
        (1, sent, 1, "a"),
        (2, pending, 2, "a"),
        (3, pending, 0, "b"),
        (4, failed, 3, "c"),
        (5, pending, 0, "c"),
        (6, pending, 0, "a"),
        (7, pending, 0, "d"),
    ];
    assert_eq!(shown, expected);
    let second = &listed[1];
    assert_eq!(
        (second.version, &second.payload[..], second.topic.as_deref()),
        (2, &[0, 255][..], Some("special"))
    );
    assert_eq!(second.headers["tenant"], "ä");
    assert_eq!(second.created_at.timestamp_micros(), 1_760_000_000_001_000);
    assert_eq!(
        (listed[3].cause, listed[3].last_error.as_deref()),
        (Some(FailureCause::Permanent), Some("TooLarge: no"))
    );
    let archived = store.list(&EventFilter { archived: true, ..EventFilter::default() }, 100).await.unwrap();
    assert_eq!(archived.iter().map(|e| (count(e.sequence), e.status)).collect::<Vec<_>>(), [(100, sent)]);
    let holds = store.holds(10).await.unwrap();
    let shown: Vec<_> =
        holds.iter().map(|h| (h.key.aggregate_id(), h.sequence.map(count), h.reason, h.due_in)).collect();
    let expected =
        [("a", Some(2), HoldReason::Backoff, Some(Duration::ZERO)), ("c", Some(4), HoldReason::Parked, None)];
    assert_eq!(shown, expected);
    assert_eq!(store.paused_topics().await.unwrap(), ["paused"]);

    let publisher = Arc::new(MemoryPublisher::new());
    let relay = Relay::new(store.clone(), publisher.clone(), RelayConfig::default()).unwrap();
    assert!(relay.check().await.is_empty());
    let mut handle = relay.handle();
    let running = tokio::spawn(relay.run());
    tokio::time::timeout(Duration::from_secs(60), publisher.delivered_at_least(3)).await.unwrap();
    let permanent = EventFilter { cause: Some(FailureCause::Permanent), ..EventFilter::default() };
    assert_eq!(store.requeue(&permanent).await.unwrap(), 1);
    tokio::time::timeout(Duration::from_secs(60), publisher.delivered_at_least(5)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), handle.caught_up()).await.unwrap().unwrap();
    handle.shutdown();
    running.await.unwrap();
    let arrived = |id: &str| -> Vec<i64> {
        let of = |message: &&Arc<outbox_core::Message>| message.key.aggregate_id() == id;
        publisher.delivered().iter().filter(of).map(|message| count(message.sequence)).collect()
    };
    assert_eq!(
        [arrived("a"), arrived("b"), arrived("c"), arrived("d")],
        [vec![2, 6], vec![3], vec![4, 5], vec![]]
    );
    let undecodable = EventFilter { cause: Some(FailureCause::Undecodable), ..EventFilter::default() };
    assert_eq!(store.list(&undecodable, 10).await.unwrap()[0].sequence & 0x7fff_ffff, 7);
}
