//! How fast a store alone drains: fetch and settle, overlapped as a relay has them, without lanes and without
//! a broker.
//!
//! `cargo bench -p benches --bench drain -- STORE [keep|delete|archive] [EVENTS] [KNOWN]`, where the store is
//! `postgres`, `mysql`, `mariadb`, `sqlite` or `mongodb`, and KNOWN is how many rows are in hand at most.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot be made ends here")]
#![allow(clippy::expect_used, reason = "as above")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use benches::backlog;
use outbox::{
    OutboxStore, WhenSent,
    store::{FetchRequest, Lease, Outcome, RelayId, Row, Sequence, SettleRequest, Settlement},
};
use testbed::databases::Kind;

const BYTES_MAX: usize = 16 << 20;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--").collect();
    let Some(name) = arguments.first() else {
        // `cargo bench` without arguments runs every binary; this one has a question only about a store.
        return println!("name a store: {:?}", Kind::ALL);
    };
    let when_sent = match arguments.get(1).map(String::as_str) {
        Some("delete") => WhenSent::Delete,
        Some("archive") => WhenSent::Archive,
        Some("keep") | None => WhenSent::Keep,
        Some(other) => panic!("{other} is unknown: expected keep, delete or archive"),
    };
    let number = |index: usize, default| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (events, known_max) = (number(2, 100_000), number(3, 8_000));
    let database = Kind::named(name).fresh().await.expect("the server is there");

    let started = Instant::now();
    backlog::fill(&*database, events).await;
    report("enqueue", events, started);
    let store = database.store();
    let relay = store.join(Duration::from_secs(600)).await.unwrap();
    let seen: Vec<_> = (0..store.capabilities().partitions).map(|partition| (partition, 0)).collect();
    let claimed = store.claim(relay, &seen).await.unwrap();
    let leases: Vec<Lease> = claimed.into_iter().map(|claimed| claimed.lease).collect();
    let started = Instant::now();
    drain(store, relay, &leases, (when_sent, events, known_max)).await;
    report(&format!("drain, {when_sent:?}, {known_max} known"), events, started);
    database.remove().await;
}

fn report(what: &str, events: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {events} events in {seconds:.2} s, {:.0} a second", events as f64 / seconds);
}

/// Fetches while it settles what was fetched before, with `known_max` rows in hand as a relay has.
async fn drain(
    store: &dyn OutboxStore,
    relay: RelayId,
    leases: &[Lease],
    (when_sent, events, known_max): (WhenSent, usize, usize),
) {
    /// Of a fetch, and of a settle.
    const ROWS_MAX: usize = 2_000;
    let mut reader = store.reader(relay).await.unwrap();
    let mut known: BTreeSet<Sequence> = BTreeSet::new();
    let mut waiting: Vec<Row> = Vec::new();
    let (mut sent, mut fetching, mut settling) = (0, Duration::ZERO, Duration::ZERO);
    while sent < events {
        let request = FetchRequest::new(
            leases.to_vec(),
            ROWS_MAX.min(known_max.saturating_sub(known.len())).max(1),
            BYTES_MAX,
        )
        .with_known(known.iter().copied().collect());
        let batch: Vec<Row> = waiting.drain(..waiting.len().min(ROWS_MAX)).collect();
        let settle = SettleRequest::new(relay, leases.to_vec())
            .with_settlements(batch.iter().map(settlement).collect())
            .with_when_sent(when_sent);
        let started = Instant::now();
        let (fetched, ()) = tokio::join!(
            async {
                let fetched = reader.fetch(request).await.unwrap();
                fetching += started.elapsed();
                fetched
            },
            async {
                if !settle.settlements.is_empty() {
                    assert!(store.settle(&settle).await.unwrap().fenced.is_empty());
                }
                settling += started.elapsed();
            }
        );
        sent += batch.len();
        for row in &batch {
            known.remove(&row.sequence);
        }
        waiting.extend(fetched.rows.into_iter().filter(|row| known.insert(row.sequence)));
    }
    println!("fetching {:.2} s, settling {:.2} s", fetching.as_secs_f64(), settling.as_secs_f64());
}

fn settlement(row: &Row) -> Settlement {
    Settlement::new(row.sequence, row.partition, row.key.clone(), row.attempts + 1, Outcome::Sent)
}
