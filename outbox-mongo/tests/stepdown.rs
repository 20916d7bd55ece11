//! A primary that steps down while a relay works. A test of its own, since it disturbs all others on the
//! server.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use mongodb::bson::doc;
use outbox_core::{
    Enqueue as _, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, Relay, RelayConfig,
    memory::MemoryPublisher, store::Status,
};
use support::Place;
use uuid::Uuid;

const AGGREGATES: usize = 20;
const EVENTS: i32 = 100;
const STEP_DOWNS: usize = 3;

/// Writes one event of each aggregate; false if the transaction was lost with the primary.
async fn write_round(place: &Place, round: i32, ids: &mut Vec<Uuid>) -> bool {
    let mut events = Vec::new();
    for aggregate in 0..AGGREGATES {
        let event = Event::builder("order", aggregate.to_string(), "changed").version(round);
        events.push(event.build().unwrap());
    }
    let write = async {
        let mut session = place.client.start_session().await.ok()?;
        session.start_transaction().await.ok()?;
        place.outbox.enqueue_all(&mut session, &events).await.ok()?;
        // A commit whose answer is lost is asked for again, as a service has to.
        for _ in 0..200 {
            match session.commit_transaction().await {
                Ok(()) => return Some(()),
                Err(error) if error.contains_label(mongodb::error::UNKNOWN_TRANSACTION_COMMIT_RESULT) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => return None,
            }
        }
        panic!("no answer says whether round {round} was committed");
    };
    let committed = write.await.is_some();
    if committed {
        ids.extend(events.iter().map(Event::id));
    }
    committed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_down_loses_nothing_and_keeps_the_order() {
    let Some(place) = Place::new().await else { return };
    let publisher = MemoryPublisher::new();
    let config = RelayConfig::default().with_membership_interval(Duration::from_millis(50));
    let relay = Relay::new(place.store.clone(), publisher.clone(), config).unwrap();
    let mut handle = relay.handle();
    let task = tokio::spawn(relay.run());

    let admin = place.client.database("admin");
    let elections = async || {
        let status = admin.run_command(doc! { "replSetGetStatus": 1 }).await.ok()?;
        status.get_i64("term").ok()
    };
    let before = elections().await.unwrap();
    let mut ids = Vec::new();
    let mut round = 1;
    while round <= EVENTS {
        if write_round(&place, round, &mut ids).await {
            round += 1;
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if round % (EVENTS / (i32::try_from(STEP_DOWNS).unwrap() + 1)) == 0 {
            // The answer is often that the connection is gone, which is what was asked for.
            let _ = admin.run_command(doc! { "replSetStepDown": 1, "force": true }).await;
            round += i32::from(write_until(&place, round, &mut ids).await);
        }
    }
    let after = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            match elections().await {
                Some(term) => break term,
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    let after = after.await.unwrap();
    assert!(after - before >= 2, "the primary stepped down {} times", after - before);

    let delivered = tokio::time::timeout(Duration::from_secs(120), async {
        loop {
            let delivered = publisher.delivered();
            let found: HashSet<Uuid> = delivered.iter().map(|message| message.event.id).collect();
            if ids.iter().all(|id| found.contains(id)) {
                break delivered;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let delivered = delivered.await.expect("everything that was committed is delivered within two minutes");
    let mut first: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    let mut seen = HashSet::new();
    for message in &delivered {
        if seen.insert(message.event.id) {
            first.entry(message.key.aggregate_id()).or_default().push(message.event.version);
        }
    }
    assert_eq!(seen.len(), ids.len(), "what was rolled back is not delivered");
    for (aggregate, versions) in first {
        assert!(versions.is_sorted_by(|left, right| left < right), "order of {aggregate}: {versions:?}");
    }
    tokio::time::timeout(Duration::from_secs(60), handle.caught_up()).await.unwrap().unwrap();
    let pending = place.store.list(&EventFilter::status(Status::Pending), 10).await.unwrap();
    assert_eq!(pending.len(), 0);
    assert_eq!(place.store.stats().await.unwrap().sent, ids.len() as u64);
    handle.shutdown();
    task.await.unwrap();
    place.drop().await;
}

/// Writes a round by as many tries as it takes.
async fn write_until(place: &Place, round: i32, ids: &mut Vec<Uuid>) -> bool {
    for _ in 0..600 {
        if write_round(place, round, ids).await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}
