//! Events of a service, as many as a measurement needs.

use std::time::Duration;

use outbox::Event;
use testbed::databases::{Change, Database, End, Fate};

/// How many aggregates take turns.
pub const AGGREGATES: usize = 1_000;

/// The size of a payload.
pub const PAYLOAD_BYTES: usize = 300;

/// Of an aggregate in a row.
const RUN: usize = 10;

/// Commits so many events, the aggregates taking turns by ten events.
pub async fn fill(database: &dyn Database, events: usize) {
    let runs: Vec<usize> = (0..events / RUN).collect();
    for runs in runs.chunks(100) {
        let changes: Vec<Change> = runs.iter().map(|run| change(run % AGGREGATES, RUN, run * RUN)).collect();
        commit(database, &changes).await;
    }
}

/// Commits these changes in one transaction.
pub async fn commit(database: &dyn Database, changes: &[Change]) {
    let fate = database.transact(changes, Duration::ZERO, End::Commit).await;
    assert_eq!(fate, Ok(Fate::Committed));
}

/// So many events of an aggregate, whose payloads have this number.
#[must_use]
pub fn change(aggregate: usize, events: usize, number: usize) -> Change {
    let account = format!("a-{aggregate}");
    let event = |_| {
        let event = Event::builder("account", &account, "account.changed").payload(payload(number));
        event.build().unwrap()
    };
    Change { events: (0..events).map(event).collect(), account: account.clone(), topic: None }
}

/// The number in the digits that [`Times`](crate::publishers::Times) reads, and filling.
#[must_use]
pub fn payload(number: usize) -> Vec<u8> {
    let mut payload = format!("{number:016x}").into_bytes();
    payload.resize(PAYLOAD_BYTES, b'x');
    payload
}
