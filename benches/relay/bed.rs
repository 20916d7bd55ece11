//! The test bed: servers, tables, backlogs, relays.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use benches::{
    gate::Gated,
    machine::{Machine, Ticks},
    publishers::Swallow,
};
use outbox::{
    AggregateKey, OutboxStore, Publisher, Relay, RelayConfig, RelayHandle, Retention, WhenSent,
    kafka::{KafkaConfig, KafkaPublisher},
    postgres::{PostgresConfig, PostgresOutbox, PostgresStore, SentRows},
    publisher::{Message, Reporter},
    store::StoredEvent,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::{mpsc, watch};

/// The type of all aggregates, and so the topic.
pub(crate) const TOPIC: &str = "outbox_bench";
/// What a drain may take before it counts as stuck.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(120);

/// Where the servers are, and what was measured so far.
pub(crate) struct Bed {
    pub(crate) url: String,
    pub(crate) brokers: String,
    pub(crate) rows: Vec<[String; 3]>,
    machine: Machine,
    /// Ticks of the cores since the last row was written, while something was measured.
    spent: Mutex<Ticks>,
    schemas: AtomicUsize,
    /// Settings to try, as `name=number`.
    settings: Vec<(String, usize)>,
}

/// Tables of one measurement.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) outbox: PostgresOutbox,
    pub(crate) when_sent: WhenSent,
    config: PostgresConfig,
}

impl Bed {
    pub(crate) async fn new(settings: Vec<(String, usize)>) -> Self {
        let variable = |name: &str, server: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!("{name} is not set: run scripts/services.sh up {server}, and eval its env")
            })
        };
        // In plain text unless the address says how: encryption takes processor time that no question is
        // about.
        let mut url = variable("OUTBOX_TEST_POSTGRES_URL", "postgres");
        if !url.contains('?') {
            url.push_str("?sslmode=disable");
        }
        let brokers = variable("OUTBOX_TEST_KAFKA_BROKERS", "kafka");
        let machine = Machine::find(&url, &brokers).await;
        let (spent, schemas) = (Mutex::default(), AtomicUsize::new(0));
        Self { url, brokers, rows: Vec::new(), machine, spent, schemas, settings }
    }

    /// Writes a line of the table, and who else was at work meanwhile.
    pub(crate) fn row(&mut self, question: &str, case: impl Into<String>, result: impl Into<String>) {
        let mut row = [question.to_owned(), case.into(), result.into()];
        let foreign = std::mem::take(self.spent.get_mut().unwrap()).foreign();
        if foreign >= 5 {
            row[2] += &format!(" (others took {foreign} % of the cores)");
        }
        println!("| {} | {} | {} |", row[0], row[1], row[2]);
        self.rows.push(row);
    }

    /// Waits until the machine is idle, and then measures.
    pub(crate) async fn measure<T>(&self, work: impl Future<Output = T>) -> T {
        self.quiet().await;
        self.account(work).await
    }

    pub(crate) async fn quiet(&self) {
        self.machine.quiet().await;
    }

    /// Keeps account of who spends the processor's time meanwhile.
    pub(crate) async fn account<T>(&self, work: impl Future<Output = T>) -> T {
        let before = self.machine.now();
        let result = work.await;
        let spent = self.machine.now().since(before);
        self.spent.lock().unwrap().add(spent);
        result
    }

    /// What was spent by all that was measured since the last row.
    pub(crate) fn spent(&self) -> Ticks {
        *self.spent.lock().unwrap()
    }

    pub(crate) async fn place(&self, when_sent: WhenSent) -> Place {
        let number = self.schemas.fetch_add(1, Ordering::Relaxed);
        let place = self.existing(format!("outbox_bench_{}_{number}", std::process::id()), when_sent);
        let (schema, mut connection) = (&place.schema, self.connection().await);
        run(&mut connection, format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")).await;
        PostgresStore::connect_lazy(&place.config).await.unwrap().migrate().await.unwrap();
        place
    }

    /// The place that another process has made.
    pub(crate) fn existing(&self, schema: String, when_sent: WhenSent) -> Place {
        let sent_rows = if when_sent == WhenSent::Keep { SentRows::Kept } else { SentRows::Deleted };
        let config =
            PostgresConfig::builder().url(&self.url).schema(&schema).sent_rows(sent_rows).build().unwrap();
        let outbox = PostgresOutbox::new(&config);
        Place { url: self.url.clone(), schema, outbox, when_sent, config }
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    pub(crate) fn kafka(&self) -> Arc<KafkaPublisher> {
        let mut config = KafkaConfig::builder(&self.brokers)
            .delivery_timeout(Duration::from_secs(4))
            .property("allow.auto.create.topics", "true");
        if let Some((_, linger)) = self.settings.iter().find(|(name, _)| name == "linger_us") {
            config = config.linger(Duration::from_micros(*linger as u64));
        }
        if let Some((_, requests)) = self.settings.iter().find(|(name, _)| name == "requests") {
            config = config.in_flight_max(*requests as u32);
        }
        Arc::new(KafkaPublisher::new(config.build().unwrap()).unwrap())
    }

    pub(crate) fn config(&self, when_sent: WhenSent) -> RelayConfig {
        let retention = Retention::default().with_when_sent(when_sent);
        let mut config = RelayConfig::default().with_retention(retention);
        for (name, value) in &self.settings {
            match name.as_str() {
                "in_flight_max" => config.in_flight_max = *value,
                "publish_max" => config.publish_max = *value,
                "buffer_events_max" => config.buffer_events_max = *value,
                "fetch_events_max" => config.fetch_events_max = *value,
                "settle_events_max" => config.settle_events_max = *value,
                "poll_min_us" => config.poll_min = Duration::from_micros(*value as u64),
                "linger_us" | "requests" => {}
                name => panic!("there is no setting {name}"),
            }
        }
        config
    }

    /// How many messages of the same shape the publisher takes without a store, in a second: calls of 500,
    /// 2,000 out.
    pub(crate) async fn broker_rate(&self, events: usize, aggregates: usize) -> f64 {
        let publisher = self.kafka();
        let messages: Vec<Arc<Message>> = (0..aggregates.min(10_000)).map(message).collect();
        let (tell, mut reports) = mpsc::unbounded_channel();
        let send = |from: usize, count: usize| {
            let batch: Vec<_> =
                (from..from + count).map(|number| Arc::clone(&messages[number % messages.len()])).collect();
            let (publisher, reporter) = (Arc::clone(&publisher), Reporter::new(0, tell.clone()));
            tokio::spawn(async move { publisher.publish(batch, Duration::from_secs(10), reporter).await });
        };
        send(0, 500);
        for _ in 0..500 {
            reports.recv().await.unwrap().result.unwrap();
        }
        let work = async {
            let started = Instant::now();
            let (mut sent, mut acknowledged) = (0, 0);
            while acknowledged < events {
                while sent < events && sent - acknowledged <= 1_500 {
                    send(sent, 500);
                    sent += 500;
                }
                reports.recv().await.unwrap().result.unwrap();
                acknowledged += 1;
            }
            events as f64 / started.elapsed().as_secs_f64()
        };
        let rate = self.measure(work).await;
        publisher.close().await;
        rate
    }

    /// Drains a backlog with this many relays, each with a store and a publisher of its own; events a second.
    pub(crate) async fn drain(&self, place: &Place, events: u64, relays: usize, broker: bool) -> f64 {
        let (open, opened) = watch::channel(false);
        let mut running = Vec::new();
        for _ in 0..relays {
            let publisher: Arc<dyn Publisher> = if broker { self.kafka() } else { Arc::new(Swallow) };
            let store = Arc::new(Gated { inner: place.another().await, open: opened.clone() });
            running.push(Running::start(store, publisher, self.config(place.when_sent)));
        }
        let share = 64 / relays;
        wait_until(|| running.iter().all(|relay| relay.handle.status().partitions == share)).await;
        let work = async {
            open.send_replace(true);
            let started = Instant::now();
            wait_until(|| running.iter().map(|relay| relay.handle.status().sent).sum::<u64>() >= events)
                .await;
            events as f64 / started.elapsed().as_secs_f64()
        };
        let rate = self.measure(work).await;
        for relay in running {
            relay.stop().await;
        }
        rate
    }
}

impl Place {
    /// Another store on the same tables, as another process would have it.
    pub(crate) async fn another(&self) -> Arc<dyn OutboxStore> {
        Arc::new(PostgresStore::connect_lazy(&self.config).await.unwrap())
    }

    /// Writes a backlog: 300 bytes each, in the order of the numbers, the aggregates taking turns.
    pub(crate) async fn fill(&self, events: u64, aggregates: u64) {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        // Ids rise as UUIDv7 does.
        let sql = format!(
            "INSERT INTO {0}.outbox (id, aggregate_type, aggregate_id, event_type, payload) \
             SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, '{TOPIC}', 'a-' || (g % {aggregates}), \
                    'bench.happened', rpad(lpad(to_hex(g), 16, '0'), 300, 'x') \
             FROM generate_series(1, {events}) g; ANALYZE {0}.outbox",
            self.schema
        );
        run(&mut connection, sql).await;
    }

    pub(crate) async fn drop(self) {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        run(&mut connection, format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }
}

/// A relay in the background.
pub(crate) struct Running {
    pub(crate) handle: RelayHandle,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(
        store: Arc<dyn OutboxStore>,
        publisher: Arc<dyn Publisher>,
        config: RelayConfig,
    ) -> Self {
        let relay = Relay::new(store, publisher, config).unwrap();
        let handle = relay.handle();
        Self { handle, task: tokio::spawn(async move { drop(relay.run().await) }) }
    }

    /// Waits until it owns everything.
    pub(crate) async fn ready(&self) {
        wait_until(|| self.handle.status().partitions == 64).await;
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown();
        self.task.await.unwrap();
    }
}

pub(crate) async fn run(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

pub(crate) async fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DRAIN_TIME_MAX;
    while !done() {
        assert!(Instant::now() < deadline, "nothing has come of it within {DRAIN_TIME_MAX:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A message as the relay makes it of a row of a backlog.
fn message(number: usize) -> Arc<Message> {
    let event = StoredEvent::new(
        uuid::Uuid::now_v7(),
        "bench.happened".to_owned(),
        format!("{number:016x}{}", "x".repeat(284)).into_bytes(),
        chrono::Utc::now(),
    );
    let key = AggregateKey::new(TOPIC, &format!("a-{number}"));
    Arc::new(Message::new(TOPIC, key, 1, "/outbox", event))
}
