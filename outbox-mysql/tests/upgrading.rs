//! From every released version of the tables to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{sync::Arc, time::Duration};

use outbox_core::{
    EventFilter, FailureCause, HoldReason, MemoryPublisher, OutboxAdmin as _, OutboxStore as _, Relay,
    RelayConfig, Status,
};
use outbox_mysql::{MysqlStore, migration_sql};
use support::{Place, Server, on_both};

on_both! {
    every_released_version_is_migrated_with_its_data
    the_newest_version_is_what_its_file_says
    an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept
    two_processes_may_migrate_at_once
}

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; 1] = [include_str!("fixtures/schema_1.sql")];

async fn used(server: Server, version: usize) -> Option<Place> {
    let place = Place::empty(server).await?;
    place.run(VERSIONS[version]).await;
    Some(place)
}

/// Every column, index and table, as the server describes it.
async fn schema(place: &Place) -> Vec<String> {
    let sql = "SELECT CONCAT_WS(' ', table_name, column_name, ordinal_position, column_type, is_nullable, column_default, \
                 extra, generation_expression, collation_name) AS line \
               FROM information_schema.columns WHERE table_schema = DATABASE() \
               UNION ALL SELECT CONCAT_WS(' ', table_name, index_name, non_unique, seq_in_index, column_name, sub_part) \
               FROM information_schema.statistics WHERE table_schema = DATABASE() \
               UNION ALL SELECT CONCAT_WS(' ', table_name, engine, row_format, table_collation) \
               FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY line";
    sqlx::query_scalar(sql).fetch_all(&place.pool).await.unwrap()
}

async fn version(place: &Place) -> usize {
    let sql = "SELECT value FROM outbox_meta WHERE name = 'schema_version'";
    usize::try_from(place.number(sql).await).unwrap()
}

async fn every_released_version_is_migrated_with_its_data(server: Server) {
    for (index, _) in VERSIONS.iter().enumerate() {
        let Some(place) = used(server, index).await else { return };
        let fresh = Place::new(server).await.unwrap();
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

/// A change of the tables is a version of its own.
async fn the_newest_version_is_what_its_file_says(server: Server) {
    let Some(newest) = used(server, VERSIONS.len() - 1).await else { return };
    let fresh = Place::new(server).await.unwrap();
    assert_eq!(schema(&newest).await, schema(&fresh).await);
    assert!(schema(&fresh).await.len() > 80, "the tables are seen");
    fresh.drop().await;
    newest.drop().await;
}

async fn an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept(server: Server) {
    let Some(place) = used(server, 0).await else { return };
    let said = async |code: &str| {
        let findings = place.store.check().await.unwrap();
        findings.iter().find(|finding| finding.code == code).map(ToString::to_string).unwrap_or_default()
    };
    place.run("UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'").await;
    let older = said("schema-older").await;
    assert!(
        older.contains("version 0, older than 1: migration 1 (the tables of the outbox) is missing"),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    place.run("UPDATE outbox_meta SET value = 9 WHERE name = 'schema_version'").await;
    // The text of this release, run by somebody's own tool.
    place.run(&migration_sql(&place.config)).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("have version 9, newer than 1") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    place.drop().await;
}

/// Both begin with version 1 and with nothing.
async fn two_processes_may_migrate_at_once(server: Server) {
    let Some(place) = used(server, 0).await else { return };
    place.run("UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'").await;
    let empty = Place::empty(server).await.unwrap();
    for place in [place, empty] {
        let migrations = [(); 4].map(|()| {
            let config = place.config.clone();
            // Each with a pool of its own, as a process has.
            tokio::spawn(async move { MysqlStore::connect(&config).await.unwrap().migrate().await })
        });
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        place.drop().await;
    }
}

/// What version 1 left behind is there, and what was waiting arrives in order.
async fn assert_in_use(store: &MysqlStore) {
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
