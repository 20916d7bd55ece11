//! Every finding of `check`, each provoked.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use outbox_conformance::testing::use_everything;
use outbox_core::{Enqueue as _, Finding, OutboxStore as _, Severity};
use outbox_postgres::{PostgresConfig, PostgresStore, SentRows};
use support::{Place, event};

/// Provokes a finding by statements, and looks for it.
async fn provoke(sql: &str, code: &str, severity: Severity) {
    let Some(place) = Place::new().await else { return };
    assert_eq!(place.store.check().await.unwrap(), [], "a fresh schema has no findings");
    place.run(sql).await;
    let findings = place.store.check().await.unwrap();
    expect(&findings, code, severity);
    place.drop().await;
}

fn expect(findings: &[Finding], code: &str, severity: Severity) {
    let found = findings.iter().find(|finding| finding.code == code);
    let found = found.unwrap_or_else(|| panic!("{code} is not among {findings:?}"));
    assert_eq!(found.severity, severity, "{found}");
    assert!(!found.remedy.is_empty(), "{found}");
}

#[tokio::test]
async fn a_cached_sequence() {
    let sql = "ALTER SEQUENCE outbox_sequence_seq CACHE 20";
    provoke(sql, "sequence-cache", Severity::Error).await;
}

#[tokio::test]
async fn a_missing_column() {
    provoke("ALTER TABLE outbox DROP COLUMN topic", "missing-column", Severity::Error).await;
}

#[tokio::test]
async fn a_missing_table() {
    provoke("DROP TABLE outbox_holds", "missing-table", Severity::Error).await;
}

#[tokio::test]
async fn no_tables_at_all() {
    let Some(place) = Place::empty(SentRows::Kept).await else { return };
    let findings = place.store.check().await.unwrap();
    expect(&findings, "missing-table", Severity::Error);
    assert_eq!(findings.len(), 1, "one remedy, so one finding: {findings:?}");
    place.drop().await;
}

#[tokio::test]
async fn tables_of_another_version() {
    let newer = "UPDATE outbox_meta SET value = 99 WHERE key = 'schema_version'";
    provoke(newer, "schema-newer", Severity::Error).await;
    let older = "UPDATE outbox_meta SET value = 0 WHERE key = 'schema_version'";
    provoke(older, "schema-older", Severity::Error).await;
}

#[tokio::test]
async fn missing_partitions() {
    let sql = "DELETE FROM outbox_partitions WHERE part = 63";
    provoke(sql, "missing-partitions", Severity::Error).await;
}

#[tokio::test]
async fn a_sequence_that_was_reset() {
    let sql = "UPDATE outbox_partitions SET floor = 10";
    provoke(sql, "sequence-reset", Severity::Error).await;
}

#[tokio::test]
async fn a_partition_that_is_not_generated() {
    let sql = "ALTER TABLE outbox ALTER COLUMN part DROP EXPRESSION";
    provoke(sql, "part-not-generated", Severity::Error).await;
}

#[tokio::test]
async fn a_sequence_that_is_no_identity() {
    let sql = "ALTER TABLE outbox ALTER COLUMN sequence DROP IDENTITY";
    provoke(sql, "sequence", Severity::Error).await;
}

#[tokio::test]
async fn an_index_that_names_the_status() {
    let partial = "CREATE INDEX ON outbox (sequence) WHERE status = 0";
    provoke(partial, "index-on-status", Severity::Warning).await;
    provoke("CREATE INDEX ON outbox (status)", "index-on-status", Severity::Warning).await;
}

#[tokio::test]
async fn a_fillfactor_for_the_other_use() {
    let sql = "ALTER TABLE outbox SET (fillfactor = 100)";
    provoke(sql, "fillfactor", Severity::Warning).await;
}

#[tokio::test]
async fn a_table_that_was_never_analysed() {
    let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('a', 'b', 'c', 'd'); \
               SET maintenance_work_mem = '1MB'";
    let Some(place) = Place::new().await else { return };
    place.run(sql).await;
    // The number of pages is known once something has looked at the table, which a truncating VACUUM does not
    // do without counting rows; so it is set as an upgrade of the server leaves it.
    place.run("UPDATE pg_class SET relpages = 1, reltuples = -1 WHERE oid = 'outbox'::regclass").await;
    expect(&place.store.check().await.unwrap(), "statistics", Severity::Warning);
    place.drop().await;
}

#[tokio::test]
async fn a_role_without_privileges() {
    let Some(place) = Place::new().await else { return };
    let role = format!("r{}", &place.schema[place.schema.len() - 20..]);
    place
        .run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            schema = place.schema
        ))
        .await;
    let url = place.url.replace("outbox:outbox@", &format!("{role}:secret@"));
    let config = PostgresConfig::builder().url(url).schema(&place.schema).build().unwrap();
    let findings = PostgresStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "privilege", Severity::Error);
    let refused: Vec<_> = findings.iter().filter(|finding| finding.code == "privilege").collect();
    assert_eq!(refused.len(), 9, "eight tables and the sequence: {refused:?}");
    place.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    place.drop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let url = "postgres://me:hush@127.0.0.1:1/nowhere";
    let config = PostgresConfig::builder().url(url).build().unwrap();
    let findings = PostgresStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "unreachable", Severity::Error);
    assert!(!format!("{findings:?}").contains("hush"));
}

#[tokio::test]
async fn a_wrong_database_and_a_wrong_password() {
    let Some(url) = support::url() else { return };
    let (server, _) = url.rsplit_once('/').unwrap();
    for (url, code) in [
        (format!("{server}/there_is_none"), "missing-database"),
        (url.replace(":outbox@", ":wrong@"), "denied"),
    ] {
        let config = PostgresConfig::builder().url(url).build().unwrap();
        let findings = PostgresStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
        expect(&findings, code, Severity::Error);
    }
}

#[tokio::test]
async fn a_search_path_that_only_the_pool_has() {
    let Some(place) = Place::new().await else { return };
    let config = PostgresConfig::builder().build().unwrap();
    let findings = PostgresStore::new(place.pool.clone(), &config).check().await.unwrap();
    expect(&findings, "search-path", Severity::Error);
    place.drop().await;
}

#[tokio::test]
async fn a_pool_that_gives_nothing() {
    let Some(place) = Place::new().await else { return };
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let pool = options.acquire_timeout(Duration::from_secs(1)).connect(&place.url).await.unwrap();
    let taken = pool.acquire().await.unwrap();
    let findings = PostgresStore::new(pool, &place.config).check().await.unwrap();
    expect(&findings, "connections", Severity::Error);
    drop(taken);
    place.drop().await;
}

#[tokio::test]
async fn commits_that_do_not_wait() {
    let Some(place) = Place::new().await else { return };
    let url = format!("{}?options=-c%20synchronous_commit%3Doff", place.url);
    let config = PostgresConfig::builder().url(url).schema(&place.schema).build().unwrap();
    let findings = PostgresStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "synchronous-commit", Severity::Warning);
    place.drop().await;
}

#[tokio::test]
async fn a_database_of_another_encoding() {
    let Some(place) = Place::new().await else { return };
    let name = format!("latin_{}", &place.schema[place.schema.len() - 20..]);
    place.run(&format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")).await;
    let (server, _) = place.url.rsplit_once('/').unwrap();
    let config = PostgresConfig::builder().url(format!("{server}/{name}")).build().unwrap();
    let store = PostgresStore::connect_lazy(&config).await.unwrap();
    expect(&store.check().await.unwrap(), "encoding", Severity::Error);
    drop(store);
    place.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    place.drop().await;
}

#[tokio::test]
async fn the_documented_privileges_are_enough_for_everything() {
    let Some(place) = Place::new().await else { return };
    let (schema, suffix) = (&place.schema, &place.schema[place.schema.len() - 20..]);
    let (writer, relay) = (format!("w{suffix}"), format!("r{suffix}"));
    place
        .run(&format!(
            "CREATE ROLE {writer} LOGIN PASSWORD 'secret'; CREATE ROLE {relay} LOGIN PASSWORD 'secret'; \
             GRANT USAGE ON SCHEMA {schema} TO {writer}, {relay}; \
             GRANT INSERT, SELECT ON outbox TO {writer}; \
             GRANT SELECT, UPDATE, DELETE ON outbox TO {relay}; GRANT SELECT ON outbox_sequence_seq TO {relay}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relays, outbox_holds, outbox_failed TO {relay}; \
             GRANT SELECT, UPDATE ON outbox_partitions, outbox_meta TO {relay}; \
             GRANT SELECT, INSERT ON outbox_archive TO {relay}; \
             GRANT SELECT, INSERT, DELETE ON outbox_topics TO {relay}"
        ))
        .await;
    let url = |role: &str| place.url.replace("outbox:outbox@", &format!("{role}:secret@"));
    let pool = sqlx::PgPool::connect(&url(&writer)).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    place.outbox.enqueue(&mut transaction, &event("1")).await.unwrap();
    let events: Vec<_> = (2..9).map(|n: u8| event(&n.to_string())).collect();
    place.outbox.enqueue_all(&mut transaction, &events).await.unwrap();
    transaction.commit().await.unwrap();
    pool.close().await;

    let config = PostgresConfig::builder().url(url(&relay)).schema(schema).build().unwrap();
    let store = PostgresStore::connect_lazy(&config).await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    use_everything(&store, &store).await;
    place.run(&format!("DROP OWNED BY {writer}, {relay}; DROP ROLE {writer}, {relay}")).await;
    place.drop().await;
}
