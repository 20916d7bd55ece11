//! The pattern in a minute: a little shop on SQLite, its events as CloudEvents JSON lines, no server needed.
//!
//! `cargo run --example quickstart --features sqlite`
//!
//! Orders are placed in transactions, and one of them rolls back. The relay publishes what has committed; the
//! first event of one order fails twice, and its successors wait behind it while other orders pass. In the
//! middle the relay dies, and another takes over. At the end the program compares what was promised with what
//! arrived, and exits with 1 if a guarantee did not hold.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its reader")]

use std::{
    collections::BTreeSet,
    io::Write,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use outbox::{
    Event, Finding, JsonLinesPublisher, OutboxStore, Publisher, Relay, RelayConfig, RelayHandle, RetryPolicy,
    publisher::{Message, PublishError, Reporter},
    sqlite::{SqliteConfig, SqliteOutbox, SqliteStore},
};
use rusqlite::Connection;
use shop::{Arrivals, Promises, chapter, compare, say, verdict};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The order whose first event the broker refuses twice.
const UNLUCKY: &str = "order-2";

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    Ok(verdict(&run().await?))
}

/// Runs the shop, and returns what was not as promised.
pub(crate) async fn run() -> Result<Vec<String>, Error> {
    let folder = tempfile::tempdir()?;
    let config = SqliteConfig::builder(folder.path().join("shop.sqlite3")).build()?;
    let store = SqliteStore::open(config.clone())?;
    store.migrate().await?;
    let shop = Shop::open(&config)?;
    let broker = Arc::new(Broker::new());

    chapter("1. The shop places orders. Each order and its events are written in one transaction.");
    for order in ["order-1", "order-2", "order-3"] {
        shop.place(order, &["placed", "paid", "shipped"])?;
    }
    shop.place_and_roll_back("order-4")?;
    shop.place("order-5", &["placed"])?;

    chapter("2. A relay publishes what has committed. It will die in the middle of it.");
    // A process of its own, as far as that can be had within one: when it dies, nothing of it goes on.
    let process = tokio::runtime::Runtime::new()?;
    let relay = new_relay(&store, &broker)?;
    let mut handle = relay.handle();
    process.spawn(relay.run());
    let waited = broker.wait_for(5, &mut handle).await;
    process.shutdown_background();
    waited?;
    say("relay", "*** dies, without a word to anybody ***");

    chapter("3. The shop does not notice, and goes on.");
    shop.place("order-6", &["placed", "paid"])?;

    chapter("4. Another relay takes over as soon as the lease of the dead one has expired.");
    let relay = new_relay(&store, &broker)?;
    let (mut handle, expected) = (relay.handle(), shop.committed());
    let relay = tokio::spawn(relay.run());
    broker.wait_for(expected.values().map(Vec::len).sum(), &mut handle).await?;
    handle.caught_up().await?;
    handle.shutdown();
    let status = relay.await?;
    say("relay", &format!("ends when asked to, with {} events sent and nothing in flight", status.sent));

    chapter("5. What was promised, and what arrived.");
    let pending = store.stats().await?.pending;
    let mut problems = compare(&expected, &broker.arrived(), pending);
    if *broker.refusals_left.lock().map_err(|_| "the broker is poisoned")? > 0 {
        problems.push(format!("the first event of {UNLUCKY} was not refused twice"));
    }
    Ok(problems)
}

/// The service: its own table, and the outbox beside it, in one database.
struct Shop {
    connection: Mutex<Connection>,
    outbox: SqliteOutbox,
    committed: Mutex<Promises>,
}

impl Shop {
    fn open(config: &SqliteConfig) -> Result<Self, Error> {
        let connection = Connection::open(config.path())?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch("CREATE TABLE orders (id TEXT PRIMARY KEY, state TEXT NOT NULL)")?;
        let outbox = SqliteOutbox::new(config);
        Ok(Self { connection: Mutex::new(connection), outbox, committed: Mutex::default() })
    }

    /// One transaction for each change: the order's row, and the event that tells of it.
    fn place(&self, order: &str, states: &[&str]) -> Result<(), Error> {
        let mut connection = self.connection.lock().map_err(|_| "the shop's connection is poisoned")?;
        for state in states {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO orders (id, state) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET state = excluded.state",
                (order, state),
            )?;
            self.outbox.enqueue(&transaction, &event(order, state)?)?;
            transaction.commit()?;
            self.remember(order, state);
        }
        say("shop", &format!("{order} is {}: committed", states.join(", then ")));
        Ok(())
    }

    fn place_and_roll_back(&self, order: &str) -> Result<(), Error> {
        let mut connection = self.connection.lock().map_err(|_| "the shop's connection is poisoned")?;
        let transaction = connection.transaction()?;
        transaction.execute("INSERT INTO orders (id, state) VALUES (?1, 'placed')", (order,))?;
        self.outbox.enqueue(&transaction, &event(order, "placed")?)?;
        transaction.rollback()?;
        say("shop", &format!("{order} is placed, but the card is declined: rolled back, the event with it"));
        Ok(())
    }

    fn remember(&self, order: &str, state: &str) {
        if let Ok(mut committed) = self.committed.lock() {
            committed.entry(order.to_owned()).or_default().push(format!("order.{state}"));
        }
    }

    fn committed(&self) -> Promises {
        self.committed.lock().map(|committed| committed.clone()).unwrap_or_default()
    }
}

fn event(order: &str, state: &str) -> Result<Event, Error> {
    let payload = serde_json::json!({ "order": order, "state": state });
    Ok(Event::builder("order", order, format!("order.{state}")).json(&payload).build()?)
}

/// Prints JSON lines, and refuses the first event of one order twice, as brokers do on bad days.
struct Broker {
    lines: JsonLinesPublisher,
    refusals_left: Mutex<u32>,
    arrived: Mutex<Arrivals>,
}

impl Broker {
    fn new() -> Self {
        Self {
            lines: JsonLinesPublisher::writer(Indented),
            refusals_left: Mutex::new(2),
            arrived: Mutex::default(),
        }
    }

    fn arrived(&self) -> Arrivals {
        self.arrived.lock().map(|arrived| arrived.clone()).unwrap_or_default()
    }

    fn refuses(&self, message: &Message) -> bool {
        let Ok(mut left) = self.refusals_left.lock() else { return false };
        let refuses = message.key.aggregate_id() == UNLUCKY && *left > 0;
        *left -= u32::from(refuses);
        refuses
    }

    /// Waits until so many different events have arrived.
    async fn wait_for(&self, count: usize, handle: &mut RelayHandle) -> Result<(), Error> {
        let different = || self.arrived().into_iter().collect::<BTreeSet<_>>().len();
        handle.wait_for(|_| different() >= count).await?;
        Ok(())
    }
}

#[async_trait]
impl Publisher for Broker {
    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        self.lines.check(topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        for (index, message) in messages.into_iter().enumerate() {
            let (order, what) = (message.key.aggregate_id().to_owned(), message.event.event_type.clone());
            if self.refuses(&message) {
                say("broker", &format!("refuses {what} of {order}: the rest of {order} waits, others pass"));
                reporter.report(index, Err(PublishError::transient("Busy", "try again later")));
                continue;
            }
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            self.lines.publish(vec![message], timeout, Reporter::new(0, tell)).await;
            let result = told.recv().await.map_or_else(
                || Err(PublishError::transient("NoOutcome", "the writer did not answer")),
                |report| report.result,
            );
            if result.is_ok()
                && let Ok(mut arrived) = self.arrived.lock()
            {
                arrived.push((order, what));
            }
            reporter.report(index, result);
        }
    }
}

/// Standard output, with the broker's name before each line.
struct Indented;

impl Write for Indented {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines().filter(|line| !line.is_empty()) {
            say("broker", line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

fn new_relay(store: &SqliteStore, broker: &Arc<Broker>) -> Result<Relay, Error> {
    let ms = Duration::from_millis;
    let config = RelayConfig::default()
        .with_source(Arc::from("/shop"))
        // Short times, so that the reader need not wait for the lease of the relay that dies.
        .with_lease_ttl(ms(1500))
        .with_beat_interval(ms(300))
        .with_publish_timeout(ms(500))
        .with_lease_margin(ms(200))
        .with_membership_interval(ms(100))
        .with_retry(RetryPolicy::default().with_delay_min(ms(300)).with_delay_max(ms(600)));
    say("relay", "starts");
    Ok(Relay::new(store.clone(), Arc::clone(broker), config)?)
}
