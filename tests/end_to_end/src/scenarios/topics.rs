//! A topic that fails and events that no broker takes hold back nothing else.

use std::collections::HashSet;

use outbox::{
    Event,
    store::{FailureCause, Status},
};

use crate::{
    brokers::{self, BrokerAt, kafka},
    databases::{self, Change},
    relay::RelayProcess,
    stage::Stage,
    turn::Turn,
    until,
    workload::{Workload, burst, commit, events},
};

/// What the topic for poison accepts, in bytes.
const SMALL: usize = 2_000;
const POISONED: u32 = 10;
const WAITING: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_topic_and_poisonous_events_stop_nothing_else() {
    let (database, broker) = (databases::Kind::Postgres, brokers::Kind::Kafka);
    let Some(stage) = Stage::set(database, broker, Turn::shared).await else { return };
    let BrokerAt::Kafka { brokers } = stage.broker.broker_at() else { unreachable!("it is Kafka") };
    // This topic was forgotten.
    let failing = brokers::topic();
    let small = brokers::topic();
    kafka::create(&brokers, &small, &[("max.message.bytes", &SMALL.to_string())]).await;
    let settings = stage.settings();
    let mut relay = RelayProcess::start("A", &settings);
    let mut load = Workload::start(&stage);
    write(&stage, "waiting", &failing, WAITING, |account| events(account, 5)).await;
    write(&stage, "poisoned", &small, POISONED, |account| {
        let mut all = events(account, 3);
        all.insert(1, poison(account));
        all
    })
    .await;
    load.more(500).await;
    burst(&stage, 3).await;
    load.end(&stage).await;
    let waits = 5 * u64::from(WAITING);
    until("the events of all other topics", async || {
        stage.database.store().stats().await.unwrap().pending == waits
    })
    .await;
    for event in stage.events(Status::Pending).await {
        assert_eq!(event.topic.as_ref(), Some(&failing), "only the failing topic's events wait, every one");
    }
    stage.check_topic("beside a failing topic", None, settings.in_flight_max).await;

    // Poison fails alone, with its cause; its successors have arrived.
    let failed = stage.events(Status::Failed).await;
    assert_eq!(failed.len(), POISONED as usize);
    assert!(
        failed
            .iter()
            .all(|event| event.cause == Some(FailureCause::Permanent) && event.payload_len() > SMALL)
    );
    let given_up: HashSet<_> = failed.iter().filter_map(|event| event.id).collect();
    stage.check_without("around poison", Some(&small), &given_up, settings.in_flight_max).await;

    // The topic is there: what waited arrives, by itself and in order.
    stage.broker.create(&failing).await;
    let sent = relay.seen().sent;
    relay.wait_for("what waited", |seen| seen.sent >= sent + waits).await;
    stage.drain([relay]).await;
    assert_eq!(stage.holds().await, 0, "held");
    stage.check_topic("a topic that is there at last", Some(&failing), settings.in_flight_max).await;
    stage.broker.remove(&small).await;
    stage.broker.remove(&failing).await;
    stage.remove().await;
}

/// One transaction for each of so many aggregates of their own, to a topic that the events name.
async fn write(stage: &Stage, kind: &str, topic: &str, count: u32, events: impl Fn(&str) -> Vec<Event>) {
    for number in 0..count {
        let account = format!("{kind}-{number}");
        let events: Vec<Event> = events(&account).iter().map(|event| to(topic, event)).collect();
        commit(stage, &[Change { account, events, topic: Some(topic.to_owned()) }]).await;
    }
}

fn to(topic: &str, event: &Event) -> Event {
    Event::builder(event.aggregate_type(), event.aggregate_id(), event.event_type())
        .id(event.id())
        .payload(event.payload().unwrap().clone())
        .topic(topic)
        .build()
        .unwrap()
}

/// Larger than its topic accepts.
fn poison(account: &str) -> Event {
    let payload = vec![b'x'; SMALL * 2];
    Event::builder("account", account, "account.changed").payload(payload).build().unwrap()
}
