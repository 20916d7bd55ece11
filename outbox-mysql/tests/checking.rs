//! Every finding of `check`, each provoked.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use outbox_conformance::testing::use_everything;
use outbox_core::{Enqueue as _, Finding, OutboxStore as _, Severity};
use outbox_mysql::{MysqlConfig, MysqlStore, migration_sql};
use sqlx::{MySqlPool, mysql::MySqlPoolOptions};
use support::{Place, Server, event, on_both};

on_both! {
    a_missing_column
    a_missing_table
    no_tables_at_all
    another_programs_table
    tables_of_another_version
    missing_partitions
    a_column_that_is_not_generated
    a_sequence_that_does_not_count
    a_missing_index
    another_storage_engine
    names_with_a_collation
    payloads_of_another_type
    a_missing_constraint
    another_key_of_the_archive
    a_user_without_privileges
    the_documented_privileges_are_enough_for_everything
    a_wrong_database_and_a_wrong_password
    a_pool_that_gives_nothing
    a_pool_with_a_wrong_isolation
    a_pool_without_autocommit
    a_payload_that_no_packet_takes
}

/// Provokes a finding by statements, and looks for it.
async fn provoke(server: Server, sql: &str, code: &str, severity: Severity) {
    let Some(place) = Place::new(server).await else { return };
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

async fn a_missing_column(server: Server) {
    provoke(server, "ALTER TABLE outbox_archive DROP COLUMN topic", "missing-column", Severity::Error).await;
}

async fn a_missing_table(server: Server) {
    provoke(server, "DROP TABLE outbox_holds", "missing-table", Severity::Error).await;
}

async fn no_tables_at_all(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    let findings = place.store.check().await.unwrap();
    expect(&findings, "missing-table", Severity::Error);
    assert_eq!(findings.len(), 1, "one remedy, so one finding: {findings:?}");
    place.drop().await;
}

async fn another_programs_table(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    place.run("CREATE TABLE outbox (id INT PRIMARY KEY, message TEXT)").await;
    expect(&place.store.check().await.unwrap(), "foreign-schema", Severity::Error);
    place.drop().await;
}

async fn tables_of_another_version(server: Server) {
    let newer = "UPDATE outbox_meta SET value = 99 WHERE name = 'schema_version'";
    provoke(server, newer, "schema-newer", Severity::Error).await;
    let older = "UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'";
    provoke(server, older, "schema-older", Severity::Error).await;
}

async fn missing_partitions(server: Server) {
    let sql = "DELETE FROM outbox_partitions WHERE part = 63";
    provoke(server, sql, "missing-partitions", Severity::Error).await;
}

async fn a_column_that_is_not_generated(server: Server) {
    let sql = "ALTER TABLE outbox MODIFY COLUMN `partition` TINYINT UNSIGNED";
    provoke(server, sql, "column-not-generated", Severity::Error).await;
    let sql = "ALTER TABLE outbox MODIFY COLUMN payload_bytes INT UNSIGNED \
               GENERATED ALWAYS AS (OCTET_LENGTH(payload_binary)) STORED";
    provoke(server, sql, "column-not-generated", Severity::Error).await;
}

async fn a_sequence_that_does_not_count(server: Server) {
    let sql = "ALTER TABLE outbox MODIFY COLUMN sequence BIGINT NOT NULL";
    provoke(server, sql, "sequence", Severity::Error).await;
}

async fn a_missing_index(server: Server) {
    provoke(server, "ALTER TABLE outbox DROP INDEX pending", "missing-index", Severity::Error).await;
    provoke(server, "ALTER TABLE outbox_holds DROP INDEX until", "missing-index", Severity::Error).await;
}

async fn another_storage_engine(server: Server) {
    provoke(server, "ALTER TABLE outbox_relays ENGINE = MyISAM", "engine", Severity::Error).await;
}

async fn names_with_a_collation(server: Server) {
    // That of the table pads, those of version 1 have none, and the rest folds.
    for wrong in ["VARCHAR(255)", "VARBINARY(255)", "VARCHAR(255) COLLATE utf8mb4_unicode_ci"] {
        for (table, name) in [
            ("", "event_type"),
            ("_holds", "aggregate_id"),
            ("_archive", "aggregate_type"),
            ("_topics", "topic"),
        ] {
            let Some(place) = Place::new(server).await else { return };
            place.run(&format!("ALTER TABLE outbox{table} MODIFY COLUMN {name} {wrong} NOT NULL")).await;
            let findings = place.store.check().await.unwrap();
            expect(&findings, "collation", Severity::Error);
            assert!(findings[0].problem.contains(name), "{findings:?}");
            // The remedy is one.
            place.run(&migration_sql(&place.config)).await;
            assert_eq!(place.store.check().await.unwrap(), [], "{table} {name} {wrong}");
            place.drop().await;
        }
    }
}

async fn payloads_of_another_type(server: Server) {
    for (table, column, wrong) in [
        ("outbox", "payload", "LONGBLOB"),
        ("outbox", "payload", "TEXT CHARACTER SET utf8mb4"),
        ("outbox", "payload", "LONGTEXT CHARACTER SET latin1"),
        ("outbox", "payload_binary", "BLOB"),
        ("outbox_archive", "payload", "LONGTEXT CHARACTER SET latin1"),
        ("outbox_archive", "payload_binary", "LONGTEXT"),
    ] {
        let Some(place) = Place::new(server).await else { return };
        place.run(&format!("ALTER TABLE {table} MODIFY COLUMN {column} {wrong}")).await;
        let findings = place.store.check().await.unwrap();
        expect(&findings, "column-type", Severity::Error);
        place.run(&findings[0].remedy).await;
        assert_eq!(place.store.check().await.unwrap(), [], "{table} {column} {wrong}");
        place.drop().await;
    }
}

async fn a_missing_constraint(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    for (name, other) in [
        ("outbox_aggregate_type_bytes", "OCTET_LENGTH(aggregate_type) <= 300"),
        ("outbox_aggregate_id_bytes", "OCTET_LENGTH(aggregate_type) <= 255"),
        ("outbox_event_type_bytes", "CHAR_LENGTH(event_type) <= 255"),
        ("outbox_content_type_bytes", "TRUE"),
        ("outbox_topic_bytes", "OCTET_LENGTH(topic) < 255"),
        ("outbox_attempts", "attempts >= -1"),
    ] {
        let drop = if server == Server::Mysql { "DROP CHECK" } else { "DROP CONSTRAINT" };
        place.run(&format!("ALTER TABLE outbox {drop} {name}")).await;
        for sql in [None, Some(format!("ALTER TABLE outbox ADD CONSTRAINT {name} CHECK ({other})"))] {
            if let Some(sql) = sql {
                place.run(&sql).await;
            }
            let findings = place.store.check().await.unwrap();
            expect(&findings, "missing-constraint", Severity::Error);
            assert!(findings.len() == 1 && findings[0].problem.contains(name), "{findings:?}");
        }
        place.run(&format!("ALTER TABLE outbox {drop} {name}")).await;
        let remedy = place.store.check().await.unwrap().remove(0).remedy;
        place.run(&remedy).await;
        assert_eq!(place.store.check().await.unwrap(), [], "{name}");
    }
    if server == Server::Mysql {
        place.run("ALTER TABLE outbox ALTER CHECK outbox_attempts NOT ENFORCED").await;
        expect(&place.store.check().await.unwrap(), "missing-constraint", Severity::Error);
    }
    place.drop().await;
}

async fn another_key_of_the_archive(server: Server) {
    let sql = "ALTER TABLE outbox_archive DROP PRIMARY KEY, ADD PRIMARY KEY (sequence)";
    provoke(server, sql, "archive-key", Severity::Error).await;
}

async fn a_user_without_privileges(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let user = format!("u{}", &place.schema[20..]);
    place
        .run(&format!(
            "CREATE USER {user} IDENTIFIED BY 'secret'; GRANT SELECT ON {}.* TO {user}",
            place.schema
        ))
        .await;
    let url = place.url.replace("outbox:outbox@", &format!("{user}:secret@"));
    let config = MysqlConfig::builder().url(url).build().unwrap();
    let findings = MysqlStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "privilege", Severity::Error);
    let refused: Vec<_> = findings.iter().filter(|finding| finding.code == "privilege").collect();
    assert_eq!(refused.len(), 6, "all tables but the last, which is only read: {refused:?}");
    place.run(&format!("DROP USER {user}")).await;
    place.drop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let config = MysqlConfig::builder().url("mysql://me:hush@127.0.0.1:1/nowhere").build().unwrap();
    let findings = MysqlStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "unreachable", Severity::Error);
    assert!(!format!("{findings:?}").contains("hush"));
}

async fn a_wrong_database_and_a_wrong_password(server: Server) {
    let Some(url) = server.url() else { return };
    let (place, _) = url.rsplit_once('/').unwrap();
    for (url, code) in [
        (format!("{place}/there_is_none"), "missing-database"),
        (url.replace(":outbox@", ":wrong@"), "denied"),
    ] {
        let config = MysqlConfig::builder().url(url).build().unwrap();
        let findings = MysqlStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
        expect(&findings, code, Severity::Error);
    }
}

async fn a_pool_that_gives_nothing(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let options = MySqlPoolOptions::new().max_connections(1);
    let pool = options.acquire_timeout(Duration::from_secs(1)).connect(&place.url).await.unwrap();
    let taken = pool.acquire().await.unwrap();
    let findings = MysqlStore::new(pool, &place.config).check().await.unwrap();
    expect(&findings, "connections", Severity::Error);
    drop(taken);
    place.drop().await;
}

/// What `check` says of a pool whose connections are set up by a statement.
async fn findings_of_a_pool(place: &Place, sql: &'static str) -> Vec<Finding> {
    let options = MySqlPoolOptions::new().max_connections(2).after_connect(move |connection, _| {
        Box::pin(async move { sqlx::raw_sql(sql).execute(connection).await.map(drop) })
    });
    let pool = options.connect(&place.url).await.unwrap();
    let findings = MysqlStore::new(pool.clone(), &place.config).check().await.unwrap();
    pool.close().await;
    findings
}

async fn a_pool_with_a_wrong_isolation(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    for wrong in [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ] {
        expect(&findings_of_a_pool(&place, wrong).await, "isolation", Severity::Error);
    }
    let right = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
    assert_eq!(findings_of_a_pool(&place, right).await, []);
    place.drop().await;
}

async fn a_pool_without_autocommit(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let findings = findings_of_a_pool(&place, "SET autocommit = 0").await;
    expect(&findings, "autocommit", Severity::Error);
    place.drop().await;
}

async fn a_payload_that_no_packet_takes(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let config = MysqlConfig::builder().url(&place.url).payload_bytes_max(256 << 20).build().unwrap();
    let findings = MysqlStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    expect(&findings, "packet", Severity::Error);
    place.drop().await;
}

async fn the_documented_privileges_are_enough_for_everything(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let (schema, suffix) = (&place.schema, &place.schema[20..]);
    let (writer, relay) = (format!("w{suffix}"), format!("r{suffix}"));
    let grants = [
        ("INSERT, SELECT", "outbox", &writer),
        ("SELECT, UPDATE, DELETE", "outbox", &relay),
        ("SELECT, INSERT, UPDATE, DELETE", "outbox_relays", &relay),
        ("SELECT, INSERT, UPDATE, DELETE", "outbox_holds", &relay),
        ("SELECT, UPDATE", "outbox_partitions", &relay),
        ("SELECT, INSERT, DELETE", "outbox_archive", &relay),
        ("SELECT, INSERT, UPDATE, DELETE", "outbox_topics", &relay),
        ("SELECT", "outbox_meta", &relay),
    ];
    for user in [&writer, &relay] {
        place.run(&format!("CREATE USER {user} IDENTIFIED BY 'secret'")).await;
    }
    for (privileges, table, user) in grants {
        place.run(&format!("GRANT {privileges} ON {schema}.{table} TO {user}")).await;
    }
    let url = |user: &str| place.url.replace("outbox:outbox@", &format!("{user}:secret@"));
    let pool = MySqlPool::connect(&url(&writer)).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    place.outbox.enqueue(&mut transaction, &event("1")).await.unwrap();
    let events: Vec<_> = (2..9).map(|n: u8| event(&n.to_string())).collect();
    place.outbox.enqueue_all(&mut transaction, &events).await.unwrap();
    transaction.commit().await.unwrap();
    pool.close().await;

    let config = MysqlConfig::builder().url(url(&relay)).build().unwrap();
    let store = MysqlStore::connect_lazy(&config).await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    use_everything(&store, &store).await;
    place.run(&format!("DROP USER {writer}, {relay}")).await;
    place.drop().await;
}
