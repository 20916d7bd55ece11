//! The reader, the settle and retention: what is MongoDB's own.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::time::Duration;

use mongodb::bson::{Bson, Document, Timestamp, doc};
use outbox_core::{
    AggregateKey, Disposal, Enqueue as _, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, WhenSent,
    store::{HoldEnd, HoldReason, Outcome, PurgeRequest, Unhold},
};
use outbox_mongo::{MongoConfig, MongoStore};
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

/// Inserts past the validator, as it may have been done before there was one.
async fn insert_anything(place: &Place, document: Document) {
    let command = doc! { "insert": "outbox", "documents": [document], "bypassDocumentValidation": true };
    let answer = place.database.run_command(command).await.unwrap();
    assert_eq!(answer.get_i32("n").ok(), Some(1), "{answer}");
}

#[tokio::test]
async fn whatever_stands_in_a_document_it_fails_alone() {
    let Some(place) = Place::new().await else { return };
    let wrong: [(&str, Bson); 13] = [
        ("headers", vec!["1"].into()),
        ("headers", doc! { "a": 1 }.into()),
        ("headers", doc! { "a b": "c" }.into()),
        ("version", 0.into()),
        ("version", "1".into()),
        ("event_type", "".into()),
        ("event_type", Bson::Null),
        ("aggregate_id", "".into()),
        ("aggregate_id", 7.into()),
        ("aggregate_type", doc! {}.into()),
        ("payload", doc! { "total": 12 }.into()),
        ("available_at", "tomorrow".into()),
        ("_id", 12.into()),
    ];
    let count = wrong.len();
    for (number, (field, value)) in wrong.into_iter().enumerate() {
        let mut document = doc! {
            "sequence": Timestamp { time: 0, increment: 0 }, "aggregate_type": "order",
            "aggregate_id": number.to_string(), "event_type": "e", "payload": "{}",
        };
        document.insert(field, value);
        insert_anything(&place, document).await;
    }
    place.commit(&[event("good")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows.len(), count + 1);
    for row in &rows[..count] {
        assert!(row.content.is_err(), "{row:?}");
    }
    assert!(rows[count].content.is_ok());
    // And each can be given up.
    place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
    assert_eq!(place.store.stats().await.unwrap().sent, count as u64 + 1);
    place.drop().await;
}

#[tokio::test]
async fn a_partition_that_is_not_its_aggregates_fails_the_event_alone() {
    let Some(place) = Place::new().await else { return };
    let right = {
        let sequence = place.commit(&[event("1")]).await[0];
        let listed = place.store.list(&outbox_core::EventFilter::default(), 1).await.unwrap();
        assert_eq!(listed[0].sequence, sequence);
        listed[0].partition
    };
    let wrong = (right + 1) % 64;
    insert_anything(
        &place,
        doc! {
            "sequence": Timestamp { time: 0, increment: 0 }, "aggregate_type": "order", "aggregate_id": "1",
            "event_type": "e", "payload": "{}", "partition": i32::from(wrong),
        },
    )
    .await;
    let (relay, leases) = place.relay().await;
    let lease = |partition| *leases.iter().find(|lease| lease.partition == partition).unwrap();
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&[lease(right)])).await.unwrap().rows;
    assert!(rows.len() == 1 && rows[0].content.is_ok(), "{rows:?}");
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&[lease(wrong)])).await.unwrap().rows;
    assert!(rows.len() == 1 && rows[0].partition == wrong, "{rows:?}");
    assert!(rows[0].content.as_ref().unwrap_err().contains("but that of its aggregate"), "{rows:?}");
    place.drop().await;
}

#[tokio::test]
async fn events_scheduled_for_one_moment_come_all_and_in_order() {
    let Some(place) = Place::new().await else { return };
    // More than one fetch takes note of.
    const EVENTS: usize = 2_500;
    let at = chrono::Utc::now() + Duration::from_millis(1_500);
    let scheduled =
        |n: usize| Event::builder("order", (n % 7).to_string(), "e").available_at(at).build().unwrap();
    let expected = place.commit(&(0..EVENTS).map(scheduled).collect::<Vec<_>>()).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    assert!(reader.fetch(request(&leases)).await.unwrap().rows.is_empty(), "they are scheduled for later");
    let mut last: std::collections::HashMap<AggregateKey, i64> = std::collections::HashMap::new();
    let mut known: Vec<i64> = Vec::new();
    until(async || {
        let request = request(&leases).with_known(known.clone());
        for row in reader.fetch(request).await.unwrap().rows {
            let before = last.insert(row.key.clone(), row.sequence);
            assert!(before.is_none_or(|before| before < row.sequence), "{before:?} before {}", row.sequence);
            known.push(row.sequence);
        }
        known.sort_unstable();
        (known.len() >= EVENTS).then_some(())
    })
    .await;
    assert_eq!(known, expected);
    place.drop().await;
}

#[tokio::test]
async fn large_payloads_are_read_whole_and_within_the_limit() {
    let Some(place) = Place::new().await else { return };
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
        known.extend(sequences(&fetched.rows));
        read.extend(fetched.rows);
    }
    for (n, row) in read.iter().enumerate() {
        let payload = row.content.as_ref().unwrap().body();
        assert!(payload.len() == 100_000 && payload.iter().all(|byte| usize::from(*byte) == n), "{n}");
    }
    place.drop().await;
}

#[tokio::test]
async fn a_fetch_that_is_dropped_costs_nothing() {
    let Some(place) = Place::new().await else { return };
    let expected = place.commit(&[event("1"), event("2"), event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    for polls in 1..60 {
        let mut fetch = Box::pin(reader.fetch(request(&leases)));
        for _ in 0..polls {
            if futures::poll!(&mut fetch).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let mut reader = place.store.reader(relay).await.unwrap();
    let mut fetch = Box::pin(reader.fetch(request(&leases)));
    assert!(futures::poll!(&mut fetch).is_pending());
    drop(fetch);
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), expected);
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
    until(async || {
        let sent = place.store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await;
        sent.ok().filter(|settled| settled.fenced.is_empty())
    })
    .await;
    let stats = place.store.stats().await.unwrap();
    assert_eq!((stats.sent, stats.holds), (2, 0));
    place.drop().await;
}

#[tokio::test]
async fn any_error_text_is_stored() {
    let Some(place) = Place::new().await else { return };
    place.commit(&[event("1")]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    let error = format!("nul \0, $set.a and {}", "long ".repeat(10_000));
    let retry = Outcome::Retry { after: Duration::MAX, error: error.clone(), reason: HoldReason::Backoff };
    place.store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
    let listed = place.store.list(&outbox_core::EventFilter::default(), 1).await.unwrap();
    assert_eq!(listed[0].last_error.as_ref(), Some(&error));
    assert!(reader.fetch(request(&leases)).await.unwrap().due_holds.is_empty());
    place.drop().await;
}

#[tokio::test]
async fn header_names_that_look_like_operators_are_kept() {
    let Some(place) = Place::new().await else { return };
    let odd = Event::builder("order", "1", "e").header("$set", "a").header("a.b", "c").header("$a.$b", "d");
    place.commit(&[odd.build().unwrap()]).await;
    let (relay, leases) = place.relay().await;
    let mut reader = place.store.reader(relay).await.unwrap();
    let rows = reader.fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(rows[0].content.as_ref().unwrap().headers.len(), 3);
    let mut sent = settle(relay, &leases, &rows, &Outcome::Sent);
    sent.when_sent = WhenSent::Archive;
    place.store.settle(&sent).await.unwrap();
    let archived = EventFilter::default().in_archive();
    assert_eq!(place.store.list(&archived, 1).await.unwrap()[0].headers["$a.$b"], "d");
    place.drop().await;
}

#[tokio::test]
async fn behind_the_bound_nothing_is_read_again() {
    let Some(place) = Place::new().await else { return };
    let first = place.commit(&[event("1"), event("2")]).await;
    // The shortest that can be told: twice one second.
    let config = MongoConfig::builder().url(&place.url).database(&place.name);
    let config = config.transaction_lifetime(Duration::from_secs(1)).build().unwrap();
    let store = MongoStore::connect_lazy(&config).await.unwrap();
    let (relay, leases) = place.relay().await;
    let mut reader = store.reader(relay).await.unwrap();
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), first);
    // They are not said to be known, and come again for as long as something late could stand between them.
    until(async || reader.fetch(request(&leases)).await.unwrap().rows.is_empty().then_some(())).await;
    let next = place.commit(&[event("1")]).await;
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), next);
    // A new reader begins at the beginning.
    let mut reader = store.reader(relay).await.unwrap();
    assert_eq!(sequences(&reader.fetch(request(&leases)).await.unwrap().rows), [first, next].concat());
    place.drop().await;
}

/// What becomes visible late waits for its turn, however many events that are and however few a fetch takes,
/// also when the bound reaches beyond it meanwhile.
#[tokio::test]
async fn late_events_behind_a_pass_are_returned_all() {
    const LIFETIME: Duration = Duration::from_secs(2);
    for ends in ["scan", "hold", "full"] {
        let Some(place) = Place::new().await else { return };
        let config = MongoConfig::builder().url(&place.url).database(&place.name);
        let config = config.transaction_lifetime(LIFETIME).build().unwrap();
        let store = MongoStore::connect_lazy(&config).await.unwrap();
        let mut writer = place.begin().await;
        let late: Vec<_> = (0..10).map(|_| event("1")).collect();
        let mut all = place.outbox.enqueue_all(&mut writer, &late).await.unwrap();
        all.extend(place.commit(&(0..30).map(|_| event("1")).collect::<Vec<_>>()).await);
        let (relay, leases) = place.relay().await;
        let mut reader = store.reader(relay).await.unwrap();
        let small = |known: &[i64]| request(&leases).with_known(known.to_vec()).with_events_max(4);
        let events_max = if ends == "scan" { 1000 } else { 1 };
        let rows = reader.fetch(request(&leases).with_events_max(events_max)).await.unwrap().rows;
        let mut known = sequences(&rows);
        let mut next = small(&[]);
        match ends {
            "scan" => assert_eq!(known, all[10..]),
            "hold" => {
                let (after, reason) = (Duration::ZERO, HoldReason::Backoff);
                let retry = Outcome::Retry { after, error: "no".to_owned(), reason };
                store.settle(&settle(relay, &leases, &rows, &retry)).await.unwrap();
                let hold = reader.fetch(request(&leases)).await.unwrap().due_holds.remove(0);
                let row = [hold.row.unwrap()];
                store.settle(&settle(relay, &leases, &row, &Outcome::Sent)).await.unwrap();
                next.ended_holds = vec![HoldEnd::new(key("1"), hold.partition, true)];
            }
            _ => {
                store.settle(&settle(relay, &leases, &rows, &Outcome::Sent)).await.unwrap();
                let full = request(&leases).with_full(vec![key("1")]);
                assert!(reader.fetch(full).await.unwrap().rows.is_empty());
            }
        }
        if ends != "scan" {
            let rows = reader.fetch(next).await.unwrap().rows;
            known.extend(sequences(&rows));
            assert_eq!(known, all[10..10 + known.len()], "{ends}: the pass has begun");
        }
        writer.commit_transaction().await.unwrap();
        let written_at = all[39] >> 31;
        let moves_at = written_at + 1 + 2 * i64::try_from(LIFETIME.as_secs()).unwrap();
        until(async || (place.now().await.timestamp_millis() / 1000 > moves_at).then_some(())).await;
        for _ in 0..50 {
            known.extend(sequences(&reader.fetch(small(&known)).await.unwrap().rows));
            known.sort_unstable();
        }
        assert_eq!(known, all, "{ends}: each event once");
        place.drop().await;
    }
}

#[tokio::test]
async fn a_purge_walks_on_and_comes_round() {
    let Some(place) = Place::new().await else { return };
    let numbers = place.commit(&(0..3_000).map(|n| event(&n.to_string())).collect::<Vec<_>>()).await;
    let outbox = place.collection("outbox");
    let sent = doc! { "$set": { "status": 1 }, "$currentDate": { "sent_at": true } };
    let ids = |keep: bool| {
        let of = (0..3_000).filter(|n| (n % 3 == 0) == keep).map(|n: i32| n.to_string());
        doc! { "aggregate_id": { "$in": of.collect::<Vec<_>>() } }
    };
    outbox.update_many(ids(false), sent.clone()).await.unwrap();
    // What is sent in the same second as it was written is old enough in the next one.
    let all = PurgeRequest::new(700).with_sent(Some((Duration::ZERO, Disposal::Delete)));
    let mut removed = Vec::new();
    for _ in 0..4 {
        removed.push(place.store.purge(all).await.unwrap().sent);
    }
    assert_eq!(removed, [700, 700, 600, 0]);
    outbox.update_many(doc! { "aggregate_id": { "$in": ["0", "1500", "2997"] } }, sent).await.unwrap();
    assert_eq!(place.store.purge(all).await.unwrap().sent, 3);
    assert_eq!(place.count("outbox").await, 997);
    assert_eq!(numbers.len(), 3_000);
    place.drop().await;
}

#[tokio::test]
async fn a_client_of_ones_own_is_enough() {
    let Some(place) = Place::new().await else { return };
    let config = MongoConfig::builder().database(&place.name).build().unwrap();
    let store = MongoStore::new(place.client.clone(), &config);
    assert_eq!(store.check().await.unwrap(), []);
    let relay = store.join(Duration::from_secs(60)).await.unwrap();
    let leases = place.claim_all(relay).await;
    place.commit(&[event("1")]).await;
    let rows = store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
    let mut sent = settle(relay, &leases, &rows, &Outcome::Sent);
    sent.when_sent = WhenSent::Delete;
    store.settle(&sent).await.unwrap();
    assert_eq!(place.count("outbox").await, 0);
    place.drop().await;
}

#[tokio::test]
async fn an_unhold_of_a_hold_that_was_paused_meanwhile_does_nothing() {
    let Some(place) = Place::new().await else { return };
    let (relay, leases) = place.relay().await;
    place.store.pause(&key("1")).await.unwrap();
    let partition = place.store.holds(1).await.unwrap()[0].partition;
    let mut request = settle(relay, &leases, &[], &Outcome::Sent);
    request.unholds = vec![Unhold::new(key("1"), partition, None)];
    place.store.settle(&request).await.unwrap();
    assert_eq!(place.store.holds(10).await.unwrap().len(), 1);
    place.store.resume(&key("1")).await.unwrap();
    place.store.settle(&request).await.unwrap();
    assert_eq!(place.store.holds(10).await.unwrap().len(), 0);
    place.drop().await;
}

/// A settle and a claim by another relay at the same time: whichever is first, the other one sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settle_and_a_claim_never_both_win() {
    let Some(place) = Place::new().await else { return };
    for round in 0..40 {
        let id = round.to_string();
        place.commit(&[event(&id)]).await;
        let relay = place.store.join(Duration::from_secs(60)).await.unwrap();
        let leases = place.claim_all(relay).await;
        let rows = place.store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
        let next = place.store.join(Duration::from_secs(60)).await.unwrap();
        let membership = place.store.membership(next).await.unwrap();
        let seen: Vec<_> = membership.partitions.iter().map(|p| (p.partition, p.epoch)).collect();
        assert!(place.store.beat(relay, Duration::from_millis(5)).await.unwrap());
        let settling = {
            let (store, request) = (place.store.clone(), settle(relay, &leases, &rows, &Outcome::Sent));
            tokio::spawn(async move { store.settle(&request).await })
        };
        let claimed = until(async || {
            let claimed = place.store.claim(next, &seen).await.unwrap();
            (!claimed.is_empty()).then_some(claimed)
        })
        .await;
        assert!(claimed.iter().all(|claimed| claimed.owner_died));
        // What the new owner reads now is what the old one has not settled, and can settle no more.
        let leases: Vec<_> = claimed.iter().map(|claimed| claimed.lease).collect();
        let read = place.store.reader(next).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
        let settled = settling.await.unwrap().unwrap();
        assert_eq!(settled.fenced.is_empty(), read.is_empty(), "round {round}: {settled:?}, {read:?}");
        place.store.settle(&settle(next, &leases, &read, &Outcome::Sent)).await.unwrap();
        place.store.leave(next).await.unwrap();
    }
    assert_eq!(place.store.stats().await.unwrap().sent, 40);
    place.drop().await;
}
