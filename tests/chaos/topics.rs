//! A topic that fails and events that no broker takes hold back nothing else.

use outbox::Event;

use crate::{
    broker,
    relay::RelayProcess,
    servers::Turn,
    stage::Stage,
    until,
    workload::{Workload, burst, change, events},
};

/// What the topic for poison accepts, in bytes.
const SMALL: usize = 2_000;
const POISONED: u32 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_topic_and_poisonous_events_stop_nothing_else() {
    let Some(stage) = Stage::set(Turn::shared).await else { return };
    let brokers = stage.servers.brokers.clone();
    // Somebody forgot to make this topic.
    let failing = broker::name();
    let small = broker::name();
    broker::create(&brokers, &small, &[("max.message.bytes", &SMALL.to_string())]).await;
    let settings = stage.settings();
    let mut relay = RelayProcess::start("A", &settings);
    let mut load = Workload::start(&stage);
    write(&stage, "waiting", &failing, 20, |account| events(account, 5)).await;
    write(&stage, "poisoned", &small, POISONED, |account| {
        let mut all = events(account, 3);
        all.insert(1, poison(account));
        all
    })
    .await;
    load.more(500).await;
    burst(&stage, 3).await;
    load.end(&stage).await;
    until("the events of all other topics", async || {
        stage
            .number("SELECT count(*) FROM outbox WHERE status = 0 AND aggregate_id NOT LIKE 'waiting-%'")
            .await
            == 0
    })
    .await;
    let waiting = "SELECT count(*) FROM outbox WHERE status = 0 AND aggregate_id LIKE 'waiting-%'";
    assert_eq!(stage.number(waiting).await, 100, "the failing topic's events wait, every one");
    stage.check_topic("beside a failing topic", None, settings.in_flight_max).await;

    // Poison fails alone, with its cause; its successors have arrived.
    let failed =
        "SELECT count(*) FROM outbox WHERE status = 2 AND cause = 'permanent' AND octet_length(payload) > 2";
    assert_eq!(stage.number(failed).await, i64::from(POISONED));
    assert_eq!(stage.number("SELECT count(*) FROM outbox WHERE status = 2").await, i64::from(POISONED));
    let forget = "DELETE FROM changes c USING outbox o WHERE o.id = c.event AND o.status = 2";
    sqlx::query(forget).execute(&stage.pool).await.unwrap();
    stage.check_topic("around poison", Some(&small), settings.in_flight_max).await;

    // The topic is there: what waited arrives, by itself and in order.
    broker::create(&brokers, &failing, &[]).await;
    let sent = relay.seen().sent;
    relay.wait_for("what waited", |seen| seen.sent >= sent + 100).await;
    stage.drain([relay]).await;
    assert_eq!(stage.number("SELECT count(*) FROM outbox_holds").await, 0, "held");
    stage.check_topic("a topic that is there at last", Some(&failing), settings.in_flight_max).await;
    stage.strike().await;
}

/// One transaction for each of so many aggregates of their own, to a topic that the events name.
async fn write(stage: &Stage, kind: &str, topic: &str, count: u32, events: impl Fn(&str) -> Vec<Event>) {
    for number in 0..count {
        let account = format!("{kind}-{number}");
        let events: Vec<Event> = events(&account).iter().map(|event| to(topic, event)).collect();
        let mut transaction = stage.pool.begin().await.unwrap();
        change(&mut transaction, &stage.outbox, &account, &events, Some(topic)).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

fn to(topic: &str, event: &Event) -> Event {
    Event::builder(event.aggregate_type(), event.aggregate_id(), event.event_type())
        .id(event.id())
        .payload(event.payload().clone())
        .topic(topic)
        .build()
        .unwrap()
}

/// Larger than its topic accepts.
fn poison(account: &str) -> Event {
    let payload = vec![b'x'; SMALL * 2];
    Event::builder("account", account, "account.changed").payload(payload).build().unwrap()
}
