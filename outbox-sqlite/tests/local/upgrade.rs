//! From every released version of the schema to the newest, with data in it.

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::OutboxStore as _;
use outbox_sqlite::{SCHEMA_VERSION, migrate};
use rusqlite::Connection;

use crate::common::TestDatabase;

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; SCHEMA_VERSION as usize] = [include_str!("../fixtures/schema_1.sql")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

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
        expect_upgraded(&store, WRITTEN).await;
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
    let said = findings.iter().find(|finding| finding.code == "schema-older").unwrap().to_string();
    assert!(
        said.contains("version 0, older than 1: migration 1 (the tables of the outbox) is missing"),
        "{said}"
    );
    migrate(&database.config).unwrap();
    assert_eq!(database.store().check().await.unwrap(), [], "and the migration says that it is there");
    set(9);
    // The text of this release, run by a user's own tool.
    database.connect().execute_batch(&outbox_sqlite::migration_sql(&database.config)).unwrap();
    let findings = database.store().check().await.unwrap();
    let said = findings.iter().find(|finding| finding.code == "schema-newer").unwrap().to_string();
    assert!(
        said.contains("has version 9, newer than 1, the last that this program knows; upgrade"),
        "{said}"
    );
}
