//! From every released version of the schema to the newest, with data in it.

use std::time::Duration;

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::{
    Disposal, EventFilter, OutboxAdmin as _, OutboxStore as _,
    store::{FailureCause, Outcome, PurgeRequest, Successors},
};
use outbox_sqlite::{SCHEMA_VERSION, migrate};
use rusqlite::Connection;

use crate::common::{TestDatabase, TestRelay, retry};

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; SCHEMA_VERSION as usize] =
    [include_str!("../fixtures/schema_1.sql"), include_str!("../fixtures/schema_2.sql")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

fn used(version: usize) -> TestDatabase {
    let database = TestDatabase::empty();
    database.connect().execute_batch(VERSIONS[version]).unwrap();
    database
}

/// The statements that made all there is, without their layout and comments.
fn schema(connection: &Connection) -> Vec<String> {
    let mut statement =
        connection.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").unwrap();
    let statements = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let code = |sql: String| -> Vec<String> {
        let words = sql.lines().flat_map(|line| line.split("--").next().unwrap().split_whitespace());
        words.map(str::to_owned).collect()
    };
    statements.map(|sql| code(sql.unwrap()).join(" ")).collect()
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

/// Version 1 took names of any length. No row of it is in the way of anything.
#[tokio::test]
async fn what_version_1_took_and_version_2_refuses_fails_alone() {
    let database = used(0);
    let connection = database.connect();
    let long = "printf('%.256c', 'x')";
    for (column, status) in [("aggregate_id", 0), ("event_type", 0), ("topic", 0), ("topic", 1), ("topic", 2)]
    {
        let columns = ["aggregate_type", "aggregate_id", "event_type", "topic"];
        let values = columns.map(|name| if name == column { long } else { "'long'" });
        let sql = format!(
            "INSERT INTO outbox ({}, status, sent_at, failed_at) VALUES ({}, {status}, 1, 1)",
            columns.join(", "),
            values.join(", ")
        );
        connection.execute(&sql, []).unwrap();
    }
    // The number of a row that was deleted is not given again.
    connection.execute_batch("INSERT INTO outbox (aggregate_type, aggregate_id, event_type) VALUES ('a', '1', 'e'); DELETE FROM outbox WHERE sequence = 13").unwrap();
    let list = async |filter: EventFilter| database.store().list(&filter, 100).await.unwrap();
    let before = list(EventFilter::default()).await;
    migrate(&database.config).unwrap();
    assert_eq!(list(EventFilter::default()).await, before, "every row as it was, partitions too");
    assert_eq!(database.store().check().await.unwrap(), []);

    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    let long: Vec<_> = rows.into_iter().filter(|row| row.sequence > 7).collect();
    let said: Vec<(i64, &str)> =
        long.iter().map(|row| (row.sequence, row.content.as_ref().unwrap_err().as_str())).collect();
    let expected = [
        (8, "aggregate_id has 256 bytes, more than the limit of 255"),
        (9, "event_type has 256 bytes, more than the limit of 255"),
        (10, "topic has 256 bytes, more than the limit of 255"),
    ];
    assert_eq!(said, expected);
    relay.settle(&long[..1], retry(Duration::ZERO)).await;
    relay.settle(&long[1..2], Outcome::Sent).await;
    let (cause, successors) = (FailureCause::Undecodable, Successors::Park);
    relay.settle(&long[2..], Outcome::Failed { cause, error: said[2].1.to_owned(), successors }).await;
    let undecodable = list(EventFilter::default().with_cause(cause)).await;
    assert_eq!(undecodable[0].last_error.as_deref(), Some(said[2].1));
    assert_eq!(relay.store.requeue(&EventFilter::default().with_cause(cause)).await.unwrap(), 1);
    relay.store.discard(&EventFilter::default()).await.unwrap();
    let all = Some((Duration::ZERO, Disposal::Archive));
    // By a clock of milliseconds, they may be old enough only in the next one.
    while relay.store.stats().await.unwrap().failed > 0 {
        relay.store.purge(PurgeRequest::new(100).with_sent(all).with_failed(all)).await.unwrap();
    }
    let archived: Vec<_> =
        list(EventFilter::default().in_archive()).await.iter().map(|event| event.sequence).collect();
    assert_eq!(archived, [1, 2, 4, 8, 9, 10, 11, 12, 100]);
    let next = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type) VALUES ('a', '1', 'e') RETURNING sequence";
    assert_eq!(connection.query_row(next, [], |row| row.get::<_, i64>(0)).unwrap(), 14);
}

/// The statements of version 1, as its release has them.
#[tokio::test]
async fn a_relay_of_version_1_is_refused_by_its_fetch_and_a_producer_is_right() {
    let database = used(0);
    let connection = database.connect();
    // The first statement of every fetch.
    let fetch = "SELECT aggregate_type, aggregate_id, sequence FROM outbox_holds INDEXED BY outbox_holds_due \
                 WHERE paused_at IS NULL AND until IS NOT NULL AND until <= ?1 ORDER BY until";
    // Prepared while the tables were those of version 1.
    let mut prepared = connection.prepare(fetch).unwrap();
    assert_eq!(prepared.query_map([i64::MAX], |_| Ok(())).unwrap().count(), 1);
    migrate(&database.config).unwrap();
    let refused = prepared.query([i64::MAX]).unwrap().next().map(drop).unwrap_err();
    assert!(refused.to_string().contains("no such index: outbox_holds_due"), "{refused}");
    let refused = connection.prepare(fetch).map(drop).unwrap_err();
    assert!(refused.to_string().contains("no such index: outbox_holds_due"), "{refused}");
    // A service goes on. It bound every payload as bytes.
    let insert = "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, version, payload, content_type, \
                  headers, topic, available_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
                  RETURNING sequence AS number";
    let parameters = rusqlite::params![
        "0193bb0c-0000-7000-8000-000000000001",
        "order",
        "new",
        "order.placed",
        1,
        &b"{\"n\": 8}"[..],
        "application/json",
        None::<String>,
        None::<String>,
        None::<i64>
    ];
    let sequence: i64 = connection.query_row(insert, parameters, |row| row.get(0)).unwrap();
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    let row = rows.iter().find(|row| row.sequence == sequence).unwrap();
    assert_eq!(row.content.as_ref().unwrap().body(), br#"{"n": 8}"#);
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
        said.contains(
            "version 0, older than 2: migrations 1 (the tables of the outbox), 2 (names of at most"
        ),
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
        said.contains("has version 9, newer than 2, the last that this program knows; upgrade"),
        "{said}"
    );
}
