//! From every released version of the tables to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::OutboxStore as _;
use outbox_postgres::{SentRows, migration_sql};
use support::Place;

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; 1] = [include_str!("fixtures/schema_1.sql")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

async fn used(version: usize) -> Option<Place> {
    let place = Place::empty(SentRows::Kept).await?;
    place.run(VERSIONS[version]).await;
    Some(place)
}

/// Every column, index and constraint, as the server describes it.
async fn schema(place: &Place) -> Vec<String> {
    let sql = "SELECT format('%s.%s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), \
                      a.attnotnull, a.attgenerated::text || a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)) \
               FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
               LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
               WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' \
               UNION ALL SELECT c.relname || ' ' || coalesce(array_to_string(c.reloptions, ','), '') FROM pg_class c \
               WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' \
               UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = $1 \
               UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint \
               WHERE connamespace = $1::regnamespace ORDER BY 1";
    let lines: Vec<String> =
        sqlx::query_scalar(sql).bind(&place.schema).fetch_all(&place.pool).await.unwrap();
    lines.iter().map(|line| line.replace(&place.schema, "schema")).collect()
}

async fn version(place: &Place) -> usize {
    let sql = "SELECT value FROM outbox_meta WHERE key = 'schema_version'";
    usize::try_from(place.number(sql).await).unwrap()
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

/// A change of the tables is a version of its own.
#[tokio::test]
async fn the_newest_version_is_what_its_file_says() {
    let Some(newest) = used(VERSIONS.len() - 1).await else { return };
    let fresh = Place::new().await.unwrap();
    assert_eq!(schema(&newest).await, schema(&fresh).await);
    assert!(schema(&fresh).await.len() > 80, "the tables are seen");
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
    place.run("UPDATE outbox_meta SET value = 0 WHERE key = 'schema_version'").await;
    let older = said("schema-older").await;
    assert!(
        older.contains("version 0, older than 1: migration 1 (the tables of the outbox) is missing"),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    place.run("UPDATE outbox_meta SET value = 9 WHERE key = 'schema_version'").await;
    // The text of this release, run by a user's own tool.
    place.run(&migration_sql(&place.config)).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 1") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    place.drop().await;
}
