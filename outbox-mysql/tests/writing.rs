//! The writer's side and the tables: what is these databases' own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_core::{Enqueue as _, EnqueueError, Event, OutboxStore as _, StoreErrorKind};
use outbox_mysql::{MysqlConfig, MysqlOutbox, MysqlStore, migration_sql};
use support::{Place, Server, event, on_both, request, sequences};
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

async fn the_partition_is_the_same_in_every_database(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("4711"), event("ä/ö")]).await;
    let parts: Vec<u8> =
        sqlx::query_scalar("SELECT part FROM outbox ORDER BY sequence").fetch_all(&place.pool).await.unwrap();
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
    assert!(error.to_string().contains("version 7, newer than 1"), "{error}");
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
