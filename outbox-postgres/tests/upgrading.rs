//! From every released version of the tables to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{sync::Arc, time::Duration};

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::{
    Event, EventFilter, OutboxAdmin as _, OutboxStore as _, Relay, RelayConfig,
    memory::MemoryPublisher,
    store::{FailureCause, Status},
};
use outbox_postgres::{SentRows, migration_sql};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::{Place, VARIABLE, VARIABLE_18, execute};

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; 2] = [include_str!("fixtures/schema_1.sql"), include_str!("fixtures/schema_2.sql")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

/// Statements of the programs of version 1, prepared.
const STATEMENTS_1: &str = include_str!("fixtures/statements_1.sql");

async fn used(version: usize) -> Option<Place> {
    used_on(VARIABLE, version).await
}

async fn used_on(variable: &str, version: usize) -> Option<Place> {
    let place = Place::empty_on(variable, SentRows::Kept).await?;
    place.run(VERSIONS[version]).await;
    Some(place)
}

/// Every column, index and constraint, as the server describes it.
async fn schema(place: &Place) -> Vec<String> {
    let sql = "SELECT format('%s.%s %s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), \
                      a.attcollation::regcollation, a.attnotnull, a.attgenerated::text || a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)) \
               FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
               LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
               WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' \
               UNION ALL SELECT c.relname || ' ' || coalesce(array_to_string(c.reloptions, ','), '') FROM pg_class c \
               WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' \
               UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = $1 \
               UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) \
               FROM pg_constraint WHERE connamespace = $1::regnamespace AND contype <> 'n' ORDER BY 1";
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
    for (index, variable) in (0..VERSIONS.len()).flat_map(|index| [(index, VARIABLE), (index, VARIABLE_18)]) {
        let Some(place) = used_on(variable, index).await else { return };
        let fresh = Place::on(variable).await.unwrap();
        assert_eq!(version(&fresh).await, VERSIONS.len(), "every version has its file");
        // The second time there is nothing to do, and the text may be run again by a user's own tool.
        for _ in 0..2 {
            place.store.migrate().await.unwrap();
        }
        place.run(&migration_sql(&place.config)).await;
        assert_eq!(schema(&place).await, schema(&fresh).await, "from version {}", index + 1);
        assert_eq!(place.store.check().await.unwrap(), []);
        expect_upgraded(&place.store, WRITTEN).await;
        fresh.drop().await;
        place.drop().await;
    }
}

#[tokio::test]
async fn a_user_s_own_tool_upgrades_by_the_text_alone() {
    let (Some(place), Some(fresh)) = (used(0).await, Place::new().await) else { return };
    place.run(&migration_sql(&place.config)).await;
    assert_eq!(schema(&place).await, schema(&fresh).await);
    assert_eq!(place.store.check().await.unwrap(), []);
    expect_upgraded(&place.store, WRITTEN).await;
    fresh.drop().await;
    place.drop().await;
}

/// What breaks a rule of the new version: its kind, the aggregate, and the columns with their values.
const VIOLATING: [(&str, &str, &str); 9] = [
    ("aggregate_type", "repeat('t', 256)", "aggregate_type has 256 bytes, more than the limit of 255"),
    ("aggregate_id", "repeat('ä', 200)", "aggregate_id has 400 bytes, more than the limit of 255"),
    ("event_type", "repeat('e', 3000)", "event_type has 3000 bytes, more than the limit of 255"),
    ("topic", "repeat('t', 256)", "topic has 256 bytes, more than the limit of 255"),
    ("content_type", "repeat('c', 256)", "content_type has 256 bytes, more than the limit of 255"),
    ("attempts", "-1", "attempts is -1, less than 0"),
    ("sequence", "0", "sequence is 0, less than 1"),
    ("sequence", "-7", "sequence is -7, less than 1"),
    ("event_type, topic", "repeat('e', 256), repeat('t', 256)", "limit of 255; topic has 256"),
];

/// Bytes that are not text in any encoding, and every other row, keep their place, partition and payload;
/// what no relay could record is in the archive.
#[tokio::test]
async fn what_breaks_a_new_rule_is_moved_to_the_archive_and_nothing_else_is() {
    let Some(place) = used(0).await else { return };
    let columns = ["aggregate_type", "aggregate_id", "event_type", "payload"];
    let insert = |column: &str, value: &str, others: &str, values: &str| {
        let own = columns.into_iter().filter(|name| !column.split(", ").any(|own| own == *name));
        let names: Vec<&str> = own.collect();
        let literals = vec![r"'odd'"; names.len()].join(", ");
        let names = names.join(", ");
        format!("INSERT INTO outbox ({column}, {names}{others}) VALUES ({value}, {literals}{values})")
    };
    for (column, value, _) in VIOLATING {
        place.run(&insert(column, value, "", "")).await;
    }
    let sent = insert("topic", "repeat('t', 300)", ", status, sent_at", ", 1, '2025-10-09 08:53:30+00'");
    place.run(&sent).await;
    let failed = ", 2, 'Busy: no', 'exhausted'";
    place.run(&insert("topic", "repeat('t', 301)", ", status, last_error, cause", failed)).await;
    place
        .run(
            "INSERT INTO outbox_failed (sequence, failed_at) \
             SELECT sequence, '2025-10-09 08:53:31+00' FROM outbox WHERE last_error = 'Busy: no'; \
             INSERT INTO outbox_holds (part, aggregate_type, aggregate_id, sequence, reason) \
             SELECT part, aggregate_type, aggregate_id, sequence, 'parked' FROM outbox WHERE octet_length(event_type) = 3000 \
             UNION ALL \
             SELECT part, aggregate_type, aggregate_id, sequence, 'backoff' FROM outbox WHERE octet_length(aggregate_id) = 400",
        )
        .await;
    let rows = |partition: &str, payload: &str| {
        let moved = "octet_length(topic) > 255 OR octet_length(event_type) > 255 OR octet_length(aggregate_id) > 255 \
                     OR octet_length(aggregate_type) > 255 OR octet_length(content_type) > 255 OR attempts < 0 \
                     OR sequence < 1";
        format!(
            "SELECT sequence, {partition}, {payload} FROM outbox WHERE ({moved}) IS NOT TRUE ORDER BY sequence"
        )
    };
    let before: Vec<(i64, i16, Vec<u8>)> =
        sqlx::query_as(AssertSqlSafe(rows("part", "payload"))).fetch_all(&place.pool).await.unwrap();
    assert_eq!(before.len(), 7);
    assert_eq!(before[1].2, [0, 255]);
    let count = place.number("SELECT count(*) FROM outbox").await;
    assert_eq!(count, 7 + 11);
    let files = "SELECT pg_relation_filenode('outbox')::bigint * 1000000 + pg_relation_filenode('outbox_archive')::bigint";
    let written = place.number(files).await;
    place.store.migrate().await.unwrap();
    assert_eq!(place.number(files).await, written, "no table is written anew");

    let after: Vec<(i64, i16, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(rows("partition", "payload_binary")))
        .fetch_all(&place.pool)
        .await
        .unwrap();
    assert_eq!(after, before);
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 7);
    assert_eq!(place.number("SELECT count(payload) FROM outbox").await, 0);
    assert_eq!(place.number("SELECT count(*) FROM outbox_failed").await, 1, "of the one that stayed");
    let archive = EventFilter::default().in_archive();
    let moved = place.store.list(&archive, 100).await.unwrap();
    assert_eq!(moved.len(), 1 + 11);
    for (_, _, problem) in VIOLATING {
        let found = moved
            .iter()
            .find(|record| record.last_error.as_deref().is_some_and(|error| error.contains(problem)));
        let found = found.unwrap_or_else(|| panic!("{problem}: {moved:?}"));
        assert_eq!((found.status, found.cause), (Status::Failed, Some(FailureCause::Undecodable)));
        assert!(found.failed_at.is_some() && found.payload.as_deref() == Some(b"odd"), "{found:?}");
    }
    let topic = |length: usize| {
        moved.iter().find(|record| record.topic.as_ref().is_some_and(|topic| topic.len() == length)).unwrap()
    };
    assert_eq!((topic(300).status, topic(300).cause), (Status::Sent, None));
    assert_eq!(
        (topic(301).last_error.as_deref(), topic(301).cause),
        (Some("Busy: no"), Some(FailureCause::Exhausted))
    );
    assert_eq!(topic(301).failed_at.map(|at| at.to_rfc3339()).as_deref(), Some("2025-10-09T08:53:31+00:00"));
    // What waited behind one of them is due, and a hold of an aggregate that cannot be any more is gone.
    let odd = place.store.holds(10).await.unwrap();
    let odd: Vec<_> = odd.iter().filter(|hold| hold.key.aggregate_type() == "odd").collect();
    assert_eq!(odd.len(), 1, "{odd:?}");
    assert_eq!((odd[0].key.aggregate_id(), odd[0].due_in), ("odd", Some(Duration::ZERO)));
    assert_eq!(place.store.check().await.unwrap(), []);

    // And a relay delivers what is left, with what comes now.
    place.run("UPDATE outbox SET available_at = NULL WHERE status = 0; DELETE FROM outbox_archive WHERE sequence <> 100").await;
    expect_delivered(&place).await;
    place.drop().await;
}

/// Old events as they were written, and a new one of each kind.
async fn expect_delivered(place: &Place) {
    let event = |id: &str, payload: &[u8]| {
        Event::builder("odd", id, "odd.written").payload(payload.to_vec()).build().unwrap()
    };
    let tombstone = Event::tombstone("odd", "odd", "odd.removed").build().unwrap();
    place.commit(&[event("odd", b"{}"), event("odd", b"\xff"), tombstone]).await;
    let publisher = Arc::new(MemoryPublisher::new());
    let relay = Relay::new(place.store.clone(), publisher.clone(), RelayConfig::default()).unwrap();
    let handle = relay.handle();
    let running = tokio::spawn(relay.run());
    let sent = tokio::time::timeout(Duration::from_secs(60), publisher.delivered_at_least(6)).await.unwrap();
    handle.shutdown();
    running.await.unwrap();
    let of = |id: &str| -> Vec<Option<Vec<u8>>> {
        let of_id = sent.iter().filter(|message| message.key.aggregate_id() == id);
        of_id.map(|message| message.event.payload.as_ref().map(|payload| payload.to_vec())).collect()
    };
    assert_eq!(of("a"), [Some(vec![0, 255]), Some(br#"{"n": 6}"#.to_vec())]);
    assert_eq!(of("odd"), [Some(b"{}".to_vec()), Some(vec![255]), None]);
}

/// A relay by its beat and its fetch already, since it would take a text for an empty payload; retention by its archive,
/// which would lose the bytes; and a producer, whose bytes would become a text in hexadecimal.
#[tokio::test]
async fn programs_of_version_1_are_refused_by_name() {
    let Some(place) = used(0).await else { return };
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    execute(&mut connection, &format!("SET search_path = {}", place.schema)).await;
    // Prepared before the upgrade, as in the connections of programs that are running.
    execute(&mut connection, STATEMENTS_1).await;
    let parts = "'{0,1,2,3}'";
    let numbers = "pg_get_serial_sequence('outbox', 'sequence')::regclass";
    let one = |payload: &str| {
        format!("EXECUTE one(gen_random_uuid(), 'order', 'a', 'e', 1, {payload}, NULL, NULL, NULL, NULL)")
    };
    let calls = [
        (
            "EXECUTE join_as_relay(gen_random_uuid(), 15000)".to_owned(),
            "column \"ttl\" of relation \"outbox_relays\" does not exist",
        ),
        (
            "EXECUTE beat(gen_random_uuid(), 15000)".to_owned(),
            "column r.ttl does not exist",
        ),
        (
            format!("EXECUTE probe({numbers}, 0, true, 'outbox'::regclass, 1, 0, {parts}, now(), now())"),
            "column \"part\" does not exist",
        ),
        (format!("EXECUTE rows(0, 100, now(), {parts})"), "column o.part does not exist"),
        (
            format!("EXECUTE settle({parts}, {parts}, gen_random_uuid(), '{{1}}', 1)"),
            "column p.part does not exist",
        ),
        ("EXECUTE purge(0, 100, 100, 0, 100)".to_owned(), "null value in column \"archived_at\""),
        (one(r#"'{"n": 8}'"#), "payload_is_text_write_bytes_to_payload_binary"),
        (one("''"), "payload_is_text_write_bytes_to_payload_binary"),
        (
            "EXECUTE many(ARRAY[gen_random_uuid()], '{order}', '{a}', '{e}', '{1}', ARRAY['{}'::bytea], '{NULL}', '{NULL}', \
             '{NULL}', '{NULL}')"
                .to_owned(),
            "payload_is_text_write_bytes_to_payload_binary",
        ),
    ];
    for (call, _) in &calls {
        execute(&mut connection, "BEGIN").await;
        execute(&mut connection, call).await;
        execute(&mut connection, "ROLLBACK").await;
    }
    place.store.migrate().await.unwrap();
    let count = place.number("SELECT count(*) FROM outbox").await;
    for (call, said) in &calls {
        let error = sqlx::raw_sql(AssertSqlSafe(call.clone())).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains(said), "{call}: {error}");
    }
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, count);
    // A text, as a plain insert of version 1 has it, is right.
    place.run("INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('o', '1', 'e', '{}')").await;
    place.drop().await;
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
        older.contains(
            "version 0, older than 2: migrations 1 (the tables of the outbox), 2 (payloads as text"
        ),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    place.run("UPDATE outbox_meta SET value = 9 WHERE key = 'schema_version'").await;
    // The text of this release, run by a user's own tool.
    place.run(&migration_sql(&place.config)).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 2") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    place.drop().await;
}
