//! The writer's side and the tables: what is these databases' own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_core::{
    Enqueue as _, EnqueueError, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, StoreErrorKind,
    store::{FailureCause, Outcome, Successors},
};
use outbox_mysql::{MysqlConfig, MysqlOutbox, MysqlStore, migration_sql};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, mysql::MySqlPoolOptions};
use support::{Place, Server, event, on_both, request, sequences, settle};
use uuid::Uuid;

on_both! {
    outside_a_transaction_nothing_is_written
    a_commit_written_by_hand_ends_what_the_driver_takes_for_a_transaction
    a_session_without_autocommit_is_always_in_a_transaction
    a_duplicate_leaves_the_transaction_usable_and_writes_nothing
    many_events_get_their_numbers_in_the_order_given
    numbers_that_go_up_by_more_than_one_are_told_as_they_are
    a_payload_over_the_limit_is_refused_before_anything_is_sent
    a_plain_insert_from_any_language_is_complete_and_in_order
    a_payload_of_any_language_arrives_as_it_was_written
    what_is_not_utf8_is_refused_by_the_name_of_its_column
    a_name_that_is_too_long_in_bytes_is_refused_by_its_constraint
    a_session_that_is_not_strict_has_what_is_not_utf8_changed
    no_character_set_of_a_connection_changes_anything
    the_partition_is_the_same_in_every_database
    two_processes_may_migrate_at_once_and_again
    the_printed_statements_make_the_same_tables_and_may_be_run_again
    a_newer_schema_is_refused_by_its_version_and_an_older_one_is_upgraded
    without_tables_the_error_says_what_to_do
    several_outboxes_stand_beside_each_other
}

async fn outside_a_transaction_nothing_is_written(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let mut connection = place.pool.acquire().await.unwrap();
    let one = place.outbox.enqueue(&mut connection, &event("1")).await;
    assert!(matches!(one, Err(EnqueueError::NoTransaction)), "{one:?}");
    let many = place.outbox.enqueue_all(&mut connection, &[event("1")]).await;
    assert!(matches!(many, Err(EnqueueError::NoTransaction)), "{many:?}");
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 0);
    // The connection is as good as before.
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
    place.outbox.enqueue(&mut connection, &event("1")).await.unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await.unwrap();
    drop(connection);
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 1);
    place.drop().await;
}

async fn a_commit_written_by_hand_ends_what_the_driver_takes_for_a_transaction(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let mut transaction = place.pool.begin().await.unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut *transaction).await.unwrap();
    let refused = place.outbox.enqueue(&mut transaction, &event("1")).await;
    assert!(matches!(refused, Err(EnqueueError::NoTransaction)), "{refused:?}");
    drop(transaction);
    place.drop().await;
}

async fn a_session_without_autocommit_is_always_in_a_transaction(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let mut connection = place.pool.acquire().await.unwrap();
    sqlx::raw_sql("SET autocommit = 0").execute(&mut *connection).await.unwrap();
    place.outbox.enqueue(&mut connection, &event("1")).await.unwrap();
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 0);
    sqlx::raw_sql("COMMIT; SET autocommit = 1").execute(&mut *connection).await.unwrap();
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 1);
    drop(connection);
    place.drop().await;
}

async fn a_duplicate_leaves_the_transaction_usable_and_writes_nothing(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let id = Uuid::now_v7();
    let twice = || Event::builder("order", "1", "order.placed").id(id).build().unwrap();
    let mut transaction = place.pool.begin().await.unwrap();
    // Under REPEATABLE READ the snapshot is older than the row that is in the way.
    sqlx::query("SELECT COUNT(*) FROM outbox").fetch_one(&mut *transaction).await.unwrap();
    place.commit(&[twice()]).await;
    let one = place.outbox.enqueue(&mut transaction, &twice()).await;
    assert!(matches!(one, Err(EnqueueError::Duplicate(found)) if found == id), "{one:?}");
    let events: Vec<Event> = (0..700).map(|_| event("2")).chain([twice()]).collect();
    let many = place.outbox.enqueue_all(&mut transaction, &events).await;
    assert!(matches!(many, Err(EnqueueError::Duplicate(found)) if found == id), "{many:?}");
    let within = [event("3"), twice(), twice()].map(|event| event).to_vec();
    let within = place.outbox.enqueue_all(&mut transaction, &within).await;
    assert!(matches!(within, Err(EnqueueError::Duplicate(found)) if found == id), "{within:?}");
    place.outbox.enqueue(&mut transaction, &event("4")).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 2);
    place.drop().await;
}

async fn many_events_get_their_numbers_in_the_order_given(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let events: Vec<Event> = (0..3_000).map(|n| event(&n.to_string())).collect();
    // Beside another that writes as many, so that the numbers of the two are mixed.
    let (numbers, others) = tokio::join!(place.commit(&events), async {
        let others: Vec<Event> = (0..3_000).map(|n| event(&n.to_string())).collect();
        place.commit(&others).await
    });
    assert_eq!((numbers.len(), others.len()), (3_000, 3_000));
    assert!(numbers.is_sorted_by(|a, b| a < b));
    for (event, sequence) in events.iter().zip(numbers) {
        let sql = "SELECT id FROM outbox WHERE sequence = ?";
        let id: Uuid = sqlx::query_scalar(sql).bind(sequence).fetch_one(&place.pool).await.unwrap();
        assert_eq!(id, event.id(), "{sequence}");
    }
    place.drop().await;
}

async fn numbers_that_go_up_by_more_than_one_are_told_as_they_are(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let mut transaction = place.pool.begin().await.unwrap();
    let set = "SET SESSION auto_increment_increment = 7, SESSION auto_increment_offset = 3";
    sqlx::raw_sql(set).execute(&mut *transaction).await.unwrap();
    let events: Vec<Event> = (0..9).map(|n| event(&n.to_string())).collect();
    let numbers = place.outbox.enqueue_all(&mut transaction, &events).await.unwrap();
    let stored: Vec<i64> = sqlx::query_scalar("SELECT sequence FROM outbox ORDER BY sequence")
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(numbers, stored);
    transaction.rollback().await.unwrap();
    place.drop().await;
}

async fn a_payload_over_the_limit_is_refused_before_anything_is_sent(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let large = Event::builder("order", "1", "e").payload(vec![0; 1_000_001]).build().unwrap();
    let mut transaction = place.pool.begin().await.unwrap();
    let refused = place.outbox.enqueue(&mut transaction, &large).await;
    assert!(matches!(refused, Err(EnqueueError::Event(_))), "{refused:?}");
    place.outbox.enqueue(&mut transaction, &event("1")).await.unwrap();
    transaction.commit().await.unwrap();
    place.drop().await;
}

async fn a_plain_insert_from_any_language_is_complete_and_in_order(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    for n in 0..3 {
        // In another time zone, which must not matter.
        place
            .run(&format!(
                "SET time_zone = '-09:30'; \
                 INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
                 VALUES ('order', '7', 'order.changed', '{{\"n\": {n}}}'); \
                 SET time_zone = '+00:00'"
            ))
            .await;
    }
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(sequences(&rows), [1, 2, 3]);
    let event = rows[2].content.as_ref().unwrap();
    assert_eq!(event.body(), br#"{"n": 2}"#);
    assert_eq!((event.version, event.headers.len(), event.topic.as_deref()), (1, 0, None));
    assert!(rows[0].age < std::time::Duration::from_secs(600), "{:?}", rows[0].age);
    let ids: std::collections::HashSet<_> = rows.iter().map(|row| row.content.as_ref().unwrap().id).collect();
    assert_eq!(ids.len(), 3);
    place.drop().await;
}

/// As a text, as bytes, as drivers write both into the text of a statement, and bound; with what a literal
/// could change. The size is that of either column.
async fn a_payload_of_any_language_arrives_as_it_was_written(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let text = "{\"quote\": \"it's \\\"so\\\"\", \"path\": \"C:\\\\new\", \"name\": \"Jos\\u00e9 José 🦀\"}\r\n\tend ";
    let literal = text.replace('\\', "\\\\").replace('\'', "\\'");
    let insert = |column: &str, value: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, {column}) VALUES ('order', '7', 'e', {value})"
        )
    };
    // pymysql writes a str like the first and bytes like the second.
    for value in
        [format!("'{literal}'"), format!("_binary'{literal}'"), format!("X'{}'", hex(text.as_bytes()))]
    {
        place.run(&insert("payload", &value)).await;
    }
    let bound = insert("payload", "?");
    for query in [
        sqlx::query(AssertSqlSafe(bound.clone())).bind(text),
        sqlx::query(AssertSqlSafe(bound)).bind(text.as_bytes()),
    ] {
        query.execute(&place.pool).await.unwrap();
    }
    place.run(&insert("payload_binary", "X'FF00'")).await;
    place.run(&insert("payload", "''")).await;
    place.run(&insert("payload", "NULL")).await;
    place
        .run("INSERT INTO outbox (aggregate_type, aggregate_id, event_type) VALUES ('order', '7', 'e')")
        .await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let read: Vec<_> = rows.iter().map(|row| row.content.as_ref().unwrap().payload.as_deref()).collect();
    let text = Some(text.as_bytes());
    assert_eq!(read, [text, text, text, text, text, Some(&[0xff, 0][..]), Some(&[][..]), None, None]);
    let sizes: Vec<u32> = sqlx::query_scalar("SELECT payload_bytes FROM outbox ORDER BY sequence")
        .fetch_all(&place.pool)
        .await
        .unwrap();
    let lengths: Vec<_> = read.iter().map(|payload| payload.map_or(0, <[u8]>::len)).collect();
    assert_eq!(sizes.iter().map(|size| *size as usize).collect::<Vec<_>>(), lengths);
    place.drop().await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// An insert of one column's value, beside others that are right.
fn insert_with(column: &str, value: &str) -> String {
    let rest = ["aggregate_type", "aggregate_id", "event_type"].into_iter().filter(|name| *name != column);
    let names: Vec<_> = rest.chain([column]).collect();
    let values: Vec<_> = names.iter().map(|name| if *name == column { value } else { "'x'" }).collect();
    format!("INSERT INTO outbox ({}) VALUES ({})", names.join(", "), values.join(", "))
}

/// So no name can grow when it becomes a hold's.
async fn what_is_not_utf8_is_refused_by_the_name_of_its_column(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    for column in ["aggregate_type", "aggregate_id", "event_type", "topic", "content_type", "payload"] {
        for bytes in ["FF", "C3", "61C328", "C0AF", "F4908080", &"FF".repeat(100)] {
            let literal = insert_with(column, &format!("X'{bytes}'"));
            let error =
                sqlx::raw_sql(AssertSqlSafe(literal)).execute(&place.pool).await.unwrap_err().to_string();
            assert!(
                error.contains(&format!("'{column}'")) || error.contains(&format!("`{column}`")),
                "{error}"
            );
            let bytes: Vec<u8> = (0..bytes.len())
                .step_by(2)
                .map(|n| u8::from_str_radix(&bytes[n..n + 2], 16).unwrap())
                .collect();
            let bound = sqlx::query(AssertSqlSafe(insert_with(column, "?"))).bind(bytes);
            let error = bound.execute(&place.pool).await.unwrap_err().to_string();
            assert!(error.contains(column), "{error}");
        }
    }
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 0);
    place.drop().await;
}

async fn a_name_that_is_too_long_in_bytes_is_refused_by_its_constraint(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    for column in ["aggregate_type", "aggregate_id", "event_type", "topic", "content_type"] {
        // 85 characters of 3 bytes are 255.
        place.run(&insert_with(column, "REPEAT('€', 85)")).await;
        let longer = insert_with(column, "CONCAT(REPEAT('€', 85), 'x')");
        // Whatever the mode.
        for mode in ["STRICT_ALL_TABLES", ""] {
            let sql = format!("SET SESSION sql_mode = '{mode}'; {longer}");
            let mut connection = MySqlConnection::connect(&place.url).await.unwrap();
            let error =
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err().to_string();
            assert!(error.contains(&format!("outbox_{column}_bytes")), "{error}");
        }
    }
    let error =
        sqlx::raw_sql(AssertSqlSafe(insert_with("attempts", "-1"))).execute(&place.pool).await.unwrap_err();
    assert!(error.to_string().contains("outbox_attempts"), "{error}");
    place.drop().await;
}

/// It is what the finding `sql-mode` warns of. What is stored is UTF-8 and can be recorded all the same.
async fn a_session_that_is_not_strict_has_what_is_not_utf8_changed(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place
        .run(&format!(
            "SET @mode = @@sql_mode, sql_mode = ''; {}; SET sql_mode = @mode",
            insert_with("aggregate_id", "X'61FF62'")
        ))
        .await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let changed = if server == Server::Mysql { "a" } else { "a?b" };
    assert_eq!(rows[0].key.aggregate_id(), changed);
    assert!(rows[0].content.is_ok());
    place.drop().await;
}

/// Names that a character set or a collation could change or merge, through connections of several, for all
/// that is written, compared and read.
async fn no_character_set_of_a_connection_changes_anything(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let names = ["a", "A", "a ", "\u{e4}", "a\u{308}", "\u{1f980}", "Ä", "ß", "ss"];
    for (round, (parameters, set)) in [
        ("", "SET NAMES latin1"),
        ("", "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci"),
        ("", "SET NAMES utf8mb4 COLLATE utf8mb4_bin"),
        ("", "SET NAMES latin1 COLLATE latin1_bin"),
        // The reader and the settle have connections of their own, by the same address.
        ("?charset=latin1&collation=latin1_german1_ci", "DO 0"),
    ]
    .into_iter()
    .enumerate()
    {
        place.run("TRUNCATE TABLE outbox").await;
        let options = MySqlPoolOptions::new().max_connections(2).after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(set).execute(connection).await.map(drop) })
        });
        let pool = options.connect(&format!("{}{parameters}", place.url)).await.unwrap();
        let charset: String =
            sqlx::query_scalar("SELECT @@SESSION.character_set_client").fetch_one(&pool).await.unwrap();
        assert_eq!(charset == "latin1", parameters.contains("latin1") || set.contains("latin1"));
        let store = MysqlStore::new(pool.clone(), &place.config);
        let text = "{\"name\": \"José 🦀\"}";
        let event = |name: &str| {
            let event = Event::builder(format!("t{name}"), name, name).topic(name).header("a", name);
            event.payload(text).content_type("ä/ß").build().unwrap()
        };
        let mut transaction = pool.begin().await.unwrap();
        let (first, others) = names.split_first().unwrap();
        place.outbox.enqueue(&mut transaction, &event(first)).await.unwrap();
        let others: Vec<_> = others.iter().map(|name| event(name)).collect();
        place.outbox.enqueue_all(&mut transaction, &others).await.unwrap();
        transaction.commit().await.unwrap();

        let (relay, leases) = if round == 0 {
            place.relay().await
        } else {
            let relay = store.join(std::time::Duration::from_secs(60)).await.unwrap();
            place.run("UPDATE outbox_partitions SET owner = NULL").await;
            (relay, place.claim_all(relay).await)
        };
        let mut reader = store.reader(relay).await.unwrap();
        let rows = reader.fetch(request(&leases)).await.unwrap().rows;
        let read: Vec<_> = rows.iter().map(|row| row.key.aggregate_id()).collect();
        assert_eq!(read, names, "{set}");
        for (row, name) in rows.iter().zip(names) {
            let found = row.content.as_ref().unwrap();
            assert_eq!((found.event_type.as_str(), found.topic.as_deref()), (name, Some(name)), "{set}");
            assert_eq!(
                (found.body(), found.content_type.as_deref()),
                (text.as_bytes(), Some("ä/ß")),
                "{set}"
            );
            let filter = EventFilter::aggregate(&row.key);
            let listed = store.list(&filter, 10).await.unwrap();
            assert_eq!(listed.len(), 1, "{set} {parameters} {name}");
            assert_eq!(
                (listed[0].event_type.as_str(), listed[0].headers["a"].as_str()),
                (name, name),
                "{set}"
            );
            assert_eq!(
                (&listed[0].key, listed[0].payload.as_deref()),
                (&row.key, Some(text.as_bytes())),
                "{set}"
            );
            assert_eq!(store.list(&filter.with_event_type(name), 10).await.unwrap().len(), 1);
        }
        // Each by itself: a pause, a resume, and all that holds do.
        for row in &rows {
            store.pause(&row.key).await.unwrap();
        }
        let mut paused: Vec<_> = store.holds(100).await.unwrap().into_iter().map(|hold| hold.key).collect();
        let mut keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
        paused.sort();
        keys.sort();
        assert_eq!(paused, keys, "{set}");
        assert_eq!(reader.fetch(request(&leases)).await.unwrap().paused.len(), names.len(), "{set}");
        assert!(store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows.is_empty());
        for row in &rows {
            assert!(store.resume(&row.key).await.unwrap(), "{set}");
        }
        let mut after = store.reader(relay).await.unwrap();
        assert_eq!(after.fetch(request(&leases)).await.unwrap().due_holds.len(), names.len(), "{set}");
        place.run("DELETE FROM outbox_holds").await;
        let error = "José 🦀".to_owned();
        let failed = Outcome::Failed {
            cause: FailureCause::Permanent,
            error: error.clone(),
            successors: Successors::Park,
        };
        assert!(store.settle(&settle(relay, &leases, &rows, &failed)).await.unwrap().fenced.is_empty());
        assert_eq!(store.holds(100).await.unwrap().len(), names.len(), "{set}");
        // Aggregates that are full are left out by their names alone.
        for (n, row) in rows.iter().enumerate() {
            let filter = EventFilter::aggregate(&row.key);
            assert_eq!(
                store.list(&filter, 9).await.unwrap()[0].last_error.as_deref(),
                Some(error.as_str()),
                "{set}"
            );
            assert_eq!(store.requeue(&filter).await.unwrap(), 1, "{set} {n}");
        }
        place.run("DELETE FROM outbox_holds").await;
        let mut reader = store.reader(relay).await.unwrap();
        let full: Vec<_> = keys[..3].to_vec();
        let left = reader.fetch(request(&leases).with_full(full.clone())).await.unwrap().rows;
        assert_eq!(left.len(), names.len() - 3, "{set}");
        assert!(left.iter().all(|row| !full.contains(&row.key)), "{set}");
        for name in names {
            store.pause_topic(name).await.unwrap();
        }
        let mut topics: Vec<_> = names.to_vec();
        topics.sort_unstable();
        assert_eq!(store.paused_topics().await.unwrap(), topics, "{set}");
        for name in names {
            assert!(store.resume_topic(name).await.unwrap(), "{set}");
        }
        pool.close().await;
    }
    // A text of such a client is stored as the characters that it means.
    place.run("TRUNCATE TABLE outbox").await;
    place
        .run(&format!(
            "SET NAMES latin1; {}; SET NAMES utf8mb4",
            insert_with("aggregate_id", "_latin1 X'E4'")
        ))
        .await;
    assert_eq!(place.number("SELECT aggregate_id = _utf8mb4'ä' FROM outbox").await, 1);
    place.drop().await;
}

async fn the_partition_is_the_same_in_every_database(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("4711"), event("ä/ö")]).await;
    let parts: Vec<u8> = sqlx::query_scalar("SELECT `partition` FROM outbox ORDER BY sequence")
        .fetch_all(&place.pool)
        .await
        .unwrap();
    // The CRC-32 of IEEE 802.3 of `order/4711` and `order/ä/ö`, computed elsewhere.
    assert_eq!(parts, [CRC_4711 % 64, CRC_UMLAUTS % 64].map(|crc: u32| u8::try_from(crc).unwrap()));
    place.drop().await;
}

const CRC_4711: u32 = 0x5c89_9eaf;
const CRC_UMLAUTS: u32 = 0xd3e6_0191;

async fn two_processes_may_migrate_at_once_and_again(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    let stores = [place.store.clone(), place.store.clone(), place.store.clone(), place.store.clone()];
    let migrations = stores.map(|store| tokio::spawn(async move { store.migrate().await }));
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox_partitions").await, 64);
    place.drop().await;
}

async fn the_printed_statements_make_the_same_tables_and_may_be_run_again(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
    let sql = migration_sql(&place.config);
    place.run(&sql).await;
    place.commit(&[event("1")]).await;
    place.run(&sql).await;
    assert_eq!(place.store.check().await.unwrap(), []);
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, 1);
    place.drop().await;
}

async fn a_newer_schema_is_refused_by_its_version_and_an_older_one_is_upgraded(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.run("UPDATE outbox_meta SET value = 7 WHERE name = 'schema_version'").await;
    let error = place.store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("version 7, newer than 2"), "{error}");
    // A migration that ended half-way: these databases commit each definition by itself.
    place
        .run("UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'; DROP TABLE outbox_topics")
        .await;
    place.store.migrate().await.unwrap();
    assert_eq!(place.store.check().await.unwrap(), []);
    place.drop().await;
}

async fn without_tables_the_error_says_what_to_do(server: Server) {
    let Some(place) = Place::empty(server).await else { return };
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

async fn several_outboxes_stand_beside_each_other(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    // By table in the same database, and by a database that is not the one of the connection.
    let other_schema = format!("{}_b", &place.schema[..38]);
    let beside = MysqlConfig::builder().url(&place.url).table("billing").build().unwrap();
    let elsewhere = MysqlConfig::builder().url(&place.url).schema(&other_schema).build().unwrap();
    place.commit(&[event("1")]).await;
    for (config, count) in [(&beside, 2), (&elsewhere, 3)] {
        let store = MysqlStore::connect_lazy(config).await.unwrap();
        store.migrate().await.unwrap();
        assert_eq!(store.check().await.unwrap(), []);
        let events: Vec<Event> = (0..count).map(|n: u8| event(&n.to_string())).collect();
        let mut transaction = place.pool.begin().await.unwrap();
        MysqlOutbox::new(config).enqueue_all(&mut transaction, &events).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(store.stats().await.unwrap().pending, u64::from(count));
    }
    assert_eq!(place.store.stats().await.unwrap().pending, 1);
    place.run(&format!("DROP DATABASE {other_schema}")).await;
    place.drop().await;
}
