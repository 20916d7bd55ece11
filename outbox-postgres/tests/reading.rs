//! The reader and the settle: what is PostgreSQL's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use outbox_core::{
    Enqueue as _, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, StoreErrorKind, WhenSent,
    store::{HoldEnd, HoldReason, OutboxReader, Outcome, PurgeRequest, Status, Unhold},
};
use outbox_postgres::PostgresStore;
use sqlx::{Connection as _, PgConnection};
use support::{Place, event, key, request, sequences, settle};

/// Asks until there is something, for ten seconds at most.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn whatever_stands_in_a_row_it_fails_alone() {
    let Some(place) = Place::new().await else { return };
    for (column, value) in [
        ("headers", "'[1]'"),
        ("headers", "'{\"a\": 1}'"),
        ("headers", "'{\"a b\": \"c\"}'"),
        ("version", "0"),
        ("event_type", "''"),
        ("created_at", "'infinity'"),
        ("created_at", "'-infinity'"),
        ("aggregate_id", "''"),
    ] {
        let (name, number) = (column, place.number("SELECT count(*) FROM outbox").await);
        let columns = [("aggregate_type", "'order'".to_owned()), ("aggregate_id", format!("'{number}'"))];
        let others = [("event_type", "'e'".to_owned()), ("payload", "'{}'".to_owned())];
        let mut row: Vec<_> = columns.into_iter().chain(others).filter(|(n, _)| *n != name).collect();
        row.push((name, value.to_owned()));
        let (names, values): (Vec<_>, Vec<_>) = row.into_iter().unzip();
        place.run(&format!("INSERT INTO outbox ({}) VALUES ({})", names.join(", "), values.join(", "))).await;
    }
    place.commit(&[event("good")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), 9);
    for row in &rows[..8] {
        assert!(row.content.is_err(), "{row:?}");
    }
    assert!(rows[8].content.is_ok());
    place.drop().await;
}

#[tokio::test]
async fn a_row_with_both_payloads_fails_alone() {
    let Some(place) = Place::new().await else { return };
    let both = |text: usize, binary: usize| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, payload_binary) \
             VALUES ('order', '{text}/{binary}', 'e', repeat('a', {text}), repeat('b', {binary})::bytea)"
        )
    };
    for (text, binary) in [(0, 0), (10, 10), (10, 20_000), (20_000, 10), (20_000, 20_000)] {
        place.run(&both(text, binary)).await;
    }
    place.commit(&[event("good")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), 6);
    for row in &rows[..5] {
        let problem = row.content.as_ref().unwrap_err();
        assert!(problem.contains("payload and payload_binary are both set"), "{problem}");
    }
    assert!(rows[5].content.is_ok());
    place.drop().await;
}

#[tokio::test]
async fn an_event_scheduled_for_ever_and_one_since_ever() {
    let Some(place) = Place::new().await else { return };
    let insert = |at: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, available_at) \
             VALUES ('order', '1', 'e', '', '{at}')"
        )
    };
    place.run(&insert("infinity")).await;
    place.run(&insert("-infinity")).await;
    place.run(&insert("294276-01-01")).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), [2]);
    assert!(place.store.admin_list().await >= 3);
    place.drop().await;
}

trait AdminList {
    async fn admin_list(&self) -> usize;
}

impl AdminList for PostgresStore {
    async fn admin_list(&self) -> usize {
        self.list(&outbox_core::EventFilter::default(), 10).await.unwrap().len()
    }
}

#[tokio::test]
async fn large_payloads_are_read_whole_and_within_the_limit() {
    let Some(place) = Place::new().await else { return };
    // Every other one is a text; of both kinds some are at the border of what comes with its row.
    let bytes = |n: usize| u8::try_from(n + if n.is_multiple_of(2) { 0x80 } else { 0x40 }).unwrap();
    let size = |n: usize| if n < 16 { 100_000 } else { 8_191 + n % 4 };
    let large = |n: usize| {
        Event::builder("order", n.to_string(), "e").payload(vec![bytes(n); size(n)]).build().unwrap()
    };
    place.commit(&(0..20).map(large).collect::<Vec<_>>()).await;
    place.commit(&[Event::tombstone("order", "gone", "e").build().unwrap()]).await;
    assert_eq!(place.number("SELECT count(payload) FROM outbox").await, 10);
    assert_eq!(place.number("SELECT count(payload_binary) FROM outbox").await, 10);
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let (mut known, mut read) = (Vec::new(), Vec::new());
    while read.len() < 21 {
        let request = request(&leases).with_bytes_max(300_000).with_known(known.clone());
        let fetched = reader.fetch(request).await.unwrap();
        let bytes: usize = fetched.rows.iter().map(|row| row.bytes()).sum();
        assert!(!fetched.rows.is_empty() && bytes < 400_000, "{bytes}");
        known.extend(sequences(&fetched.rows));
        read.extend(fetched.rows);
    }
    let tombstone = read.pop().unwrap().content.unwrap();
    assert_eq!(tombstone.payload, None);
    for (n, row) in read.iter().enumerate() {
        let payload = row.content.as_ref().unwrap().body();
        assert!(payload.len() == size(n) && payload.iter().all(|byte| *byte == bytes(n)), "{n}");
    }
    place.drop().await;
}

#[tokio::test]
async fn a_reader_whose_fetch_was_dropped_is_of_no_more_use() {
    let Some(place) = Place::new().await else { return };
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let mut fetch = Box::pin(reader.fetch(request(&leases)));
    assert!(futures::poll!(&mut fetch).is_pending());
    drop(fetch);
    let error = reader.fetch(request(&leases)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misuse);
    place.drop().await;
}

#[tokio::test]
async fn a_settle_that_is_dropped_leaves_nothing_locked() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("1"), event("2")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    let request = settle(relay, &leases, &rows, &retry);
    for polls in 1..40 {
        let mut settling = Box::pin(place.store.settle(&request));
        for _ in 0..polls {
            if futures::poll!(&mut settling).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let settled = place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
    assert!(settled.fenced.is_empty());
    assert_eq!(place.number("SELECT count(*) FROM outbox WHERE status = 1").await, 2);
    assert_eq!(place.number("SELECT count(*) FROM outbox_holds").await, 0);
    place.drop().await;
}

#[tokio::test]
async fn an_error_text_that_postgresql_cannot_store_is_stored_all_the_same() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let error = format!("nul \0 and {}", "long ".repeat(10_000));
    let retry = Outcome::Retry { after: Duration::MAX, error, reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
    let kept = place.number("SELECT length(last_error) FROM outbox").await;
    assert!((1_000..5_000).contains(&kept), "{kept}");
    place.drop().await;
}

#[tokio::test]
async fn the_next_reader_begins_at_the_floor_and_not_below() {
    let Some(place) = Place::new().await else { return };
    place.commit(&(0..100).map(|n| event(&n.to_string())).collect::<Vec<_>>()).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    place.store.settle(&settle(relay, &leases, &rows[..60], &Outcome::Sent)).await.unwrap();
    let known = sequences(&rows[60..]);
    until(async || {
        reader.fetch(request(&leases).with_known(known.clone())).await.unwrap();
        (place.number("SELECT min(floor) FROM outbox_partitions").await == 60).then_some(())
    })
    .await;
    let mut next = place.store.reader(relay).await.unwrap();
    assert_eq!(sequences(&next.fetch(request(&leases)).await.unwrap().rows), known);
    place.drop().await;
}

/// Holds the first event, drains the others past it, and removes the hold; returns the reader.
async fn hold_and_release(place: &Place) -> (Box<dyn OutboxReader>, Vec<outbox_core::store::Lease>, HoldEnd) {
    place.commit(&[event("1"), event("1"), event("2")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry {
        after: Duration::from_secs(60),
        error: "no".to_owned(),
        reason: HoldReason::Backoff,
    };
    place.store.settle(&settle(relay, &leases, &rows[..1], &retry)).await.unwrap();
    place.store.settle(&settle(relay, &leases, &rows[2..], &Outcome::Sent)).await.unwrap();
    // Everything else is done, so the floor passes what is held.
    until(async || {
        assert!(reader.fetch(request(&leases)).await.unwrap().rows.is_empty());
        (place.number("SELECT min(floor) FROM outbox_partitions").await == 3).then_some(())
    })
    .await;
    place.run("UPDATE outbox_holds SET until = clock_timestamp()").await;
    let hold = reader.fetch(request(&leases)).await.unwrap().due_holds.remove(0);
    assert_eq!(hold.sequence, Some(1));
    let due = [hold.row.unwrap()];
    place.store.settle(&settle(relay, &leases, &due, &Outcome::Sent)).await.unwrap();
    let end = HoldEnd::new(key("1"), hold.partition, true);
    (reader, leases, end)
}

#[tokio::test]
async fn what_waited_behind_a_hold_survives_a_crash_after_its_end() {
    let Some(place) = Place::new().await else { return };
    let (mut reader, leases, _) = hold_and_release(&place).await;
    // The end is never told; the floors are written meanwhile.
    place.commit(&[event("2")]).await;
    let partition = place.number("SELECT partition FROM outbox WHERE sequence = 4").await;
    until(async || {
        let rows = reader.fetch(request(&leases)).await.unwrap().rows;
        assert!(rows.iter().all(|row| row.sequence == 4), "{rows:?}");
        let floor = format!("SELECT floor FROM outbox_partitions WHERE partition = {partition}");
        (place.number(&floor).await == 4).then_some(())
    })
    .await;
    drop(reader);
    let (relay, leases) = {
        place.run("UPDATE outbox_partitions SET owner = NULL").await;
        place.relay().await
    };
    let mut next = place.store.reader(relay).await.unwrap();
    let rows = next.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.first().map(|row| row.sequence), Some(2), "{rows:?}");
    place.drop().await;
}

#[tokio::test]
async fn a_scheduled_event_that_becomes_due_behind_a_hold_comes_with_its_end() {
    let Some(place) = Place::new().await else { return };
    let at = chrono::Utc::now() + Duration::from_hours(1);
    let scheduled = Event::builder("order", "1", "e").available_at(at).build().unwrap();
    place.commit(&[scheduled, event("2")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(sequences(&rows), [2]);
    place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
    // The floor passes the scheduled event, so that the hold begins above it.
    until(async || {
        reader.fetch(request(&leases)).await.unwrap();
        (place.number("SELECT min(floor) FROM outbox_partitions").await == 2).then_some(())
    })
    .await;
    place.store.pause(&key("1")).await.unwrap();
    assert_eq!(place.number("SELECT from_sequence FROM outbox_holds").await, 3);
    // Only now is its time near, so that it cannot come earlier, however slow the machine is.
    place.run("UPDATE outbox SET available_at = clock_timestamp() + interval '2 s' WHERE sequence = 1").await;
    until(async || {
        let due = place.number("SELECT count(*) FROM outbox WHERE available_at < clock_timestamp()").await;
        assert!(reader.fetch(request(&leases)).await.unwrap().rows.is_empty());
        (due == 1).then_some(())
    })
    .await;
    reader.fetch(request(&leases)).await.unwrap();
    place.store.resume(&key("1")).await.unwrap();
    let hold = reader.fetch(request(&leases)).await.unwrap().due_holds.remove(0);
    let mut end = settle(relay, &leases, &[], &Outcome::Sent);
    end.unholds = vec![Unhold::new(key("1"), hold.partition, None)];
    place.store.settle(&end).await.unwrap();
    let ended = HoldEnd::new(key("1"), hold.partition, true);
    let mut ended_holds = vec![ended];
    let rows = until(async || {
        let request = request(&leases).with_ended_holds(std::mem::take(&mut ended_holds));
        let rows = reader.fetch(request).await.unwrap().rows;
        (!rows.is_empty()).then_some(rows)
    })
    .await;
    assert_eq!(sequences(&rows), [1]);
    place.drop().await;
}

/// What becomes visible late behind a pass waits for its turn, however many rows that are and however few a
/// fetch takes.
#[tokio::test]
async fn late_rows_behind_a_pass_are_returned_all() {
    let Some(place) = Place::new().await else { return };
    for ends in ["hold", "full"] {
        place
            .run("TRUNCATE outbox RESTART IDENTITY; UPDATE outbox_partitions SET owner = NULL, floor = 0")
            .await;
        let mut writer = place.pool.begin().await.unwrap();
        let late: Vec<_> = (0..10).map(|_| event("1")).collect();
        place.outbox.enqueue_all(&mut writer, &late).await.unwrap();
        place.commit(&(0..30).map(|_| event("1")).collect::<Vec<_>>()).await;
        let (relay, leases) = place.relay().await;
        let mut reader = place.store.reader(relay).await.unwrap();
        let mut known = Vec::new();
        let small = |known: &[i64]| request(&leases).with_known(known.to_vec()).with_events_max(4);
        let first = request(&leases).with_events_max(1);
        let rows = reader.fetch(first).await.unwrap().rows;
        let mut next = small(&[]);
        if ends == "hold" {
            let retry =
                Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
            place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
            let hold = reader.fetch(request(&leases)).await.unwrap().due_holds.remove(0);
            place.store.settle(&settle(relay, &leases, &[hold.row.unwrap()], &Outcome::Sent)).await.unwrap();
            next.ended_holds = vec![HoldEnd::new(key("1"), hold.partition, true)];
        } else {
            place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
            let full = request(&leases).with_full(vec![key("1")]);
            assert!(reader.fetch(full).await.unwrap().rows.is_empty());
        }
        let rows = reader.fetch(next).await.unwrap().rows;
        assert_eq!(sequences(&rows), [12, 13], "{ends}: the pass has begun");
        known.extend(sequences(&rows));
        writer.commit().await.unwrap();
        for _ in 0..50 {
            known.extend(sequences(&reader.fetch(small(&known)).await.unwrap().rows));
            known.sort_unstable();
        }
        let all: Vec<i64> = (1..=10).chain(12..=40).collect();
        assert_eq!(known, all, "{ends}: each row once");
    }
    place.drop().await;
}

#[tokio::test]
async fn a_new_reader_knows_what_the_old_one_had_returned() {
    let Some(place) = Place::new().await else { return };
    let (reader, leases, end) = hold_and_release(&place).await;
    let relay: uuid::Uuid = sqlx::query_scalar("SELECT owner FROM outbox_partitions LIMIT 1")
        .fetch_one(&place.pool)
        .await
        .unwrap();
    let relay = outbox_core::store::RelayId(relay);
    drop(reader);
    // The end of the hold is told to the new reader, or not at all.
    for ended_holds in [vec![end], Vec::new()] {
        let mut next = place.store.reader(relay).await.unwrap();
        let request = request(&leases).with_ended_holds(ended_holds);
        assert_eq!(sequences(&next.fetch(request).await.unwrap().rows), [2]);
    }
    place.drop().await;
}

#[tokio::test]
async fn a_hold_that_is_out_is_not_returned_again() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
    assert_eq!(reader.fetch(request(&leases)).await.unwrap().due_holds.len(), 1);
    let out = request(&leases).with_known(sequences(&rows));
    assert_eq!(reader.fetch(out.clone()).await.unwrap().due_holds.len(), 0);
    // Nor by the next reader, which the relay's hint tells of it; without the hint it is.
    drop(reader);
    let mut reader = place.store.reader(relay).await.unwrap();
    assert_eq!(reader.fetch(out).await.unwrap().due_holds.len(), 0);
    drop(reader);
    let mut reader = place.store.reader(relay).await.unwrap();
    assert_eq!(reader.fetch(request(&leases)).await.unwrap().due_holds.len(), 1);
    place.drop().await;
}

#[tokio::test]
async fn a_writer_that_stays_open_is_waited_for_and_nothing_else_is() {
    let Some(place) = Place::new().await else { return };
    let mut writer = PgConnection::connect(&place.url).await.unwrap();
    support::execute(&mut writer, &format!("SET search_path = {}; BEGIN", place.schema)).await;
    let insert = |id: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
             VALUES ('order', '{id}', 'e', '')"
        )
    };
    support::execute(&mut writer, &insert("late")).await;
    place.commit(&[event("1"), event("2")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(sequences(&rows), [2, 3]);
    place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
    place.commit(&[event("3")]).await;
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), [4]);
    let known = request(&leases).with_known(vec![4]);
    assert!(reader.fetch(known.clone()).await.unwrap().rows.is_empty());
    support::execute(&mut writer, &format!("{}; COMMIT", insert("late"))).await;
    assert_eq!(sequences(&reader.fetch(known.clone()).await.unwrap().rows), [1, 5]);
    place.drop().await;
}

#[tokio::test]
async fn a_sequence_that_was_reset_is_an_error_and_not_a_silence() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("1"), event("2")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    reader.fetch(request(&leases)).await.unwrap();
    place.run("TRUNCATE outbox RESTART IDENTITY").await;
    place.commit(&[event("1")]).await;
    let error = reader.fetch(request(&leases)).await.unwrap_err();
    assert!(error.to_string().contains("it was reset"), "{error}");
    place.drop().await;
}

#[tokio::test]
async fn a_purge_walks_on_and_comes_round() {
    let Some(place) = Place::new().await else { return };
    place.commit(&(0..3_000).map(|n| event(&n.to_string())).collect::<Vec<_>>()).await;
    place.run("UPDATE outbox SET status = 1, sent_at = now() WHERE sequence % 3 <> 0").await;
    let all = PurgeRequest::new(700).with_sent(Some((Duration::ZERO, outbox_core::Disposal::Delete)));
    let mut removed = Vec::new();
    for _ in 0..4 {
        removed.push(place.store.purge(all).await.unwrap().sent);
    }
    assert_eq!(removed, [700, 700, 600, 0]);
    // What is sent later, below the place where the last purge stopped, is found too.
    place.run("UPDATE outbox SET status = 1, sent_at = now() WHERE sequence IN (3, 1500, 3000)").await;
    assert_eq!(place.store.purge(all).await.unwrap().sent, 3);
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 997);
    place.drop().await;
}

#[tokio::test]
async fn a_pool_of_ones_own_is_left_as_it_is() {
    let Some(place) = Place::new().await else { return };
    let store = PostgresStore::new(place.pool.clone(), &place.config);
    let relay = store.join(Duration::from_secs(60)).await.unwrap();
    let leases = place.claim_all(relay).await;
    place.commit(&[event("1")]).await;
    let mut reader = store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let mut sent = settle(relay, &leases, &rows, &Outcome::Sent);
    sent.when_sent = WhenSent::Delete;
    store.settle(&sent).await.unwrap();
    let timeout: String = sqlx::query_scalar("SHOW statement_timeout").fetch_one(&place.pool).await.unwrap();
    assert_eq!(timeout, "0");
    place.drop().await;
}

#[tokio::test]
async fn an_unhold_of_a_hold_that_was_paused_meanwhile_does_nothing() {
    let Some(place) = Place::new().await else { return };
    let (relay, leases) = place.relay().await;
    place.store.pause(&key("1")).await.unwrap();
    let partition = u16::try_from(place.number("SELECT partition FROM outbox_holds").await).unwrap();
    let mut request = settle(relay, &leases, &[], &Outcome::Sent);
    request.unholds = vec![Unhold::new(key("1"), partition, None)];
    place.store.settle(&request).await.unwrap();
    assert_eq!(place.store.holds(10).await.unwrap().len(), 1);
    place.store.resume(&key("1")).await.unwrap();
    place.store.settle(&request).await.unwrap();
    assert_eq!(place.store.holds(10).await.unwrap().len(), 0);
    place.drop().await;
}

/// The longest names that there can be, of an event whose publish fails.
#[tokio::test]
async fn a_hold_takes_the_longest_names() {
    let Some(place) = Place::new().await else { return };
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type) \
                  SELECT repeat(c, 255 / octet_length(c)), repeat(c, 255 / octet_length(c)), 'e' \
                  FROM unnest(ARRAY['a', 'ä', '🦀']) c";
    place.run(insert).await;
    // What the index cannot make shorter.
    let random = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type) \
                  SELECT left(string_agg(md5(random()::text), ''), 255), left(string_agg(md5(random()::text), ''), 255), \
                         'e' FROM generate_series(1, 8)";
    place.run(random).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), 4);
    let retry = Outcome::Retry { after: Duration::MAX, error: "no".to_owned(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
    assert_eq!(place.store.holds(10).await.unwrap().len(), 4);
    place.drop().await;
}

/// The same sequence with another id, as after a reset of the sequence, and the same event once more, as
/// after a restore: by a settle of sent events, by one that touches a hold, and by retention.
#[tokio::test]
async fn the_archive_takes_what_comes_twice() {
    let Some(place) = Place::new().await else { return };
    place.commit(&(0..8).map(|n| event(&n.to_string())).collect::<Vec<_>>()).await;
    let archive = "INSERT INTO outbox_archive (sequence, id, aggregate_type, aggregate_id, event_type, version, \
                     created_at, status, attempts, archived_at) \
                   SELECT sequence, CASE WHEN sequence % 2 = 0 THEN id ELSE gen_random_uuid() END, aggregate_type, \
                          aggregate_id, event_type, version, created_at, 1, 0, now() FROM outbox";
    place.run(archive).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let archived = |rows: &[outbox_core::store::Row]| {
        let mut request = settle(relay, &leases, rows, &Outcome::Sent);
        request.when_sent = WhenSent::Archive;
        request
    };
    place.store.settle(&archived(&rows[..2])).await.unwrap();
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows[2..4], &retry)).await.unwrap();
    place.store.settle(&archived(&rows[2..4])).await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM outbox_holds").await, 0, "each is taken for done");
    place.run("UPDATE outbox SET status = 1, sent_at = now() WHERE sequence IN (5, 6)").await;
    let failed = Outcome::Failed {
        error: "no".to_owned(),
        cause: outbox_core::store::FailureCause::Permanent,
        successors: outbox_core::store::Successors::Release,
    };
    place.store.settle(&settle(relay, &leases, &rows[6..], &failed)).await.unwrap();
    let listed = place.store.list(&EventFilter::default().with_status(Status::Failed), 10).await.unwrap();
    let purge = (Duration::ZERO, outbox_core::Disposal::Archive);
    let all = PurgeRequest::new(100).with_sent(Some(purge)).with_failed(Some(purge));
    let purged = place.store.purge(all).await.unwrap();
    assert_eq!((purged.sent, purged.failed), (2, 2));
    assert_eq!(place.number("SELECT count(*) FROM outbox").await, 0);
    // Of an odd sequence both events are there, and each page ends with a whole sequence.
    let filter = EventFilter::default().in_archive();
    let (mut sequences, mut after) = (Vec::new(), None);
    loop {
        let page = place.store.list(&filter.clone().after(after), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.sequence);
        sequences.extend(page.iter().map(|record| record.sequence));
    }
    assert_eq!(sequences, [1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8]);
    let at = listed[0].failed_at;
    let moved = place
        .store
        .list(&EventFilter::id(rows[6].content.as_ref().unwrap().id).in_archive(), 1)
        .await
        .unwrap();
    assert!(at.is_some() && moved[0].failed_at == at, "{moved:?}");
    place.drop().await;
}
