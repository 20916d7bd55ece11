//! Questions of throughput and cost.

use std::time::{Duration, Instant};

use outbox::{Enqueue as _, Event, WhenSent};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::bed::{Bed, Running, TOPIC, run};

pub(crate) const BOTH: [(WhenSent, &str); 2] = [(WhenSent::Delete, "deleted"), (WhenSent::Keep, "kept")];

/// Says where and with what this was measured.
pub(crate) async fn machine(bed: &mut Bed) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut connection = bed.connection().await;
    let sql = "SELECT current_setting('server_version'), current_setting('fsync') || '/' || current_setting('synchronous_commit'), \
               to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), current_setting('shared_buffers')";
    let row = sqlx::query(sql).fetch_one(&mut connection).await.unwrap();
    let text = |index: usize| row.get::<String, _>(index);
    println!(
        "{} UTC, outbox {}, CPU{} x {cores}, Linux {}, PostgreSQL {} (fsync/synchronous_commit {}, shared_buffers {}), Kafka \
         acks=all, idempotent; load average at the start {}",
        text(2),
        env!("CARGO_PKG_VERSION"),
        model.trim_start_matches([' ', '\t']),
        read("/proc/sys/kernel/osrelease").trim(),
        text(0),
        text(1),
        text(3),
        read("/proc/loadavg").trim(),
    );
}

fn k(rate: f64) -> String {
    format!("{:.1} k/s", rate / 1000.0)
}

/// Store alone, broker alone, and both, twice and interleaved.
pub(crate) async fn ceiling(bed: &mut Bed) {
    for round in 1..=2 {
        let broker = bed.broker_rate(200_000, 1_000).await;
        bed.row("ceiling", format!("broker without a store, round {round}"), k(broker));
        for (when_sent, name) in BOTH {
            let rates = both(bed, when_sent, 1_000).await;
            report(bed, "ceiling", format!("sent rows {name}, round {round}"), rates, broker);
        }
    }
}

/// The store alone, and the relay.
async fn both(bed: &mut Bed, when_sent: WhenSent, aggregates: u64) -> (f64, f64) {
    // One lane waits for one acknowledgement at a time, so few lanes need no large backlog.
    let events = if aggregates >= 1_000 { 200_000 } else { aggregates * 2_000 };
    let mut rates = [0.0; 2];
    for (rate, broker) in rates.iter_mut().zip([false, true]) {
        let place = bed.place(when_sent).await;
        place.fill(events, aggregates).await;
        *rate = bed.drain(&place, events, 1, broker).await;
        place.drop().await;
    }
    (rates[0], rates[1])
}

/// Processor time of a drained event.
pub(crate) async fn cost(bed: &mut Bed) {
    let events = 400_000;
    for (when_sent, name) in BOTH {
        for (broker, what) in [(false, "without a broker"), (true, "with the broker")] {
            let place = bed.place(when_sent).await;
            place.fill(events, 1_000).await;
            let rate = bed.drain(&place, events, 1, broker).await;
            let spent = bed.spent();
            let us = |ticks: u64| ticks as f64 * 10_000.0 / events as f64;
            let result = format!(
                "{}; µs of processor time an event: PostgreSQL {:.1}, Kafka {:.1}, engine and store {:.1}, Kafka client {:.1}; \
                 cores idle {} %",
                k(rate),
                us(spent.postgres),
                us(spent.kafka),
                us(spent.runtime),
                us(spent.client),
                spent.idle * 100 / spent.all
            );
            bed.row("cost", format!("sent rows {name}, {what}"), result);
            place.drop().await;
        }
    }
}

fn report(bed: &mut Bed, question: &str, case: String, (store, relay): (f64, f64), broker: f64) {
    let ceiling = 1.0 / (1.0 / store + 1.0 / broker);
    let text = format!(
        "store {}, relay **{}**, {:.2} of 1/(1/store + 1/broker)",
        k(store),
        k(relay),
        relay / ceiling
    );
    bed.row(question, case, text);
}

pub(crate) async fn aggregates(bed: &mut Bed) {
    for aggregates in [10, 100, 1_000, 100_000] {
        let broker = bed.broker_rate(100_000, aggregates as usize).await;
        for (when_sent, name) in BOTH {
            let rates = both(bed, when_sent, aggregates).await;
            report(bed, "aggregates", format!("{aggregates}, sent rows {name}"), rates, broker);
        }
    }
}

pub(crate) async fn relays(bed: &mut Bed) {
    for relays in [1, 2, 4] {
        let place = bed.place(WhenSent::Delete).await;
        place.fill(200_000, 1_000).await;
        let rate = bed.drain(&place, 200_000, relays, true).await;
        bed.row("relays", format!("{relays}, in one process, sent rows deleted"), k(rate));
        place.drop().await;
    }
}

pub(crate) async fn backlog(bed: &mut Bed, full: bool) {
    for events in [10_000, 100_000, 1_000_000].into_iter().take(if full { 3 } else { 2 }) {
        for (when_sent, name) in BOTH {
            let place = bed.place(when_sent).await;
            place.fill(events, 1_000).await;
            let rate = bed.drain(&place, events, 1, true).await;
            bed.row("backlog", format!("{events}, sent rows {name}"), k(rate));
            place.drop().await;
        }
    }
}

fn rss_mib(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or(": 0 kB");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// Peak memory of a process that does nothing but drain: see [`drain`].
pub(crate) async fn memory(bed: &mut Bed, full: bool) {
    for events in [10_000, 100_000, 1_000_000].into_iter().take(if full { 3 } else { 2 }) {
        let place = bed.place(WhenSent::Delete).await;
        place.fill(events, 1_000).await;
        let program = std::env::current_exe().unwrap();
        let arguments = ["drain", &place.schema, &events.to_string()];
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the draining process failed: {errors}");
        let result = String::from_utf8(output.stdout).unwrap();
        bed.row("memory", format!("backlog {events}, a process of its own"), result.trim());
        place.drop().await;
    }
}

/// The process that [`memory`] starts: drains what is there, and tells what that took.
pub(crate) async fn drain(bed: &Bed, schema: &str, events: u64) {
    let place = bed.existing(schema.to_owned(), WhenSent::Delete);
    let before = rss_mib("VmRSS");
    bed.drain(&place, events, 1, true).await;
    println!("peak {:.0} MiB, {before:.0} before", rss_mib("VmHWM"));
}

/// What a relay costs that has nothing to do.
pub(crate) async fn idle(bed: &mut Bed) {
    let place = bed.place(WhenSent::Delete).await;
    let relay = Running::start(place.another().await, bed.kafka(), bed.config(WhenSent::Delete));
    relay.ready().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut connection = bed.connection().await;
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let seconds = 10;
    bed.quiet().await;
    let before: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    bed.account(tokio::time::sleep(Duration::from_secs(seconds))).await;
    let after: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let spent = bed.spent();
    // A tick is 10 ms, and so one per cent of a second.
    let result = format!(
        "{:.1} transactions/s, {:.2} % of a core, PostgreSQL {:.2} %",
        (after - before - 1) as f64 / seconds as f64,
        (spent.runtime + spent.client) as f64 / seconds as f64,
        spent.postgres as f64 / seconds as f64
    );
    bed.row("idle", "empty table", result);
    relay.stop().await;
    place.drop().await;
}

/// An aggregate that is held, with many events ahead of all others.
pub(crate) async fn parked(bed: &mut Bed) {
    let mut rates = Vec::new();
    for parked in [0, 100_000] {
        let place = bed.place(WhenSent::Delete).await;
        if parked > 0 {
            place.fill(parked, 1).await;
            let sql = format!(
                "UPDATE {0}.outbox SET id = gen_random_uuid(); \
                 INSERT INTO {0}.outbox_holds (partition, aggregate_type, aggregate_id, sequence, from_sequence, reason) \
                 SELECT partition, aggregate_type, aggregate_id, sequence, sequence, 'parked' FROM {0}.outbox \
                 ORDER BY sequence LIMIT 1; \
                 UPDATE {0}.outbox SET aggregate_id = 'parked'; UPDATE {0}.outbox_holds SET aggregate_id = 'parked', \
                 partition = (SELECT partition FROM {0}.outbox LIMIT 1); VACUUM ANALYZE {0}.outbox",
                place.schema
            );
            for statement in sql.split("; ") {
                run(&mut bed.connection().await, statement.to_owned()).await;
            }
        }
        place.fill(100_000, 1_000).await;
        let rate = bed.drain(&place, 100_000, 1, true).await;
        rates.push(rate);
        place.drop().await;
    }
    let result = format!("{} with it, {} without: {:.2}", k(rates[1]), k(rates[0]), rates[1] / rates[0]);
    bed.row("parked", "100 k events of one held aggregate ahead of 100 k others, deleted", result);
}

/// What an event adds to the transaction that writes it.
pub(crate) async fn enqueue(bed: &mut Bed) {
    let place = bed.place(WhenSent::Keep).await;
    let mut connection = bed.connection().await;
    run(
        &mut connection,
        format!("CREATE TABLE {0}.orders (id int primary key, n int not null)", place.schema),
    )
    .await;
    run(
        &mut connection,
        format!("INSERT INTO {0}.orders SELECT g, 0 FROM generate_series(1, 1000) g", place.schema),
    )
    .await;
    let update = format!("UPDATE {}.orders SET n = n + 1 WHERE id = $1", place.schema);
    let mut times: [Vec<Duration>; 3] = Default::default();
    for number in 0..1_500_i32 {
        // The three kinds take turns, so that each meets the same machine.
        for (kind, times) in times.iter_mut().enumerate() {
            let events: Vec<Event> = (0..[0, 1, 10][kind]).map(|_| event(number as usize)).collect();
            let started = Instant::now();
            let mut transaction = connection.begin().await.unwrap();
            let query = sqlx::query(AssertSqlSafe(update.clone())).bind(number % 1_000 + 1);
            query.execute(&mut *transaction).await.unwrap();
            match events.as_slice() {
                [] => {}
                [event] => drop(place.outbox.enqueue(&mut transaction, event).await.unwrap()),
                events => drop(place.outbox.enqueue_all(&mut transaction, events).await.unwrap()),
            }
            transaction.commit().await.unwrap();
            times.push(started.elapsed());
        }
    }
    for (times, name) in
        times.iter_mut().zip(["an update alone", "with one event", "with ten events at once"])
    {
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        bed.row("enqueue", name, format!("transaction p50 {p50:.2?}, p99 {p99:.2?}"));
    }
    place.drop().await;
}

pub(crate) fn event(number: usize) -> Event {
    let payload = format!("{number:016x}{}", "x".repeat(284)).into_bytes();
    let event = Event::builder(TOPIC, format!("a-{}", number % 1_000), "bench.happened");
    event.payload(payload).build().unwrap()
}
