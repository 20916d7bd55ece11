//! From every released version of the collections to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::{OutboxStore as _, store::Sequence};
use outbox_mongo::MongoStore;
use support::Place;

/// What each version left behind, as commands, the first one first. A version that is released gets its file,
/// which stays.
const VERSIONS: [&str; 1] = [include_str!("fixtures/schema_1.json")];

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
