//! Questions of time: from the return of the writer's commit to the broker's acknowledgement, on one clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use benches::publishers::{Timed, Times};
use outbox::{Enqueue as _, WhenSent};
use sqlx::{Connection as _, PgConnection};

use crate::{
    bed::{Bed, Place, Running, run},
    questions::event,
};

/// What the writers do.
#[derive(Clone, Copy)]
struct Load {
    writers: usize,
    /// Events in one transaction.
    events: usize,
    /// Between the starts of two transactions of one writer.
    every: Duration,
    /// One of so many transactions stays open for 50 ms after it has written.
    late_of: Option<usize>,
    /// The writer wakes the relay after its commit.
    wakes: bool,
}

/// Latencies at several rates.
pub(crate) async fn rates(bed: &mut Bed) {
    let ms = Duration::from_millis;
    let load = |writers, events, every| Load { writers, events, every, late_of: None, wakes: false };
    for (case, load, seconds) in [
        ("idle: one event every 1.3 s", load(1, 1, ms(1_300)), 15),
        ("idle, the writer wakes the relay", Load { wakes: true, ..load(1, 1, ms(1_300)) }, 15),
        ("100/s", load(1, 1, ms(10)), 8),
        ("1,000/s", load(4, 1, ms(4)), 8),
        ("half load, 10 in a transaction", load(4, 10, ms(4)), 8),
    ] {
        let place = bed.place(WhenSent::Keep).await;
        let measured = measure(bed, &place, load, seconds, false).await;
        bed.row("latency", case, measured.text());
        place.drop().await;
    }
}

/// Writers at full speed.
pub(crate) async fn steady(bed: &mut Bed) {
    for (when_sent, name) in crate::questions::BOTH {
        let place = bed.place(when_sent).await;
        let load = Load { writers: 4, events: 10, every: Duration::ZERO, late_of: Some(20), wakes: false };
        let measured = measure(bed, &place, load, 10, false).await;
        bed.row("steady", format!("four writers, 5 % commit 50 ms late, sent rows {name}"), measured.text());
        place.drop().await;
    }
}

/// Writers at full speed while another transaction keeps the server from cleaning up.
pub(crate) async fn horizon(bed: &mut Bed) {
    let place = bed.place(WhenSent::Delete).await;
    let load = Load { writers: 4, events: 10, every: Duration::ZERO, late_of: None, wakes: false };
    let measured = measure(bed, &place, load, 60, true).await;
    bed.row("horizon", "four writers, another transaction open for a minute, deleted", measured.text());
    place.drop().await;
}

struct Measured {
    rate: f64,
    first: f64,
    last: f64,
    missing: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    fn text(&self) -> String {
        let at = |share: f64| {
            let last = self.latencies.len().saturating_sub(1);
            let place = (last as f64 * share) as usize;
            self.latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        let drift = if self.rate > 2_000.0 {
            format!(
                ", relayed {:.1} k/s in the first fifth and {:.1} k/s in the last",
                self.first / 1e3,
                self.last / 1e3
            )
        } else {
            String::new()
        };
        assert_eq!(self.missing, 0, "every event arrives");
        format!("{:.0}/s, p50 {:.1}, p99 {:.1}, max {:.1} ms{drift}", self.rate, at(0.5), at(0.99), at(1.0))
    }
}

async fn measure(bed: &Bed, place: &Place, load: Load, seconds: u64, held: bool) -> Measured {
    bed.quiet().await;
    let times = Times::new(4_000_000);
    let publisher = Arc::new(Timed { inner: bed.kafka(), times: Arc::clone(&times) });
    let relay = Running::start(place.another().await, publisher, bed.config(place.when_sent));
    relay.ready().await;
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut holder = bed.connection().await;
    if held {
        let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TEMPORARY TABLE held () ON COMMIT DROP";
        run(&mut holder, sql.to_owned()).await;
    }
    let mut writers = Vec::new();
    for _ in 0..load.writers {
        let connection = bed.connection().await;
        let (times, stop, next) = (Arc::clone(&times), Arc::clone(&stop), Arc::clone(&next));
        let (outbox, handle) = (place.outbox.clone(), relay.handle.clone());
        let wake = move || {
            if load.wakes {
                handle.wake();
            }
        };
        writers.push(tokio::spawn(async move {
            write(connection, outbox, load, &times, &stop, &next, wake).await;
        }));
    }
    // The first second warms up and does not count.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let from = times.now();
    bed.account(tokio::time::sleep(Duration::from_secs(seconds))).await;
    let to = times.now();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let mut handle = relay.handle.clone();
    let _ = tokio::time::timeout(Duration::from_secs(60), handle.caught_up()).await;
    if held {
        run(&mut holder, "ROLLBACK".to_owned()).await;
    }
    relay.stop().await;
    let (missing, latencies) = times.latencies(from, to);
    let fifth = (to - from) / 5;
    let share = |from, to| times.acknowledged_between(from, to) as f64 * 5.0 / seconds as f64;
    Measured {
        rate: latencies.len() as f64 / seconds as f64,
        first: share(from, from + fifth),
        last: share(to - fifth, to),
        missing,
        latencies,
    }
}

async fn write(
    mut connection: PgConnection,
    outbox: outbox::postgres::PostgresOutbox,
    load: Load,
    times: &Times,
    stop: &AtomicBool,
    next: &AtomicUsize,
    wake: impl Fn(),
) {
    let mut due = tokio::time::Instant::now();
    let mut turn = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let first = next.fetch_add(load.events, Ordering::Relaxed);
        let events: Vec<_> = (first..first + load.events).map(event).collect();
        let mut transaction = connection.begin().await.unwrap();
        match events.as_slice() {
            [event] => drop(outbox.enqueue(&mut transaction, event).await.unwrap()),
            events => drop(outbox.enqueue_all(&mut transaction, events).await.unwrap()),
        }
        turn += 1;
        if load.late_of.is_some_and(|of| turn.is_multiple_of(of)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        transaction.commit().await.unwrap();
        let now = times.now();
        wake();
        for slot in &times.committed[first..first + load.events] {
            slot.store(now, Ordering::Relaxed);
        }
        due += load.every;
        tokio::time::sleep_until(due).await;
    }
}
