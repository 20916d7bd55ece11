//! How fast the store alone drains: fetch and settle, overlapped, without a broker.
//!
//! `cargo run --release -p outbox-sqlite --example drain [keep|delete|archive] [events] [known]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, for people")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use outbox_core::{
    Event, FetchRequest, Lease, OutboxStore, Outcome, RelayId, Row, Sequence, SettleRequest, Settlement,
    WhenSent,
};
use outbox_sqlite::{SqliteConfig, SqliteStore, migrate};
use rusqlite::{Connection, TransactionBehavior};

const AGGREGATES: usize = 1_000;
const PAYLOAD_BYTES: usize = 300;
const ROWS_MAX: usize = 1_000;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let when_sent = match arguments.first().map(String::as_str) {
        Some("delete") => WhenSent::Delete,
        Some("archive") => WhenSent::Archive,
        _ => WhenSent::Keep,
    };
    let number = |index: usize, default| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (events, known_max) = (number(1, 100_000), number(2, 4_000));
    let path = std::env::temp_dir().join(format!("outbox-drain-{}.db", uuid::Uuid::now_v7()));
    let config = SqliteConfig::builder(&path).build().unwrap();
    migrate(&config).unwrap();
    let store = SqliteStore::open(config).unwrap();

    let started = Instant::now();
    fill(&store, events);
    report("enqueue", events, started);
    let relay = store.join(Duration::from_secs(600)).await.unwrap();
    let lease = store.claim(relay, &[(0, 0)]).await.unwrap()[0].lease;
    let started = Instant::now();
    drain(&store, relay, lease, when_sent, events, known_max).await;
    report(&format!("drain, {when_sent:?}, {known_max} known"), events, started);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

fn report(what: &str, events: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {events} events in {seconds:.2} s, {:.0} a second", events as f64 / seconds);
}

fn fill(store: &SqliteStore, events: usize) {
    let mut connection = Connection::open(store.config().path()).unwrap();
    let batch = |from: usize| (from..events.min(from + 1_000)).map(event).collect::<Vec<_>>();
    for from in (0..events).step_by(1_000) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        store.outbox().enqueue_all(&transaction, &batch(from)).unwrap();
        transaction.commit().unwrap();
    }
}

fn event(number: usize) -> Event {
    let id = (number % AGGREGATES).to_string();
    Event::builder("order", id, "order.placed").payload(vec![b'x'; PAYLOAD_BYTES]).build().unwrap()
}

/// Fetches while it settles, with up to `known_max` rows in hand, as a relay does.
async fn drain(
    store: &SqliteStore,
    relay: RelayId,
    lease: Lease,
    when_sent: WhenSent,
    events: usize,
    known_max: usize,
) {
    let mut reader = store.reader(relay).await.unwrap();
    let (mut buffer, mut known, mut settled) = (Vec::<Row>::new(), BTreeSet::<Sequence>::new(), 0);
    while settled < events {
        let fetch = async {
            let room = known_max.saturating_sub(known.len()).min(ROWS_MAX);
            if room == 0 {
                return Vec::new();
            }
            let request = FetchRequest {
                leases: vec![lease],
                known: known.iter().copied().collect(),
                events_max: room,
                bytes_max: 16 << 20,
                ..FetchRequest::default()
            };
            reader.fetch(request).await.unwrap().rows
        };
        let batch: Vec<Row> = buffer.drain(..buffer.len().min(ROWS_MAX)).collect();
        let settle = async {
            if batch.is_empty() {
                return;
            }
            let settlements = batch.iter().map(|row| Settlement {
                sequence: row.sequence,
                partition: row.partition,
                key: row.key.clone(),
                attempts: 1,
                outcome: Outcome::Sent,
            });
            let request = SettleRequest {
                relay,
                leases: vec![lease],
                settlements: settlements.collect(),
                unholds: Vec::new(),
                when_sent,
            };
            assert!(store.settle(&request).await.unwrap().fenced.is_empty());
        };
        let (rows, ()) = tokio::join!(fetch, settle);
        settled += batch.len();
        for row in &batch {
            known.remove(&row.sequence);
        }
        known.extend(rows.iter().map(|row| row.sequence));
        buffer.extend(rows);
    }
}
