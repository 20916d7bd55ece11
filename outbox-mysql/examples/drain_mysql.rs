//! How fast the store alone drains: fetch and settle, overlapped, without a broker.
//!
//! `cargo run --release -p outbox-mysql --example drain_mysql URL [keep|delete|archive] [events] [known]`
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement, for people"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use outbox_core::{
    Enqueue as _, Event, FetchRequest, Lease, OutboxStore, Outcome, RelayId, Row, Sequence, SettleRequest,
    Settlement, WhenSent,
};
use outbox_mysql::{MysqlConfig, MysqlOutbox, MysqlStore};
use sqlx::{AssertSqlSafe, MySqlPool};

const AGGREGATES: usize = 1_000;
const PAYLOAD_BYTES: usize = 300;
const ROWS_MAX: usize = 2_000;
/// The database that is made for the measurement, and dropped after it.
const SCHEMA: &str = "outbox_drain";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let url = arguments.first().expect("give the URL of a server");
    let when_sent = match arguments.get(1).map(String::as_str) {
        Some("delete") => WhenSent::Delete,
        Some("archive") => WhenSent::Archive,
        _ => WhenSent::Keep,
    };
    let number = |index: usize, default| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (events, known_max) = (number(2, 100_000), number(3, 8_000));
    let config = MysqlConfig::builder().url(url).schema(SCHEMA).build().unwrap();
    let pool = MySqlPool::connect(url).await.unwrap();
    let drop = || sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {SCHEMA}"))).execute(&pool);
    drop().await.unwrap();
    let store = MysqlStore::connect(&config).await.unwrap();
    store.migrate().await.unwrap();

    let started = Instant::now();
    fill(&pool, &MysqlOutbox::new(&config), events).await;
    report("enqueue", events, started);
    let relay = store.join(Duration::from_secs(600)).await.unwrap();
    let seen: Vec<_> = (0..64).map(|partition| (partition, 0)).collect();
    let claimed = store.claim(relay, &seen).await.unwrap();
    let leases: Vec<Lease> = claimed.into_iter().map(|claimed| claimed.lease).collect();
    let started = Instant::now();
    drain(&store, relay, &leases, (when_sent, events, known_max)).await;
    report(&format!("drain, {when_sent:?}, {known_max} known"), events, started);
    drop().await.unwrap();
}

fn report(what: &str, events: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {events} events in {seconds:.2} s, {:.0} a second", events as f64 / seconds);
}

async fn fill(pool: &MySqlPool, outbox: &MysqlOutbox, events: usize) {
    for from in (0..events).step_by(1_000) {
        let batch: Vec<Event> = (from..events.min(from + 1_000)).map(event).collect();
        let mut transaction = pool.begin().await.unwrap();
        outbox.enqueue_all(&mut transaction, &batch).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

fn event(number: usize) -> Event {
    let id = (number % AGGREGATES).to_string();
    Event::builder("order", id, "order.changed").payload(vec![b'x'; PAYLOAD_BYTES]).build().unwrap()
}

/// Fetches while it settles what was fetched before, with `known_max` rows in hand as a relay has.
async fn drain(
    store: &MysqlStore,
    relay: RelayId,
    leases: &[Lease],
    (when_sent, events, known_max): (WhenSent, usize, usize),
) {
    let mut reader = store.reader(relay).await.unwrap();
    let mut known: BTreeSet<Sequence> = BTreeSet::new();
    let mut waiting: Vec<Row> = Vec::new();
    let (mut sent, mut fetching, mut settling) = (0, Duration::ZERO, Duration::ZERO);
    while sent < events {
        let request = FetchRequest {
            leases: leases.to_vec(),
            known: known.iter().copied().collect(),
            events_max: ROWS_MAX.min(known_max.saturating_sub(known.len())).max(1),
            bytes_max: 16 << 20,
            ..FetchRequest::default()
        };
        let batch: Vec<Row> = waiting.drain(..waiting.len().min(ROWS_MAX)).collect();
        let settle = SettleRequest {
            relay,
            leases: leases.to_vec(),
            settlements: batch.iter().map(settlement).collect(),
            unholds: Vec::new(),
            when_sent,
        };
        let started = Instant::now();
        let (fetched, ()) = tokio::join!(
            async {
                let fetched = reader.fetch(request).await.unwrap();
                fetching += started.elapsed();
                fetched
            },
            async {
                assert!(store.settle(&settle).await.unwrap().fenced.is_empty());
                settling += started.elapsed();
            }
        );
        sent += batch.len();
        for row in &batch {
            known.remove(&row.sequence);
        }
        for row in fetched.rows {
            if known.insert(row.sequence) {
                waiting.push(row);
            }
        }
    }
    println!("fetching {:.2} s, settling {:.2} s", fetching.as_secs_f64(), settling.as_secs_f64());
}

fn settlement(row: &Row) -> Settlement {
    Settlement {
        sequence: row.sequence,
        partition: row.partition,
        key: row.key.clone(),
        attempts: row.attempts + 1,
        outcome: Outcome::Sent,
    }
}
