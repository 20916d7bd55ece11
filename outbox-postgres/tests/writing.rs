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
                 VALUES ('order', '7', 'order.changed', convert_to('{{\"path\": \"C:\\new\", \"n\": {n}}}', 'UTF8'))"
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

#[tokio::test]
async fn the_partition_is_the_same_in_every_database() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("4711"), event("ä/ö")]).await;
    let parts: Vec<i16> =
        sqlx::query_scalar("SELECT part FROM outbox ORDER BY sequence").fetch_all(&place.pool).await.unwrap();
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
    assert!(error.to_string().contains("version 7, newer than 1"), "{error}");
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
