//! From every released version of the tables to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::OutboxStore as _;
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

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

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
        expect_upgraded(&place.store, WRITTEN).await;
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
    // The text of this release, run by a user's own tool.
    place.run(&migration_sql(&place.config)).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 1") && newer.contains("upgrade"), "{newer}");
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
            tokio::spawn(async move { MysqlStore::connect_lazy(&config).await.unwrap().migrate().await })
        });
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        place.drop().await;
    }
}
