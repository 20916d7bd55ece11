//! Writing events in the service's own transaction.

use crate::common::{TestDatabase, event};
use chrono::{DateTime, Utc};
use outbox_core::{Enqueue, EnqueueError, Event, StoreErrorKind};
use outbox_sqlite::{SqliteConfig, SqliteOutbox};
use rusqlite::{Connection, TransactionBehavior};

fn count(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).unwrap()
}

#[test]
fn outside_a_transaction_is_refused() {
    let database = TestDatabase::new();
    let (outbox, connection) = (SqliteOutbox::new(&database.config), database.connect());
    assert!(matches!(outbox.enqueue(&connection, &event("1")), Err(EnqueueError::NoTransaction)));
    assert!(matches!(outbox.enqueue_all(&connection, &[event("1")]), Err(EnqueueError::NoTransaction)));
    connection.execute_batch("BEGIN").unwrap();
    assert_eq!(outbox.enqueue(&connection, &event("1")).unwrap(), 1);
    connection.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&connection), 1);
}

#[test]
fn events_live_and_die_with_the_transaction() {
    let database = TestDatabase::new();
    let (outbox, mut connection) = (SqliteOutbox::new(&database.config), database.connect());
    let transaction = connection.transaction().unwrap();
    outbox.enqueue(&transaction, &event("1")).unwrap();
    transaction.rollback().unwrap();
    assert_eq!(count(&connection), 0);
    let transaction = connection.transaction().unwrap();
    let sequences = outbox.enqueue_all(&transaction, &[event("1"), event("2"), event("1")]).unwrap();
    assert!(sequences.is_sorted() && sequences.len() == 3, "{sequences:?}");
    transaction.commit().unwrap();
    assert_eq!(count(&connection), 3);
}

#[test]
fn every_field_is_stored_as_given() {
    let database = TestDatabase::new();
    let (outbox, mut connection) = (SqliteOutbox::new(&database.config), database.connect());
    let at: DateTime<Utc> = "2030-01-02T03:04:05.678901Z".parse().unwrap();
    let event = Event::builder("order", "ä/1", "placed")
        .version(3)
        .payload(vec![0, 255])
        .content_type("application/x")
        .header("b", "2")
        .header("a", "\"1\"")
        .topic("orders")
        .available_at(at)
        .build()
        .unwrap();
    let transaction = connection.transaction().unwrap();
    outbox.enqueue(&transaction, &event).unwrap();
    transaction.commit().unwrap();
    type Stored = (String, String, String, String, i32, Vec<u8>, String, String, String, i64);
    let stored: Stored = connection
        .query_row(
            "SELECT id, aggregate_type, aggregate_id, event_type, version, payload, content_type, headers, topic, \
             available_at FROM outbox",
            [],
            |row| row.try_into(),
        )
        .unwrap();
    let expected: Stored = (
        event.id().to_string(),
        "order".into(),
        "ä/1".into(),
        "placed".into(),
        3,
        vec![0, 255],
        "application/x".into(),
        r#"{"a":"\"1\"","b":"2"}"#.into(),
        "orders".into(),
        at.timestamp_micros(),
    );
    assert_eq!(stored, expected);
}

#[test]
fn a_refused_batch_leaves_nothing_and_the_transaction_goes_on() {
    let database = TestDatabase::new();
    let (outbox, mut connection) = (SqliteOutbox::new(&database.config), database.connect());
    let transaction = connection.transaction().unwrap();
    let first = event("1");
    outbox.enqueue(&transaction, &first).unwrap();
    let error = outbox.enqueue_all(&transaction, &[event("2"), first.clone(), event("3")]).unwrap_err();
    assert!(matches!(error, EnqueueError::Duplicate(id) if id == first.id()), "{error:?}");
    assert_eq!(count(&transaction), 1);
    outbox.enqueue(&transaction, &event("4")).unwrap();
    transaction.commit().unwrap();
    assert_eq!(count(&connection), 2);
}

#[test]
fn a_payload_over_the_limit_is_refused_before_it_is_sent() {
    let database = TestDatabase::new();
    let config = SqliteConfig::builder(database.config.path()).payload_bytes_max(1).build().unwrap();
    let (outbox, mut connection) = (SqliteOutbox::new(&config), database.connect());
    let transaction = connection.transaction().unwrap();
    let error = outbox.enqueue(&transaction, &event("1")).unwrap_err();
    assert_eq!(error.to_string(), "payload has 2 bytes, more than the limit of 1");
    assert!(matches!(outbox.enqueue_all(&transaction, &[event("1")]), Err(EnqueueError::Event(_))));
    assert_eq!(count(&transaction), 0);
}

#[test]
fn a_writer_in_the_way_is_a_conflict_and_a_missing_table_asks_for_the_migration() {
    let database = TestDatabase::new();
    let outbox = SqliteOutbox::new(&database.config);
    let (mut one, mut other) = (database.connect(), database.connect());
    other.busy_timeout(std::time::Duration::ZERO).unwrap();
    let transaction = one.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    outbox.enqueue(&transaction, &event("1")).unwrap();
    let waiting = other.transaction().unwrap();
    let error = outbox.enqueue(&waiting, &event("2")).unwrap_err();
    let kind = |error: &EnqueueError| match error {
        EnqueueError::Store(error) => Some(error.kind()),
        _ => None,
    };
    assert_eq!(kind(&error), Some(StoreErrorKind::Conflict), "{error}");
    drop(waiting);
    drop(transaction);
    let empty = TestDatabase::empty();
    let mut connection = empty.connect();
    let error = outbox.enqueue(&connection.transaction().unwrap(), &event("1")).unwrap_err();
    assert_eq!(kind(&error), Some(StoreErrorKind::Schema), "{error}");
}

/// Code that knows no store.
async fn place<T, O: Enqueue<T> + Sync>(outbox: &O, transaction: &mut T) -> i64 {
    outbox.enqueue(transaction, &event("1")).await.unwrap();
    outbox.enqueue_all(transaction, &[event("2"), event("3")]).await.unwrap()[1]
}

#[tokio::test]
async fn the_trait_writes_in_the_transaction_and_its_futures_are_send() {
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    let database = TestDatabase::new();
    let (outbox, mut connection) = (SqliteOutbox::new(&database.config), database.connect());
    let mut transaction = connection.transaction().unwrap();
    let first = event("0");
    let one = is_send(Enqueue::enqueue(&outbox, &mut transaction, &first));
    one.await.unwrap();
    assert_eq!(place(&outbox, &mut transaction).await, 4);
    transaction.commit().unwrap();
    assert_eq!(count(&connection), 4);
}
