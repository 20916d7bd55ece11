//! The way through the table, where it is this store's own: the position, and what lies behind it.

use std::time::Duration;

use crate::common::{TestDatabase, TestRelay, event, key, retry, sequences};
use outbox_core::{
    OutboxAdmin, OutboxStore,
    store::{HoldEnd, Outcome, SettleRequest, Unhold},
};
use outbox_sqlite::SqliteOutbox;

fn enqueue(database: &TestDatabase, ids: &[&str]) {
    let mut connection = database.connect();
    let transaction = connection.transaction().unwrap();
    let events: Vec<_> = ids.iter().map(|id| event(id)).collect();
    SqliteOutbox::new(&database.config).enqueue_all(&transaction, &events).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_removed_hold_gives_back_what_lies_behind_the_position_in_order() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b", "a", "a"]);
    let mut relay = TestRelay::new(database.store()).await;
    let rows = relay.fetch().await.rows;
    assert_eq!(sequences(&rows), [1, 2, 3, 4]);
    relay.settle(&rows[1..2], Outcome::Sent).await;
    relay.settle(&rows[..1], retry(Duration::ZERO)).await;
    enqueue(&database, &["a", "b"]);
    let held = relay.fetch().await;
    assert_eq!(sequences(&held.rows), [6]);
    let [hold] = &held.due_holds[..] else { panic!("{held:?}") };
    assert_eq!((&hold.key, hold.sequence, hold.row.as_ref().unwrap().attempts), (&key("a"), Some(1), 1));

    // The settle that ends the hold has committed, but the reader is told only by the next request: nothing
    // of the aggregate may overtake what lies behind the position.
    relay.settle(std::slice::from_ref(hold.row.as_ref().unwrap()), Outcome::Sent).await;
    enqueue(&database, &["a"]);
    let request = relay.request().with_known(vec![6]);
    assert_eq!(sequences(&relay.reader.fetch(request).await.unwrap().rows), [0_i64; 0]);
    let ended_holds = vec![HoldEnd::new(key("a"), 0, true)];
    let request = relay.request().with_known(vec![6]).with_ended_holds(ended_holds).with_events_max(2);
    let fetched = relay.reader.fetch(request).await.unwrap();
    assert_eq!((sequences(&fetched.rows), fetched.more), (vec![3], true));
    let request = relay.request().with_known(vec![3, 6]);
    assert_eq!(sequences(&relay.reader.fetch(request).await.unwrap().rows), [4, 5, 7]);
}

#[tokio::test]
async fn a_scheduled_event_joins_its_aggregate_before_later_ones() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b", "a"]);
    let connection = database.connect();
    let hour = 3_600_000_000_i64;
    let now: i64 = connection.query_row("SELECT min(created_at) FROM outbox", [], |row| row.get(0)).unwrap();
    let schedule = "UPDATE outbox SET available_at = ?2 WHERE sequence = ?1";
    connection.execute(schedule, (1, now + hour)).unwrap();
    let mut relay = TestRelay::new(database.store()).await;
    let fetched = relay.fetch().await;
    assert_eq!(sequences(&fetched.rows), [2, 3]);
    let next_due = fetched.next_due.unwrap();
    assert!(next_due <= Duration::from_secs(3_600) && next_due > Duration::from_secs(3_000), "{next_due:?}");
    // Its time comes: an hour cannot be waited for, so the row is moved instead, to a time that no reader has
    // passed.
    let past = "UPDATE outbox SET available_at = (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000) + 2000 \
                WHERE sequence = 1 RETURNING available_at";
    let _: i64 = connection.query_row(past, [], |row| row.get(0)).unwrap();
    enqueue(&database, &["a"]);
    let mut seen = Vec::new();
    // Bounded: the clock passes those two milliseconds within these requests, or the test fails.
    for _ in 0..10_000 {
        let mut known = [vec![2, 3], seen.clone()].concat();
        known.sort_unstable();
        let fetched = relay.reader.fetch(relay.request().with_known(known)).await.unwrap();
        seen.extend(sequences(&fetched.rows));
        if seen.contains(&1) {
            break;
        }
    }
    assert!(seen.contains(&1) && seen.contains(&4) && seen.len() == 2, "{seen:?}");
}

#[tokio::test]
async fn a_paused_aggregate_is_passed_by_and_found_again() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b", "a"]);
    let mut relay = TestRelay::new(database.store()).await;
    relay.store.pause(&key("a")).await.unwrap();
    let fetched = relay.fetch().await;
    assert_eq!((sequences(&fetched.rows), fetched.paused), (vec![2], vec![key("a")]));
    assert_eq!(relay.fetch().await.paused, []);
    assert!(relay.store.resume(&key("a")).await.unwrap());
    let fetched = relay.fetch().await;
    let [hold] = &fetched.due_holds[..] else { panic!("{fetched:?}") };
    assert!(hold.sequence.is_none() && hold.row.is_none(), "{hold:?}");
    let request =
        SettleRequest::new(relay.id, vec![relay.lease]).with_unholds(vec![Unhold::new(key("a"), 0, None)]);
    relay.store.settle(&request).await.unwrap();
    let ended_holds = vec![HoldEnd::new(key("a"), 0, true)];
    let request = relay.request().with_ended_holds(ended_holds);
    assert_eq!(sequences(&relay.reader.fetch(request).await.unwrap().rows), [1, 3]);
}

#[tokio::test]
async fn a_hold_that_was_deleted_by_hand_lets_nothing_overtake() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b"]);
    let mut relay = TestRelay::new(database.store()).await;
    relay.store.pause(&key("a")).await.unwrap();
    assert_eq!(sequences(&relay.fetch().await.rows), [2]);
    assert_eq!(database.connect().execute("DELETE FROM outbox_holds", []).unwrap(), 1);
    enqueue(&database, &["a", "b"]);
    let request = relay.request().with_known(vec![2]);
    assert_eq!(sequences(&relay.reader.fetch(request).await.unwrap().rows), [4]);
    relay.reader = relay.store.reader(relay.id).await.unwrap();
    assert_eq!(sequences(&relay.fetch().await.rows), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_new_lease_starts_from_the_beginning() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b"]);
    let mut relay = TestRelay::new(database.store()).await;
    assert_eq!(sequences(&relay.fetch().await.rows), [1, 2]);
    assert_eq!(sequences(&relay.fetch().await.rows), [0_i64; 0]);
    relay.store.release(relay.id, &[relay.lease]).await.unwrap();
    relay.lease = relay.store.claim(relay.id, &[(0, relay.lease.epoch)]).await.unwrap()[0].lease;
    assert_eq!(sequences(&relay.fetch().await.rows), [1, 2]);
}

#[tokio::test]
async fn a_fetch_that_was_dropped_loses_nothing() {
    let database = TestDatabase::new();
    enqueue(&database, &["a", "b"]);
    let mut relay = TestRelay::new(database.store()).await;
    let request = relay.request();
    {
        let mut dropped = relay.reader.fetch(request);
        // Polled once, so that the work is on its way.
        assert!(futures::poll!(&mut dropped).is_pending() || cfg!(not(debug_assertions)));
    }
    assert_eq!(sequences(&relay.fetch().await.rows), [1, 2]);
}

#[tokio::test]
async fn a_long_parked_backlog_is_passed_by_in_bounded_steps() {
    let database = TestDatabase::new();
    let parked = vec!["parked"; 25_000];
    enqueue(&database, &parked);
    enqueue(&database, &["a"]);
    let mut relay = TestRelay::new(database.store()).await;
    relay.store.pause(&key("parked")).await.unwrap();
    let mut fetches = 0;
    loop {
        fetches += 1;
        let fetched = relay.fetch().await;
        if !fetched.rows.is_empty() {
            assert_eq!((sequences(&fetched.rows), fetched.more), (vec![25_001], false));
            break;
        }
        assert!(fetched.more, "the row was not found in {fetches} fetches");
    }
    assert_eq!(fetches, 3);
}
