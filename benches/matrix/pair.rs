//! One store with one broker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use benches::{
    backlog::{AGGREGATES, change, commit, fill, payload},
    gate::Gated,
    machine,
    publishers::{Swallow, Timed, Times},
};
use outbox::{
    AggregateKey, OutboxStore, Publisher, Relay, RelayConfig, RelayHandle, Retention, WhenSent,
    publisher::{Message, Reporter},
    store::StoredEvent,
};
use testbed::{brokers, databases, servers::Managed};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::PATIENCE;

/// In a backlog.
const EVENTS: usize = 50_000;
/// Lone events, and the pause before each.
const LONE_EVENTS: usize = 200;
/// Those before them, not counted: the first on a new topic wait until the broker has made it ready.
const FIRST_EVENTS: usize = 20;
const LONE_PAUSE: Duration = Duration::from_millis(25);
const DRAIN_TIME_MAX: Duration = Duration::from_secs(300);

pub(crate) struct Pair {
    pub(crate) database: databases::Kind,
    pub(crate) broker: brokers::Kind,
}

impl Pair {
    /// A line of the table.
    pub(crate) async fn measure(&self, restarts: bool) -> String {
        let broker = self.broker.find().expect("the broker is there");
        let publisher = || broker.broker_at().open(Duration::from_secs(4));
        // Each on a topic of its own, which is gone before the next: a queue that has grown is slow for a
        // while.
        let lone = brokers::topic();
        broker.create(&lone).await;
        let (p50, p99) = self.lone_events(publisher(), &lone).await;
        broker.remove(&lone).await;

        let store_alone =
            drain(self.database, EVENTS, WhenSent::Keep, Arc::new(Swallow), "topic", || {}).await.rate;

        let alone = brokers::topic();
        broker.create(&alone).await;
        let broker_alone = rate_of(publisher(), &alone).await;
        broker.remove(&alone).await;

        let together = brokers::topic();
        broker.create(&together).await;
        let both = drain(self.database, EVENTS, WhenSent::Keep, publisher(), &together, || {}).await.rate;
        broker.remove(&together).await;
        let ceiling = 1.0 / (1.0 / store_alone + 1.0 / broker_alone);

        let restarted = if restarts {
            let (name, address) = broker.server();
            let server = Managed::find(name, &address).expect("a broker that scripts/services.sh started");
            let restart = || {
                tokio::task::block_in_place(|| {
                    server.down();
                    server.up();
                });
            };
            let topic = brokers::topic();
            broker.create(&topic).await;
            let rate = drain(self.database, EVENTS, WhenSent::Keep, publisher(), &topic, restart).await.rate;
            broker.remove(&topic).await;
            k(rate)
        } else {
            "not asked".to_owned()
        };
        format!(
            "| {:?} | {:?} | {} | {} | **{}** | {:.2} | {:.1}, {:.1} ms | {restarted} |",
            self.database,
            self.broker,
            k(store_alone),
            k(broker_alone),
            k(both),
            both / ceiling,
            ms(p50),
            ms(p99),
        )
    }

    /// From the return of the commit of a lone event to its acknowledgement: p50 and p99.
    async fn lone_events(&self, publisher: Arc<dyn Publisher>, topic: &str) -> (Duration, Duration) {
        let database = self.database.fresh().await.expect("the server is there");
        let (count, mut from) = (FIRST_EVENTS + LONE_EVENTS, 0);
        let times = Times::new(count);
        let publisher = Arc::new(Timed { inner: publisher, times: Arc::clone(&times) });
        let (mut handle, running) = start(database.store_at().open().await, publisher, topic, WhenSent::Keep);
        handle.wait_for(|status| status.partitions > 0).await.unwrap();
        for number in 0..count {
            tokio::time::sleep(LONE_PAUSE).await;
            if number == FIRST_EVENTS {
                from = times.now();
            }
            commit(&*database, &[change(number, 1, number)]).await;
            times.committed[number].store(times.now(), std::sync::atomic::Ordering::Relaxed);
        }
        let all = handle.wait_for(|status| status.sent >= count as u64);
        tokio::time::timeout(PATIENCE, all).await.expect("the lone events arrive").unwrap();
        handle.shutdown();
        running.await.unwrap();
        database.remove().await;
        let (missing, latencies) = times.latencies(from, u64::MAX);
        assert_eq!((missing, latencies.len()), (0, LONE_EVENTS));
        (latencies[LONE_EVENTS / 2], latencies[LONE_EVENTS * 99 / 100])
    }
}

/// How a backlog was drained.
struct Drained {
    /// Events a second.
    rate: f64,
    /// The processor's time of this process, and of all others, for each event.
    own: Duration,
    others: Duration,
    /// The share of the cores that was idle.
    idle: f64,
}

/// The kernel's tick in its books.
const TICK: Duration = Duration::from_millis(10);

/// What has been spent of the processor's time, in ticks.
struct Spent {
    own: u64,
    idle: u64,
    all: u64,
}

impl Spent {
    fn now() -> Self {
        let (idle, all) = machine::cores();
        Self { own: machine::own(), idle, all }
    }
}

/// How each store drains without a broker, with backlogs of several sizes.
pub(crate) async fn stores(is_chosen: impl Fn(&str) -> bool) {
    println!(
        "| store | events waiting | sent rows | rate | relay, an event | all else, an event | cores idle |\n\
         |---|---|---|---|---|---|---|"
    );
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    for kind in databases::Kind::ALL.into_iter().filter(|kind| is_chosen(&format!("{kind:?}").to_lowercase()))
    {
        for events in [10_000, 100_000] {
            for when_sent in [WhenSent::Keep, WhenSent::Delete] {
                let drained = drain(kind, events, when_sent, Arc::new(Swallow), "topic", || {}).await;
                println!(
                    "| {kind:?} | {events} | {when_sent:?} | {} | {:.1} µs | {:.1} µs | {:.0} % |",
                    k(drained.rate),
                    micros(drained.own),
                    micros(drained.others),
                    drained.idle * 100.0,
                );
            }
        }
    }
}

/// Drains a backlog. Half-way something happens.
async fn drain(
    database: databases::Kind,
    events: usize,
    when_sent: WhenSent,
    publisher: Arc<dyn Publisher>,
    topic: &str,
    half_way: impl FnOnce(),
) -> Drained {
    let database = database.fresh().await.expect("the server is there");
    fill(&*database, events).await;
    let (open, opened) = watch::channel(false);
    let store = Arc::new(Gated { inner: database.store_at().open().await, open: opened });
    let partitions = usize::from(store.capabilities().partitions);
    let (mut handle, running) = start(store, publisher, topic, when_sent);
    handle.wait_for(|status| status.partitions == partitions).await.unwrap();
    open.send_replace(true);
    let (started, before) = (Instant::now(), Spent::now());
    let half = async {
        handle.wait_for(|status| status.sent >= events as u64 / 2).await.unwrap();
        half_way();
        handle.wait_for(|status| status.sent >= events as u64).await.unwrap();
    };
    tokio::time::timeout(DRAIN_TIME_MAX, half).await.expect("the backlog drains");
    let (rate, spent) = (events as f64 / started.elapsed().as_secs_f64(), Spent::now());
    handle.shutdown();
    running.await.unwrap();
    database.remove().await;
    let each = |before: u64, after: u64| {
        TICK * u32::try_from(after - before).unwrap() / u32::try_from(events).unwrap()
    };
    let (all, idle) = (spent.all - before.all, spent.idle - before.idle);
    let own = each(before.own, spent.own);
    let others = each(before.all - before.idle, spent.all - spent.idle).saturating_sub(own);
    Drained { rate, own, others, idle: idle as f64 / all.max(1) as f64 }
}

fn start(
    store: Arc<dyn OutboxStore>,
    publisher: Arc<dyn Publisher>,
    topic: &str,
    when_sent: WhenSent,
) -> (RelayHandle, JoinHandle<()>) {
    let retention = Retention::default().with_when_sent(when_sent);
    let config = RelayConfig::default().with_topic(topic.parse().unwrap()).with_retention(retention);
    let relay = Relay::new(store, publisher, config).unwrap();
    (relay.handle(), tokio::spawn(async move { drop(relay.run().await) }))
}

/// How many messages of the same shape the publisher takes without a store, in a second: calls of 500, 2,000
/// out.
async fn rate_of(publisher: Arc<dyn Publisher>, topic: &str) -> f64 {
    let messages: Vec<Arc<Message>> = (0..500 + EVENTS).map(|number| message(topic, number)).collect();
    let (tell, mut reports) = mpsc::unbounded_channel();
    let send = |from: usize| {
        let batch = messages[from..(from + 500).min(messages.len())].to_vec();
        let (publisher, reporter) = (Arc::clone(&publisher), Reporter::new(0, tell.clone()));
        tokio::spawn(async move { publisher.publish(batch, Duration::from_secs(10), reporter).await });
    };
    send(0);
    for _ in 0..500 {
        reports.recv().await.unwrap().result.unwrap();
    }
    let started = Instant::now();
    let (mut sent, mut acknowledged) = (0, 0);
    while acknowledged < EVENTS {
        while sent < EVENTS && sent - acknowledged <= 1_500 {
            send(500 + sent);
            sent += 500;
        }
        reports.recv().await.unwrap().result.unwrap();
        acknowledged += 1;
    }
    let rate = EVENTS as f64 / started.elapsed().as_secs_f64();
    publisher.close().await;
    rate
}

fn message(topic: &str, number: usize) -> Arc<Message> {
    // An id for each message, since a broker may drop what it takes for a repetition.
    let id = uuid::Uuid::now_v7();
    let event = StoredEvent::new(id, "account.changed", payload(number), chrono::Utc::now());
    let key = AggregateKey::new("account", &format!("a-{}", number % AGGREGATES));
    Arc::new(Message::new(topic, key, 1, "/outbox", event))
}

fn k(rate: f64) -> String {
    format!("{:.1} k/s", rate / 1_000.0)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
