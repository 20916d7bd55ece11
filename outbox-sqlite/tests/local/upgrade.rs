//! From every released version of the schema to the newest, with data in it.

use std::{sync::Arc, time::Duration};

use outbox_core::{
    EventFilter, FailureCause, HoldReason, MemoryPublisher, OutboxAdmin, OutboxStore, Relay, RelayConfig,
    Status,
};
use outbox_sqlite::{SCHEMA_VERSION, SqliteStore, migrate};
use rusqlite::Connection;

use crate::common::TestDatabase;

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; SCHEMA_VERSION as usize] = [include_str!("../fixtures/schema_1.sql")];

fn used(version: usize) -> TestDatabase {
    let database = TestDatabase::empty();
    database.connect().execute_batch(VERSIONS[version]).unwrap();
    database
}

/// The statements that made all there is, without their layout.
fn schema(connection: &Connection) -> Vec<String> {
    let mut statement =
        connection.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").unwrap();
    let statements = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    statements.map(|sql| sql.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn every_released_version_is_migrated_with_its_data() {
    for version in 0..VERSIONS.len() {
        let database = used(version);
        // The second time there is nothing to do.
        for _ in 0..2 {
            migrate(&database.config).unwrap();
        }
        assert_eq!(
            schema(&database.connect()),
            schema(&TestDatabase::new().connect()),
            "from {}",
            version + 1
        );
        let store = database.store();
        assert_eq!(store.check().await.unwrap(), []);
        assert_in_use(&store).await;
    }
}

/// A change of the tables is a version of its own.
#[test]
fn the_newest_version_is_what_its_file_says() {
    let newest = used(VERSIONS.len() - 1);
    assert_eq!(schema(&newest.connect()), schema(&TestDatabase::new().connect()));
}

#[tokio::test]
async fn an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept() {
    let database = used(0);
    let set = |version: i64| {
        database.connect().execute("UPDATE outbox_schema SET version = ?1", [version]).unwrap();
    };
    set(0);
    let findings = database.store().check().await.unwrap();
    let said = findings.iter().find(|finding| finding.code == "older-schema").unwrap().to_string();
    assert!(
        said.contains(
            "version 0, and this release needs 1: migration 1 (the tables of the outbox) is missing"
        ),
        "{said}"
    );
    migrate(&database.config).unwrap();
    assert_eq!(database.store().check().await.unwrap(), [], "and the migration says that it is there");
    set(9);
    // The text of this release, run by somebody's own tool.
    database.connect().execute_batch(&outbox_sqlite::migration_sql(&database.config)).unwrap();
    let findings = database.store().check().await.unwrap();
    let said = findings.iter().find(|finding| finding.code == "newer-schema").unwrap().to_string();
    assert!(said.contains("outbox_schema has version 9, and this release knows 1; upgrade"), "{said}");
}

/// What version 1 left behind is there, and what was waiting arrives in order.
async fn assert_in_use(store: &SqliteStore) {
    let listed = store.list(&EventFilter::default(), 100).await.unwrap();
    let shown: Vec<_> =
        listed.iter().map(|e| (e.sequence, e.status, e.attempts, e.key.aggregate_id())).collect();
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
    assert_eq!(second.created_at.timestamp_micros(), 1_760_000_000_000_001);
    assert_eq!(
        (listed[3].cause, listed[3].last_error.as_deref()),
        (Some(FailureCause::Permanent), Some("TooLarge: no"))
    );
    let archived = store.list(&EventFilter { archived: true, ..EventFilter::default() }, 100).await.unwrap();
    assert_eq!(archived.iter().map(|e| (e.sequence, e.status)).collect::<Vec<_>>(), [(100, sent)]);
    let holds = store.holds(10).await.unwrap();
    let shown: Vec<_> =
        holds.iter().map(|h| (h.key.aggregate_id(), h.sequence, h.reason, h.due_in)).collect();
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
        publisher.delivered().iter().filter(of).map(|message| message.sequence).collect()
    };
    assert_eq!(
        [arrived("a"), arrived("b"), arrived("c"), arrived("d")],
        [vec![2, 6], vec![3], vec![4, 5], vec![]]
    );
    let undecodable = EventFilter { cause: Some(FailureCause::Undecodable), ..EventFilter::default() };
    assert_eq!(store.list(&undecodable, 10).await.unwrap()[0].sequence, 7);
}
