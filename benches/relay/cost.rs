//! Who spends the processor's time: servers and relay on one machine, by the kernel's own books.

use std::fs;

use sqlx::Connection as _;

use crate::{bed::Bed, questions::BOTH};

/// Processor time so far, in clock ticks of 10 ms.
#[derive(Clone, Copy)]
struct Ticks {
    postgres: u64,
    kafka: u64,
    /// The threads of this process's runtime: store and engine.
    runtime: u64,
    /// Its other threads, which are the Kafka client's.
    client: u64,
}

/// Processor time of a drained event.
pub(crate) async fn cost(bed: &mut Bed) {
    let mut connection = bed.connection().await;
    let backend: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    let postmaster = stat(&format!("/proc/{backend}/stat")).map_or(0, |fields| fields[1]);
    connection.close().await.unwrap();
    let kafka = listener(&bed.brokers).unwrap_or(0);
    let events = 400_000;
    for (when_sent, name) in BOTH {
        for (broker, what) in [(false, "no broker"), (true, "with the broker")] {
            let place = bed.place(when_sent).await;
            place.fill(events, 1_000).await;
            let before = Ticks::now(postmaster, kafka);
            let rate = bed.drain(&place, events, 1, broker).await;
            let after = Ticks::now(postmaster, kafka);
            let us = |part: fn(&Ticks) -> u64| {
                part(&after).saturating_sub(part(&before)) as f64 * 10_000.0 / events as f64
            };
            let result = format!(
                "{:.1} k/s; PostgreSQL {:.1}, Kafka {:.1}, engine and store {:.1}, Kafka client {:.1} µs of processor time an event",
                rate / 1000.0,
                us(|ticks| ticks.postgres),
                us(|ticks| ticks.kafka),
                us(|ticks| ticks.runtime),
                us(|ticks| ticks.client),
            );
            bed.row("cost", format!("sent rows {name}, {what}"), result);
            place.drop().await;
        }
    }
}

impl Ticks {
    fn now(postmaster: u64, kafka: u64) -> Self {
        let mut ticks = Self { postgres: 0, kafka: 0, runtime: 0, client: 0 };
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let path = process.path();
            let Some(fields) = stat(&path.join("stat").to_string_lossy()) else { continue };
            let pid = process.file_name().to_string_lossy().parse::<u64>().unwrap_or_default();
            // The postmaster has the time of its children that have ended.
            if pid == postmaster {
                ticks.postgres += fields[11..15].iter().sum::<u64>();
            } else if fields[1] == postmaster {
                ticks.postgres += fields[11] + fields[12];
            } else if pid == kafka {
                ticks.kafka += fields[11] + fields[12];
            }
        }
        let whole = stat("/proc/self/stat").unwrap();
        for thread in fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            let main = thread.file_name().to_string_lossy() == std::process::id().to_string();
            if (main || name.starts_with("tokio"))
                && let Some(fields) = stat(&thread.path().join("stat").to_string_lossy())
            {
                ticks.runtime += fields[11] + fields[12];
            }
        }
        ticks.client = (whole[11] + whole[12]).saturating_sub(ticks.runtime);
        ticks
    }
}

/// The process that listens where the broker is.
fn listener(brokers: &str) -> Option<u64> {
    let port = brokers.rsplit(':').next()?.parse::<u16>().ok()?;
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let listening = tables.iter().flat_map(|table| table.lines()).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = fields.len() > 9 && fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "0A";
        ours.then(|| format!("socket:[{}]", fields[9]))
    })?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_string_lossy().parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files
            .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy() == listening))
            .then_some(pid)
    })
}

/// The fields of `/proc/…/stat` after the name, those that are no numbers as 0: the parent is 1, the times are 11 to 14.
fn stat(path: &str) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(path).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}
