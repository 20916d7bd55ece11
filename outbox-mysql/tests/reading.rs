//! The reader and the settle: what is these databases' own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use outbox_core::{
    Disposal, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, StoreErrorKind, WhenSent,
    store::{
        FULL_MAX, FailureCause, HoldReason, Outcome, PurgeRequest, Sequence, Successors, storable_error,
    },
};
use outbox_mysql::MysqlStore;
use sqlx::{Connection as _, MySqlConnection, Row as _, mysql::MySqlPoolOptions};
use support::{Place, Server, event, execute, key, on_both, request, sequences, settle};

on_both! {
    whatever_stands_in_a_row_it_fails_alone
    a_name_that_the_server_alone_takes_for_utf8_can_be_parked
    the_archive_takes_what_comes_twice
    an_event_scheduled_for_ever_and_one_since_ever
    large_payloads_are_read_whole_and_within_the_limit
    what_is_held_far_apart_keeps_nothing_from_being_read
    aggregates_that_are_full_are_left_out_until_they_are_not
    a_hold_that_is_out_is_not_returned_again_but_to_a_new_reader
    a_reader_whose_fetch_was_dropped_is_of_no_more_use
    a_settle_that_is_dropped_leaves_nothing_locked
    a_settle_waits_for_a_claim_and_is_fenced_by_it
    a_relay_that_freezes_in_a_settle_is_thrown_out
    an_error_text_of_any_characters_is_stored
    a_purge_passes_by_what_is_young
    a_pool_of_ones_own_is_left_as_it_is
}

/// Asks until there is something, for twenty seconds at most.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn whatever_stands_in_a_row_it_fails_alone(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let wrong = [
        ("headers", "'[1]'"),
        ("headers", "'{\"a\": 1}'"),
        ("headers", "'{\"a b\": \"c\"}'"),
        ("version", "0"),
        ("event_type", "''"),
        ("aggregate_type", "''"),
        ("aggregate_id", "''"),
        ("created_at", "'0000-00-00'"),
        ("payload_binary", "''"),
        // No check may name a column that counts.
        ("sequence", "-7"),
        ("sequence", "0"),
    ];
    for (n, (name, value)) in wrong.into_iter().enumerate() {
        let columns = [("aggregate_type", "'order'".to_owned()), ("aggregate_id", format!("'{n}'"))];
        let others = [("event_type", "'e'".to_owned()), ("payload", "'{}'".to_owned())];
        let mut row: Vec<_> = columns.into_iter().chain(others).filter(|(n, _)| *n != name).collect();
        row.push((name, value.to_owned()));
        let (names, values): (Vec<_>, Vec<_>) = row.into_iter().unzip();
        let insert = format!("INSERT INTO outbox ({}) VALUES ({})", names.join(", "), values.join(", "));
        place
            .run(&format!(
                "SET @mode = @@sql_mode, sql_mode = 'NO_AUTO_VALUE_ON_ZERO'; {insert}; SET sql_mode = @mode"
            ))
            .await;
    }
    place.commit(&[event("good")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), wrong.len() + 1);
    for row in &rows[..wrong.len()] {
        assert!(row.content.is_err(), "{row:?}");
    }
    assert!(rows[wrong.len()].content.is_ok());
    let both =
        rows[..wrong.len()].iter().find_map(|row| row.content.as_ref().err().filter(|e| e.contains("both")));
    assert!(both.unwrap().contains("payload and payload_binary"), "{both:?}");
    // They can be given up, parked and listed like any other.
    let (cause, error) = (FailureCause::Undecodable, "no".to_owned());
    let failed = Outcome::Failed { cause, error, successors: Successors::Park };
    place.store.settle(&settle(relay, &leases, &rows[..wrong.len()], &failed)).await.unwrap();
    assert_eq!(place.store.list(&EventFilter::default(), 100).await.unwrap().len(), rows.len());
    assert_eq!(place.store.holds(100).await.unwrap().len(), wrong.len());
    assert_eq!(place.store.requeue(&EventFilter::default()).await.unwrap(), wrong.len() as u64);
    place.drop().await;
}

/// MariaDB takes the halves of surrogate pairs for characters, which UTF-8 has not, and none of them makes a
/// name longer than its column.
async fn a_name_that_the_server_alone_takes_for_utf8_can_be_parked(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type) VALUES ('order', REPEAT(X'EDA080', 85), 'e')";
    let inserted = sqlx::raw_sql(insert).execute(&place.pool).await;
    if server == Server::Mysql {
        let error = inserted.unwrap_err().to_string();
        assert!(error.contains("aggregate_id"), "{error}");
        return place.drop().await;
    }
    inserted.unwrap();
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let problem = rows[0].content.as_ref().unwrap_err();
    assert!(problem.contains("aggregate_id is not UTF-8"), "{problem}");
    let (cause, error) = (FailureCause::Undecodable, problem.clone());
    let failed = Outcome::Failed { cause, error, successors: Successors::Park };
    assert!(place.store.settle(&settle(relay, &leases, &rows, &failed)).await.unwrap().fenced.is_empty());
    assert_eq!(place.store.holds(10).await.unwrap().len(), 1);
    place.drop().await;
}

/// The numbers began again, and an event was restored: the archive keeps what is another event, and takes the
/// same one twice.
async fn the_archive_takes_what_comes_twice(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let (relay, leases) = place.relay().await;
    let (one, two) = (event("1"), event("2"));
    for (first, by_retention) in [(&one, false), (&two, true), (&two, false), (&one, true)] {
        place.run("TRUNCATE TABLE outbox").await;
        assert_eq!(place.commit(&[first.clone(), event("3"), event("4")]).await, [1, 2, 3]);
        let mut reader = place.store.reader(relay).await.unwrap();
        let rows = reader.fetch(request(&leases)).await.unwrap().rows;
        let when_sent = if by_retention { WhenSent::Keep } else { WhenSent::Archive };
        let sent = settle(relay, &leases, &rows, &Outcome::Sent).with_when_sent(when_sent);
        assert!(place.store.settle(&sent).await.unwrap().fenced.is_empty());
        let archive = PurgeRequest::new(10).with_sent(Some((Duration::ZERO, Disposal::Archive)));
        assert_eq!(place.store.purge(archive).await.unwrap().sent, if by_retention { 3 } else { 0 });
    }
    // Two events of the first sequence, each once; four of the second and of the third.
    let all = place.store.list(&EventFilter::default().in_archive(), 100).await.unwrap();
    let ids: std::collections::BTreeSet<_> = all.iter().map(|record| record.id).collect();
    assert_eq!((all.len(), ids.len()), (10, 10));
    assert!(ids.contains(&Some(one.id())) && ids.contains(&Some(two.id())));
    for rows_max in [1, 2, 3, 7, 10] {
        let (mut paged, mut filter) = (Vec::new(), EventFilter::default().in_archive());
        loop {
            let page = place.store.list(&filter, rows_max).await.unwrap();
            filter.after = page.last().map(|record| record.sequence);
            let is_last = page.len() < rows_max as usize;
            paged.extend(page);
            if is_last {
                break;
            }
        }
        assert_eq!(paged, all, "in pages of {rows_max}");
    }
    place.drop().await;
}

async fn an_event_scheduled_for_ever_and_one_since_ever(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let at = |time| Event::builder("order", "1", "e").available_at(time).build().unwrap();
    place
        .commit(&[at(chrono::DateTime::<chrono::Utc>::MAX_UTC), at(chrono::DateTime::<chrono::Utc>::MIN_UTC)])
        .await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), [2]);
    assert_eq!(place.store.list(&EventFilter::default(), 10).await.unwrap().len(), 2);
    place.drop().await;
}

async fn large_payloads_are_read_whole_and_within_the_limit(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let large = |n: usize| {
        let payload = vec![u8::try_from(n).unwrap(); 100_000];
        Event::builder("order", n.to_string(), "e").payload(payload).build().unwrap()
    };
    place.commit(&(0..20).map(large).collect::<Vec<_>>()).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let (mut known, mut read) = (Vec::new(), Vec::new());
    while read.len() < 20 {
        let request = request(&leases).with_bytes_max(300_000).with_known(known.clone());
        let fetched = reader.fetch(request).await.unwrap();
        assert!((1..=3).contains(&fetched.rows.len()), "{}", fetched.rows.len());
        assert!(fetched.more || read.len() + fetched.rows.len() == 20);
        known.extend(sequences(&fetched.rows));
        read.extend(fetched.rows);
    }
    for (n, row) in read.iter().enumerate() {
        let payload = row.content.as_ref().unwrap().body();
        assert!(payload.len() == 100_000 && payload.iter().all(|byte| usize::from(*byte) == n), "{n}");
    }
    place.drop().await;
}

async fn what_is_held_far_apart_keeps_nothing_from_being_read(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("first")]).await;
    place.run("ALTER TABLE outbox AUTO_INCREMENT = 5000000").await;
    let far: Vec<Event> = (0..20).map(|n| event(&n.to_string())).collect();
    let far = place.commit(&far).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let mut known: Vec<Sequence> = vec![1];
    while known.len() < 21 {
        let request = request(&leases).with_known(known.clone()).with_events_max(3);
        let rows = reader.fetch(request).await.unwrap().rows;
        assert_eq!(sequences(&rows), far[known.len() - 1..(known.len() + 2).min(20)]);
        known.extend(sequences(&rows));
    }
    place.drop().await;
}

async fn aggregates_that_are_full_are_left_out_until_they_are_not(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let ids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let all = place.commit(&ids.iter().map(|id| event(id)).collect::<Vec<_>>()).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    for count in [1, 2, FULL_MAX] {
        let full = ids[..count].iter().map(|id| key(id)).collect();
        let request = request(&leases).with_full(full).with_events_max(10);
        let fetched = reader.fetch(request).await.unwrap();
        assert_eq!(sequences(&fetched.rows), all[count..count + 10]);
        assert!(fetched.more);
    }
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), all);
    // A due hold is returned all the same.
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows[..1], &retry)).await.unwrap();
    let full = request(&leases).with_full(vec![key("0")]);
    let held = reader.fetch(full).await.unwrap().due_holds;
    assert_eq!(held.iter().map(|hold| hold.sequence).collect::<Vec<_>>(), [Some(all[0])]);
    place.drop().await;
}

async fn a_hold_that_is_out_is_not_returned_again_but_to_a_new_reader(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("1"), event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows[..1], &retry)).await.unwrap();
    let fetched = reader.fetch(request(&leases)).await.unwrap();
    assert_eq!((fetched.rows.len(), fetched.due_holds.len()), (0, 1));
    let fetched = reader.fetch(request(&leases)).await.unwrap();
    assert_eq!((fetched.rows.len(), fetched.due_holds.len()), (0, 0));
    let mut next = place.store.reader(relay).await.unwrap();
    assert_eq!(next.fetch(request(&leases)).await.unwrap().due_holds.len(), 1);
    // Sent, but the relay has not told the reader yet: nothing else of the aggregate.
    place.store.settle(&settle(relay, &leases, &rows[..1], &Outcome::Sent)).await.unwrap();
    let fetched = reader.fetch(request(&leases)).await.unwrap();
    assert_eq!((fetched.rows.len(), fetched.more), (0, true));
    let end = outbox_core::store::HoldEnd::new(key("1"), rows[0].partition, true);
    let told = request(&leases).with_ended_holds(vec![end]);
    assert_eq!(sequences(&reader.fetch(told).await.unwrap().rows), [2]);
    place.drop().await;
}

async fn a_reader_whose_fetch_was_dropped_is_of_no_more_use(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let mut fetch = Box::pin(reader.fetch(request(&leases)));
    assert!(futures::poll!(&mut fetch).is_pending());
    drop(fetch);
    let error = reader.fetch(request(&leases)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misuse);
    place.drop().await;
}

async fn a_settle_that_is_dropped_leaves_nothing_locked(server: Server) {
    let Some(place) = Place::new(server).await else { return };
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
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox WHERE status = 1").await, 2);
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox_holds").await, 0);
    place.drop().await;
}

/// Whether a lock on the row of a partition is to be had at once.
async fn is_free(connection: &mut MySqlConnection, part: u16) -> bool {
    let mut transaction = connection.begin().await.unwrap();
    let sql = "SELECT part FROM outbox_partitions WHERE part = ? FOR UPDATE SKIP LOCKED";
    let found = sqlx::query(sql).bind(part).fetch_optional(&mut *transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    found.is_some()
}

async fn a_settle_waits_for_a_claim_and_is_fenced_by_it(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    for (when_sent, outcome) in [
        (WhenSent::Keep, Outcome::Sent),
        (WhenSent::Delete, Outcome::Sent),
        (WhenSent::Archive, Outcome::Sent),
        (WhenSent::Keep, retry),
    ] {
        let part = rows[0].partition;
        let mut claim = place.pool.begin().await.unwrap();
        let sql = format!("UPDATE outbox_partitions SET epoch = epoch + 1 WHERE part = {part}");
        execute(&mut claim, &sql).await;
        let request = settle(relay, &leases, &rows, &outcome).with_when_sent(when_sent);
        let store = place.store.clone();
        let settling = tokio::spawn(async move { store.settle(&request).await });
        // It waits for as long as the claim is open: had it only read the row, it would be through long
        // before this.
        for _ in 0..300 {
            assert_eq!(place.number("SELECT COUNT(*) FROM outbox WHERE status = 0").await, 1);
        }
        assert!(!settling.is_finished(), "{when_sent:?} {outcome:?} did not wait");
        claim.commit().await.unwrap();
        let settled = settling.await.unwrap().unwrap();
        assert_eq!(settled.fenced, [part], "{when_sent:?} {outcome:?}");
        assert_eq!(place.number("SELECT COUNT(*) FROM outbox WHERE status = 0 AND attempts = 0").await, 1);
        place.run(&format!("UPDATE outbox_partitions SET epoch = epoch - 1 WHERE part = {part}")).await;
    }
    place.drop().await;
}

async fn a_relay_that_freezes_in_a_settle_is_thrown_out(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let part = rows[0].partition;
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned(), reason: HoldReason::Backoff };
    let request = settle(relay, &leases, &rows, &retry);
    let mut other = MySqlConnection::connect(&place.url).await.unwrap();
    // From here on it is not polled any more: frozen, with the row of its partition locked.
    let mut settling = Box::pin(place.store.settle(&request));
    until(async || {
        assert!(futures::poll!(&mut settling).is_pending(), "it settled before it was seen to have the lock");
        (!is_free(&mut other, part).await).then_some(())
    })
    .await;
    until(async || is_free(&mut other, part).await.then_some(())).await;
    let error = settling.await;
    assert!(error.is_err(), "what it began was undone: {error:?}");
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox_holds").await, 0);
    place.drop().await;
}

async fn an_error_text_of_any_characters_is_stored(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let error = format!("\0 \\ ' \" \u{1f980} {}", "ß".repeat(5_000));
    let retry = Outcome::Retry { after: Duration::ZERO, error: error.clone(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
    let stored = place.store.list(&EventFilter::default(), 1).await.unwrap().remove(0).last_error.unwrap();
    assert_eq!(stored, storable_error(&error));
    assert!(stored.len() > 4_000, "{stored:.40}");
    place.drop().await;
}

async fn a_purge_passes_by_what_is_young(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    place.commit(&(0..20).map(|n: u8| event(&n.to_string())).collect::<Vec<_>>()).await;
    // The lowest are the youngest: they were parked for long.
    place
        .run(
            "UPDATE outbox SET status = 1, sent_at = UTC_TIMESTAMP(6) - INTERVAL IF(sequence <= 5, 0, 10) HOUR; \
             UPDATE outbox SET status = 0 WHERE sequence = 20",
        )
        .await;
    let hour = Duration::from_secs(3600);
    let request = PurgeRequest::new(6).with_sent(Some((hour, Disposal::Delete)));
    for left in [14, 8, 6, 6] {
        place.store.purge(request).await.unwrap();
        assert_eq!(place.number("SELECT COUNT(*) FROM outbox").await, left);
    }
    place.drop().await;
}

async fn a_pool_of_ones_own_is_left_as_it_is(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let pool = MySqlPoolOptions::new().max_connections(1).connect(&place.url).await.unwrap();
    let set = "SET SESSION wait_timeout = 1234; SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
    sqlx::raw_sql(set).execute(&pool).await.unwrap();
    let settings = async || {
        let sql = "SHOW SESSION VARIABLES WHERE Variable_name IN ('wait_timeout', 'autocommit', 'sql_mode', \
                   'transaction_isolation', 'tx_isolation', 'innodb_lock_wait_timeout')";
        let rows = sqlx::query(sql).fetch_all(&pool).await.unwrap();
        rows.iter().map(|row| row.get_unchecked::<String, _>(1)).collect::<Vec<_>>()
    };
    let before = settings().await;
    assert!(before.contains(&"1234".to_owned()), "{before:?}");
    let store = MysqlStore::new(pool.clone(), &place.config);
    place.commit(&[event("1")]).await;
    let relay = store.join(Duration::from_secs(60)).await.unwrap();
    let seen: Vec<_> = (0..64).map(|part| (part, 0)).collect();
    assert_eq!(store.claim(relay, &seen).await.unwrap().len(), 64);
    store.pause(&key("1")).await.unwrap();
    assert_eq!(settings().await, before);
    store.leave(relay).await.unwrap();
    pool.close().await;
    place.drop().await;
}
