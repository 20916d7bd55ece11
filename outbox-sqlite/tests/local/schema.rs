//! The migration, the check, and rows that were written by hand.

use std::{collections::BTreeSet, time::Duration};

use crate::common::{TestDatabase, TestRelay, key, sequences};
use outbox_core::{
    Event, EventFilter, OutboxAdmin, OutboxStore, Severity, StoreErrorKind,
    store::{FailureCause, Outcome, Successors},
};
use outbox_sqlite::{SqliteConfig, SqliteStore, migrate, migration_sql};

async fn codes(config: &SqliteConfig) -> BTreeSet<(&'static str, Severity)> {
    let store = SqliteStore::open(config.clone()).unwrap();
    let findings = store.check().await.unwrap();
    for finding in &findings {
        assert!(!finding.remedy.is_empty(), "{finding}");
    }
    findings.iter().map(|finding| (finding.code, finding.severity)).collect()
}

#[tokio::test]
async fn the_printed_migration_is_the_migration_and_may_run_again() {
    let (printed, run) = (TestDatabase::empty(), TestDatabase::new());
    let schema = |database: &TestDatabase| -> Vec<Option<String>> {
        let connection = database.connect();
        let mut statement = connection.prepare("SELECT sql FROM sqlite_master ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    for _ in 0..2 {
        printed.connect().execute_batch(&migration_sql(&printed.config)).unwrap();
        migrate(&run.config).unwrap();
        assert_eq!(schema(&printed), schema(&run));
        assert_eq!(codes(&printed.config).await, BTreeSet::new());
    }
}

#[test]
fn many_may_migrate_at_once() {
    let database = TestDatabase::empty();
    std::thread::scope(|scope| {
        let migrations: Vec<_> = (0..8).map(|_| scope.spawn(|| migrate(&database.config))).collect();
        for migration in migrations {
            migration.join().unwrap().unwrap();
        }
    });
    let version: (i64, i64) = database
        .connect()
        .query_row("SELECT count(*), max(version) FROM outbox_schema", [], |row| row.try_into())
        .unwrap();
    assert_eq!(version, (1, outbox_sqlite::SCHEMA_VERSION));
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_name_and_left_alone() {
    let database = TestDatabase::new();
    let connection = database.connect();
    connection.execute_batch("UPDATE outbox_schema SET version = 9; DROP TABLE outbox_topics").unwrap();
    let error = database.store().migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    let path = database.config.path().display();
    assert!(error.to_string().contains(&format!("outbox_schema in {path} has version 9")), "{error}");
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'outbox_topics'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 0);
    let codes = codes(&database.config).await;
    assert!(codes.contains(&("schema-newer", Severity::Error)), "{codes:?}");
}

#[tokio::test]
async fn check_names_everything_at_once() {
    let database = TestDatabase::new();
    database
        .connect()
        .execute_batch(
            "PRAGMA journal_mode = DELETE; DROP TABLE outbox_holds; UPDATE outbox_schema SET version = 0;
             ALTER TABLE outbox_archive DROP COLUMN cause; DROP TABLE outbox;
             CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, id TEXT) -- AUTOINCREMENT",
        )
        .unwrap();
    let found = codes(&database.config).await;
    let expected = [
        ("different-column", Severity::Error),
        ("journal-mode", Severity::Warning),
        ("missing-column", Severity::Error),
        ("missing-index", Severity::Error),
        ("missing-table", Severity::Error),
        ("missing-trigger", Severity::Error),
        ("no-autoincrement", Severity::Error),
        ("schema-older", Severity::Error),
    ];
    assert_eq!(found, expected.into());
}

/// Makes something again with another text.
fn remade(database: &TestDatabase, name: &str, from: &str, to: &str) {
    let connection = database.connect();
    let (kind, sql): (String, String) = connection
        .query_row("SELECT type, sql FROM sqlite_master WHERE name = ?1", [name], |row| row.try_into())
        .unwrap();
    assert!(sql.contains(from), "{sql}");
    connection.execute_batch(&format!("DROP {kind} {name}; {}", sql.replace(from, to))).unwrap();
}

#[tokio::test]
async fn check_compares_every_column_constraint_index_and_trigger() {
    for (name, from, to, code) in [
        ("outbox_topics", "paused_at INTEGER", "paused_at TEXT", "different-column"),
        ("outbox_topics", "topic     TEXT    NOT NULL", "topic TEXT", "different-column"),
        ("outbox_archive_again", "COLLATE NOCASE", "", "different-column"),
        ("outbox_relays", ",\n  ttl        INTEGER NOT NULL", "", "missing-column"),
        ("outbox_partitions", "owner     TEXT", "owner TEXT, CHECK (epoch < 9)", "different-constraint"),
        ("outbox_archive_again", ",\n  PRIMARY KEY (sequence, id)", "", "different-constraint"),
        ("outbox_pending", "(sequence)", "(sequence, id)", "different-index"),
        ("outbox_inserted", "255", "256", "different-trigger"),
    ] {
        let database = TestDatabase::new();
        remade(&database, name, from, to);
        assert_eq!(codes(&database.config).await, [(code, Severity::Error)].into(), "{name}: {to}");
    }
    for (sql, code) in [
        ("DROP TRIGGER outbox_inserted", "missing-trigger"),
        ("DROP TRIGGER outbox_updated", "missing-trigger"),
        ("DROP INDEX outbox_holds_until", "missing-index"),
        ("CREATE INDEX outbox_holds_due ON outbox_holds (until)", "old-index"),
    ] {
        let database = TestDatabase::new();
        database.connect().execute_batch(sql).unwrap();
        assert_eq!(codes(&database.config).await, [(code, Severity::Error)].into(), "{sql}");
        migrate(&database.config).unwrap();
        assert_eq!(codes(&database.config).await, BTreeSet::new(), "the migration puts it right: {sql}");
    }
    // What a user adds is the user's.
    let database = TestDatabase::new();
    database.connect().execute_batch("ALTER TABLE outbox ADD COLUMN tenant TEXT").unwrap();
    assert_eq!(codes(&database.config).await, BTreeSet::new());
}

#[tokio::test]
async fn check_tells_a_missing_file_from_one_that_is_no_database() {
    let database = TestDatabase::empty();
    assert_eq!(codes(&database.config).await, [("missing-file", Severity::Error)].into());
    assert!(!database.config.path().exists(), "check must not create the file");
    std::fs::write(database.config.path(), "this is not a database at all, only some text".repeat(100))
        .unwrap();
    assert_eq!(codes(&database.config).await, [("not-a-database", Severity::Error)].into());
    let directory = SqliteConfig::builder(std::env::temp_dir()).build().unwrap();
    assert_eq!(codes(&directory).await, [("unreadable", Severity::Error)].into());
}

#[tokio::test]
async fn a_store_without_a_file_fails_until_it_is_there() {
    let database = TestDatabase::empty();
    let store = database.store();
    let error = store.join(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(!database.config.path().exists(), "a wrong path must not become an empty outbox");
    store.migrate().await.unwrap();
    store.join(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn two_prefixes_share_a_file() {
    let database = TestDatabase::new();
    let tenant = SqliteConfig::builder(database.config.path()).prefix("Tenant_7").build().unwrap();
    migrate(&tenant).unwrap();
    assert_eq!(codes(&tenant).await, BTreeSet::new());
    let insert =
        "INSERT INTO tenant_7 (aggregate_type, aggregate_id, event_type, payload) VALUES ('a', '1', 'e', '')";
    database.connect().execute(insert, []).unwrap();
    let mut relay = TestRelay::new(SqliteStore::open(tenant).unwrap()).await;
    assert_eq!(sequences(&relay.fetch().await.rows), [1]);
    assert_eq!(sequences(&TestRelay::new(database.store()).await.fetch().await.rows), [0_i64; 0]);
}

#[tokio::test]
async fn a_plain_insert_of_four_columns_is_an_event() {
    let database = TestDatabase::new();
    let connection = database.connect();
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
                  VALUES ('order', 4711, 'order.placed', '{\"a\": 1}')";
    for _ in 0..100 {
        connection.execute(insert, []).unwrap();
    }
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    assert_eq!(sequences(&rows), (1..=100).collect::<Vec<_>>());
    let mut ids = BTreeSet::new();
    for row in &rows {
        let event = row.content.as_ref().unwrap();
        assert_eq!((event.id.get_version_num(), event.id.get_variant()), (4, uuid::Variant::RFC4122));
        ids.insert(event.id);
        assert_eq!((&row.key, row.attempts, event.version), (&key("4711"), 0, 1));
        assert_eq!((event.body(), event.event_type.as_str()), (&b"{\"a\": 1}"[..], "order.placed"));
        assert_eq!((&event.content_type, &event.topic, event.headers.len()), (&None, &None, 0));
        // The clock of the database is that of this machine; a day is far more than a rounding error.
        assert!(
            (chrono::Utc::now() - event.created_at).abs() < chrono::TimeDelta::days(1),
            "{}",
            event.created_at
        );
        assert!(row.age < Duration::from_secs(86_400));
    }
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn a_payload_is_a_text_or_a_blob_as_it_was_written_and_null_is_a_tombstone() {
    let database = TestDatabase::new();
    let mut connection = database.connect();
    let json = r#"{"path": "C:\new \u00e9 \"ä\" 🦀"}"#;
    let written: [(&str, &str, Option<&[u8]>); 5] = [
        (&format!("'{json}'"), "text", Some(json.as_bytes())),
        ("x'00ff'", "blob", Some(&[0, 255])),
        ("x'7b7d'", "blob", Some(b"{}")),
        ("''", "text", Some(b"")),
        ("NULL", "null", None),
    ];
    for (value, _, _) in &written {
        let sql = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', 'a', 'e', {value})"
        );
        connection.execute(&sql, []).unwrap();
    }
    let outbox = database.store().outbox();
    let transaction = connection.transaction().unwrap();
    let of = |payload: &[u8]| Event::builder("order", "a", "e").payload(payload.to_vec()).build().unwrap();
    for event in
        [of(json.as_bytes()), of(&[0xff]), of(b"a\0b"), Event::tombstone("order", "a", "e").build().unwrap()]
    {
        outbox.enqueue(&transaction, &event).unwrap();
    }
    transaction.commit().unwrap();
    let mut types = connection.prepare("SELECT typeof(payload) FROM outbox ORDER BY sequence").unwrap();
    let types: Vec<String> = types.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let enqueued = ["text", "blob", "blob", "null"];
    assert_eq!(types, written.map(|(_, kind, _)| kind).into_iter().chain(enqueued).collect::<Vec<_>>());
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    let read: Vec<Option<&[u8]>> =
        rows.iter().map(|row| row.content.as_ref().unwrap().payload.as_deref()).collect();
    let enqueued: [Option<&[u8]>; 4] = [Some(json.as_bytes()), Some(&[0xff]), Some(b"a\0b"), None];
    assert_eq!(read, written.map(|(_, _, payload)| payload).into_iter().chain(enqueued).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_id_is_read_in_every_spelling_and_found_by_the_operator() {
    let database = TestDatabase::new();
    let connection = database.connect();
    let spellings = [
        "'67E55044-10B1-426F-9247-BB680E5FE0C8'",
        "'77e5504410b1426f9247bb680e5fe0c8'",
        "x'87e5504410b1426f9247bb680e5fe0c8'",
    ];
    for id in spellings {
        let sql = format!(
            "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ({id}, 'a', '1', 'e', '')"
        );
        connection.execute(&sql, []).unwrap();
    }
    let store = database.store();
    let mut relay = TestRelay::new(store.clone()).await;
    for row in relay.fetch().await.rows {
        let id = row.content.unwrap().id;
        let found = store.list(&outbox_core::EventFilter::id(id), 10).await.unwrap();
        assert_eq!(found.iter().map(|event| event.sequence).collect::<Vec<_>>(), [row.sequence]);
    }
}

#[tokio::test]
async fn nonsense_fails_alone_and_says_why() {
    let database = TestDatabase::new();
    let connection = database.connect();
    let nonsense = [
        ("aggregate_type", "''", "aggregate_type is empty"),
        ("aggregate_type", "CAST(x'ff' AS TEXT)", "aggregate_type is not UTF-8"),
        ("aggregate_type", "x'6f72646572'", "aggregate_type is of type Blob"),
        ("aggregate_id", "''", "aggregate_id is empty"),
        ("aggregate_id", "CAST(x'c328' AS TEXT)", "aggregate_id is not UTF-8"),
        ("event_type", "''", "event_type is empty"),
        ("event_type", "char(10)", "control character"),
        ("id", "'nonsense'", "id \"nonsense\" is not a UUID"),
        ("id", "x'00'", "id is not a UUID"),
        ("version", "0", "version is 0"),
        ("version", "'two'", "version is of type Text"),
        ("payload", "17", "payload is of type Integer"),
        ("content_type", "''", "content_type is empty"),
        ("headers", "'nonsense'", "headers are not an object of texts"),
        ("headers", "'[]'", "headers are not an object of texts"),
        ("headers", "'{\"a\": 1}'", "headers are not an object of texts"),
        ("headers", "'{\"a b\": \"\"}'", "header \"a b\""),
        ("topic", "''", "topic is empty"),
        ("created_at", "'yesterday'", "created_at is of type Text"),
        ("created_at", "9223372036854775807", "which is not a time"),
        ("available_at", "'2030-01-01 00:00:00'", "available_at is of type Text"),
    ];
    let columns = ["aggregate_type", "aggregate_id", "event_type", "payload"];
    for (index, (column, value, _)) in nonsense.iter().enumerate() {
        // A good row of each aggregate before and after the bad one.
        for bad in [false, true, false] {
            let mut names: Vec<&str> = columns.to_vec();
            let mut values =
                vec!["'order'".to_owned(), format!("'{index}'"), "'e'".to_owned(), "''".to_owned()];
            if bad && let Some(place) = names.iter().position(|name| name == column) {
                values[place] = (*value).to_owned();
            } else if bad {
                names.push(column);
                values.push((*value).to_owned());
            }
            let sql = format!("INSERT INTO outbox ({}) VALUES ({})", names.join(", "), values.join(", "));
            connection.execute(&sql, []).unwrap();
        }
    }
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    assert_eq!(sequences(&rows), (1..=3 * nonsense.len() as i64).collect::<Vec<_>>());
    for (index, (column, value, reason)) in nonsense.iter().enumerate() {
        let [before, bad, after] = &rows[3 * index..3 * index + 3] else { unreachable!() };
        assert!(before.content.is_ok() && after.content.is_ok(), "{column} {value}");
        let said = bad.content.as_ref().unwrap_err();
        assert!(said.contains(reason), "{column} {value}: {said}");
    }
    let bad: Vec<_> = rows.iter().filter(|row| row.content.is_err()).cloned().collect();
    let outcome = Outcome::Failed {
        cause: FailureCause::Undecodable,
        error: "unreadable".to_owned(),
        successors: Successors::Release,
    };
    relay.settle(&bad, outcome).await;
    let filter = EventFilter::default().with_cause(FailureCause::Undecodable);
    let failed = relay.store.list(&filter, 100).await.unwrap();
    assert_eq!(failed.iter().map(|event| event.sequence).collect::<Vec<_>>(), sequences(&bad));
    assert_eq!(relay.store.requeue(&filter).await.unwrap(), nonsense.len() as u64);
}

#[tokio::test]
async fn what_would_be_lost_in_silence_is_refused_at_once() {
    let database = TestDatabase::new();
    let connection = database.connect();
    let insert = |columns: &str, values: &str| {
        let sql = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, {columns}) \
             VALUES ('a', '1', 'e', '', {values})"
        );
        connection.execute(&sql, [])
    };
    for (columns, values) in [("sequence", "0"), ("sequence", "-1"), ("status", "'pending'"), ("status", "3")]
    {
        let error = insert(columns, values).unwrap_err();
        assert!(error.to_string().contains("CHECK"), "{columns} {values}: {error}");
    }
    let long = "'é' || printf('%.254c', 'x')";
    for name in ["topic", "content_type"] {
        let error = insert(name, long).unwrap_err();
        assert!(error.to_string().contains(&format!("{name} has more than 255 bytes")), "{error}");
    }
    assert!(insert("attempts", "-1").unwrap_err().to_string().contains("attempts is negative"));
    for name in ["aggregate_type", "aggregate_id", "event_type"] {
        // Not even a writer that passes over whatever the table refuses loses such an event in silence.
        for verb in ["INSERT", "INSERT OR IGNORE"] {
            let columns = ["aggregate_type", "aggregate_id", "event_type"];
            let values = columns.map(|column| if column == name { long } else { "'a'" });
            let sql = format!("{verb} INTO outbox ({}) VALUES ({})", columns.join(", "), values.join(", "));
            let error = connection.execute(&sql, []).unwrap_err();
            assert!(error.to_string().contains(&format!("{name} has more than 255 bytes")), "{error}");
        }
        let fits = "UPDATE outbox SET aggregate_id = 'é' || printf('%.253c', 'x')";
        insert("topic, attempts", "'é' || printf('%.253c', 'x'), 0").unwrap();
        connection.execute(fits, []).unwrap();
        let error = connection.execute(&format!("UPDATE outbox SET {name} = {long}"), []).unwrap_err();
        assert!(error.to_string().contains(&format!("{name} has more than 255 bytes")), "{error}");
    }
    insert("status", "0").unwrap();
    let hold = "INSERT INTO outbox_holds (aggregate_type, aggregate_id, until, reason) \
                VALUES ('a', '1', datetime('now'), 'paused')";
    assert!(connection.execute(hold, []).unwrap_err().to_string().contains("CHECK"));
}
