//! The writer's side and the tables: what is PostgreSQL's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_core::{Enqueue as _, EnqueueError, Event, OutboxStore as _, StoreErrorKind};
use outbox_postgres::{SentRows, migration_sql};
use support::{Place, event, request, sequences};
use uuid::Uuid;

#[tokio::test]
async fn outside_a_transaction_nothing_is_written() {
    let Some(place) = Place::new().await else { return };
    let mut connection = place.pool.acquire().await.unwrap();
    let one = place.outbox.enqueue(&mut connection, &event("1")).await;
    assert!(matches!(one, Err(EnqueueError::NoTransaction)), "{one:?}");
    let many = place.outbox.enqueue_all(&mut connection, &[event("1")]).await;
    assert!(matches!(many, Err(EnqueueError::NoTransaction)), "{many:?}");
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 0);
    // The connection is as good as before.
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
    place.outbox.enqueue(&mut connection, &event("1")).await.unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await.unwrap();
    drop(connection);
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 1);
    place.drop().await;
}

#[tokio::test]
async fn a_commit_written_by_hand_ends_what_the_driver_takes_for_a_transaction() {
    let Some(place) = Place::new().await else { return };
    let mut transaction = place.pool.begin().await.unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut *transaction).await.unwrap();
    let refused = place.outbox.enqueue(&mut transaction, &event("1")).await;
    assert!(matches!(refused, Err(EnqueueError::NoTransaction)), "{refused:?}");
    drop(transaction);
    place.drop().await;
}

#[tokio::test]
async fn a_duplicate_leaves_the_transaction_usable_and_writes_nothing() {
    let Some(place) = Place::new().await else { return };
    let id = Uuid::now_v7();
    let twice = || Event::builder("order", "1", "order.placed").id(id).build().unwrap();
    place.commit(&[twice()]).await;
    let mut transaction = place.pool.begin().await.unwrap();
    let one = place.outbox.enqueue(&mut transaction, &twice()).await;
    assert!(matches!(one, Err(EnqueueError::Duplicate(found)) if found == id), "{one:?}");
    let events: Vec<Event> = (0..7_000).map(|_| event("2")).chain([twice()]).collect();
    let many = place.outbox.enqueue_all(&mut transaction, &events).await;
    assert!(matches!(many, Err(EnqueueError::Duplicate(found)) if found == id), "{many:?}");
    let within = [event("3"), twice(), twice()].map(|event| event).to_vec();
    assert!(place.outbox.enqueue_all(&mut transaction, &within).await.is_err());
    place.outbox.enqueue(&mut transaction, &event("4")).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 2);
    place.drop().await;
}

#[tokio::test]
async fn many_events_get_their_numbers_in_the_order_given() {
    let Some(place) = Place::new().await else { return };
    let events: Vec<Event> = (0..12_000).map(|n| event(&n.to_string())).collect();
    let numbers = place.commit(&events).await;
    assert_eq!(numbers.len(), events.len());
    assert!(numbers.is_sorted_by(|a, b| a < b));
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM outbox ORDER BY sequence").fetch_all(&place.pool).await.unwrap();
    assert_eq!(ids, events.iter().map(Event::id).collect::<Vec<_>>());
    place.drop().await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_before_anything_is_sent() {
    let Some(place) = Place::new().await else { return };
    let large = Event::builder("order", "1", "e").payload(vec![0; 1_000_001]).build().unwrap();
    let mut transaction = place.pool.begin().await.unwrap();
    let refused = place.outbox.enqueue(&mut transaction, &large).await;
    assert!(matches!(refused, Err(EnqueueError::Event(_))), "{refused:?}");
    place.outbox.enqueue(&mut transaction, &event("1")).await.unwrap();
    transaction.commit().await.unwrap();
    place.drop().await;
}

#[tokio::test]
async fn a_plain_insert_from_any_language_is_complete_and_in_order() {
    let Some(place) = Place::new().await else { return };
    for n in 0..3 {
        place
            .run(&format!(
                "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
                 VALUES ('order', '7', 'order.changed', '{{\"path\": \"C:\\new\", \"n\": {n}}}')"
            ))
            .await;
    }
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(sequences(&rows), [1, 2, 3]);
    let event = rows[2].content.as_ref().unwrap();
    assert_eq!(event.body(), br#"{"path": "C:\new", "n": 2}"#);
    assert_eq!((event.version, event.headers.len(), event.topic.as_deref()), (1, 0, None));
    place.drop().await;
}

/// What is hard to quote, in JSON and outside it.
const HARD: &str =
    r#"{"quote": "it's \"quoted\"", "path": "C:\\new\\x41", "line": "a\nb", "name": "Zoë 🦀"}"#;

/// The events that a relay reads.
async fn payloads(place: &Place) -> Vec<Option<Vec<u8>>> {
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    rows.into_iter().map(|row| row.content.unwrap().payload.map(|payload| payload.to_vec())).collect()
}

/// As a text, as JSON of the server's types, and as bytes where they belong.
#[tokio::test]
async fn json_as_drivers_write_it_arrives_as_it_was_written() {
    let Some(place) = Place::new().await else { return };
    let insert =
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('o', '1', 'e', ";
    let statement = |value: &str| sqlx::AssertSqlSafe(format!("{insert}{value})"));
    let json: serde_json::Value = serde_json::from_str(HARD).unwrap();
    let literal = format!("'{}'", HARD.replace('\'', "''"));
    let run = async |value: &str| sqlx::query(statement(value)).execute(&place.pool).await.unwrap();
    sqlx::query(statement("$1")).bind(HARD).execute(&place.pool).await.unwrap();
    run(&literal).await;
    run(&format!("{literal}::json")).await;
    sqlx::query(statement("$1::text")).bind(HARD).execute(&place.pool).await.unwrap();
    // The server writes its own JSON anew: the same in meaning.
    run(&format!("{literal}::jsonb")).await;
    sqlx::query(statement("$1")).bind(&json).execute(&place.pool).await.unwrap();
    run("NULL").await;
    let binary = insert.replace("payload)", "payload_binary)");
    let binary = sqlx::AssertSqlSafe(format!("{binary}$1)"));
    sqlx::query(binary).bind(HARD.as_bytes()).execute(&place.pool).await.unwrap();
    let found = payloads(&place).await;
    let same = Some(HARD.as_bytes().to_vec());
    assert_eq!(found[..4], [same.clone(), same.clone(), same.clone(), same.clone()]);
    for payload in &found[4..6] {
        let read: serde_json::Value = serde_json::from_slice(payload.as_deref().unwrap()).unwrap();
        assert_eq!(read, json);
    }
    assert_eq!(found[6..], [None, same]);
    place.drop().await;
}

/// PostgreSQL would make a text of them, in hexadecimal, without a word.
#[tokio::test]
async fn bytes_that_are_bound_to_the_text_are_refused_with_the_name_of_their_column() {
    let Some(place) = Place::new().await else { return };
    let insert =
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('o', '1', 'e', $1)";
    for bytes in [HARD.as_bytes(), b"", b"\xff\x00"] {
        let error = sqlx::query(insert).bind(bytes).execute(&place.pool).await.unwrap_err();
        let error = error.into_database_error().unwrap();
        assert!(error.message().contains("write_bytes_to_payload_binary"), "{error}");
    }
    let written = "SELECT convert_to('{}', 'UTF8')";
    let insert = insert.replace("$1", &format!("({written})"));
    let error = sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&place.pool).await.unwrap_err();
    assert!(error.to_string().contains("write_bytes_to_payload_binary"), "{error}");
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 0);
    place.drop().await;
}

#[tokio::test]
async fn a_payload_is_a_text_wherever_it_can_be_one() {
    let Some(place) = Place::new().await else { return };
    let of = |payload: &[u8]| Event::builder("order", "1", "e").payload(payload.to_vec()).build().unwrap();
    let events = || -> Vec<Event> {
        let tombstone = Event::tombstone("order", "1", "e").build().unwrap();
        let payloads = [HARD.as_bytes(), b"", b"a\0b", b"\xff", br"\x7b7d", br"\X", br"\"];
        payloads.into_iter().map(of).chain([tombstone]).collect()
    };
    place.commit(&events()).await;
    let mut transaction = place.pool.begin().await.unwrap();
    for event in &events() {
        place.outbox.enqueue(&mut transaction, event).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let rows: Vec<(Option<String>, Option<Vec<u8>>)> =
        sqlx::query_as("SELECT payload, payload_binary FROM outbox ORDER BY sequence")
            .fetch_all(&place.pool)
            .await
            .unwrap();
    let text = |text: &str| (Some(text.to_owned()), None);
    let binary = |bytes: &[u8]| (None, Some(bytes.to_vec()));
    let expected = [
        text(HARD),
        text(""),
        binary(b"a\0b"),
        binary(b"\xff"),
        binary(br"\x7b7d"),
        text(r"\X"),
        text(r"\"),
        (None, None),
    ];
    assert_eq!(rows[..8], expected, "many");
    assert_eq!(rows[8..], expected, "one by one");
    place.drop().await;
}

/// The server's error says which and why.
#[tokio::test]
async fn what_no_relay_could_record_is_refused_by_name() {
    let Some(place) = Place::new().await else { return };
    let columns = ["aggregate_type", "aggregate_id", "event_type", "topic", "content_type"];
    for column in columns {
        for (character, longest) in [("a", 255), ("ä", 127), ("🦀", 63)] {
            let insert = |count: usize| {
                let values = columns.map(|name| match name == column {
                    true => format!("repeat('{character}', {count})"),
                    false => "'a'".to_owned(),
                });
                let (names, values) = (columns.join(", "), values.join(", "));
                sqlx::AssertSqlSafe(format!("INSERT INTO outbox ({names}) VALUES ({values})"))
            };
            sqlx::query(insert(longest)).execute(&place.pool).await.unwrap();
            let error = sqlx::query(insert(longest + 1)).execute(&place.pool).await.unwrap_err().to_string();
            assert!(error.contains(&format!("{column}_has_at_most_255_bytes")), "{error}");
        }
    }
    let values = "aggregate_type, aggregate_id, event_type) OVERRIDING SYSTEM VALUE VALUES";
    for (insert, name) in [
        (format!("INSERT INTO outbox (attempts, {values} (-1, 'o', '1', 'e')"), "attempts_are_not_negative"),
        (format!("INSERT INTO outbox (sequence, {values} (0, 'o', '1', 'e')"), "sequence_is_positive"),
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&place.pool).await.unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    place.drop().await;
}

/// By accident: a restore may, and a writer that says so.
#[tokio::test]
async fn a_sequence_is_not_set_by_accident() {
    let Some(place) = Place::new().await else { return };
    let columns = "sequence, aggregate_type, aggregate_id, event_type";
    let insert = format!("INSERT INTO outbox ({columns}) VALUES (9, 'o', '1', 'e')");
    let error = sqlx::query(sqlx::AssertSqlSafe(insert.clone())).execute(&place.pool).await.unwrap_err();
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    assert_eq!(code, "428C9", "generated always: {error}");
    let overriding = insert.replace("VALUES", "OVERRIDING SYSTEM VALUE VALUES");
    sqlx::query(sqlx::AssertSqlSafe(overriding)).execute(&place.pool).await.unwrap();
    // As pg_restore does.
    let mut connection = place.pool.acquire().await.unwrap();
    let mut copy = connection.copy_in_raw(&format!("COPY outbox ({columns}) FROM STDIN")).await.unwrap();
    copy.send(&b"10\to\t1\te\n"[..]).await.unwrap();
    copy.finish().await.unwrap();
    drop(connection);
    assert_eq!(place.number("SELECT sum(sequence) FROM outbox").await, 19);
    place.drop().await;
}

#[tokio::test]
async fn the_partition_is_the_same_in_every_database() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("4711"), event("ä/ö")]).await;
    let parts: Vec<i16> = sqlx::query_scalar("SELECT partition FROM outbox ORDER BY sequence")
        .fetch_all(&place.pool)
        .await
        .unwrap();
    let by_hand: Vec<i64> = vec![
        place.number("SELECT ('x' || left(md5('order/4711'), 2))::bit(8)::integer % 64").await,
        place.number("SELECT ('x' || left(md5('order/ä/ö'), 2))::bit(8)::integer % 64").await,
    ];
    assert_eq!(parts.into_iter().map(i64::from).collect::<Vec<_>>(), by_hand);
    place.drop().await;
}

#[tokio::test]
async fn two_processes_may_migrate_at_once_and_again() {
    let Some(place) = Place::empty(SentRows::Deleted).await else { return };
    let stores = [place.store.clone(), place.store.clone(), place.store.clone(), place.store.clone()];
    let migrations = stores.map(|store| tokio::spawn(async move { store.migrate().await }));
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    assert_eq!(place.number("SELECT count(*) FROM outbox_partitions").await, 64);
    place.drop().await;
}

#[tokio::test]
async fn the_printed_statements_make_the_same_tables_and_may_be_run_again() {
    let Some(place) = Place::empty(SentRows::Kept).await else { return };
    let sql = migration_sql(&place.config);
    place.run(&sql).await;
    place.commit(&[event("1")]).await;
    place.run(&sql).await;
    assert_eq!(place.store.check().await.unwrap(), []);
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 1);
    place.drop().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_its_version_and_an_older_one_is_upgraded() {
    let Some(place) = Place::new().await else { return };
    place.run("UPDATE outbox_meta SET value = 7 WHERE key = 'schema_version'").await;
    let error = place.store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("version 7, newer than 2"), "{error}");
    place.run("UPDATE outbox_meta SET value = 0 WHERE key = 'schema_version'").await;
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    place.drop().await;
}

#[tokio::test]
async fn without_tables_the_error_says_what_to_do() {
    let Some(place) = Place::empty(SentRows::Kept).await else { return };
    let error = place.store.join(std::time::Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("run the migration"), "{error}");
    let mut transaction = place.pool.begin().await.unwrap();
    let error = place.outbox.enqueue(&mut transaction, &event("1")).await.unwrap_err();
    assert!(
        matches!(&error, EnqueueError::Store(error) if error.kind() == StoreErrorKind::Schema),
        "{error}"
    );
    drop(transaction);
    place.drop().await;
}
