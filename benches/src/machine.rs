//! Who spends the processor's time: servers and relay on one machine, by the kernel's own books.

use std::{fs, time::Duration};

use sqlx::{Connection as _, PgConnection};

/// How long a measurement waits for the machine to be idle.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(60);
const QUIET_LOOK: Duration = Duration::from_millis(300);

/// The servers' processes.
#[derive(Clone, Copy)]
pub struct Machine {
    postmaster: u64,
    kafka: u64,
}

/// Processor time, in clock ticks of 10 ms.
#[derive(Clone, Copy, Default)]
pub struct Ticks {
    pub postgres: u64,
    pub kafka: u64,
    /// The threads of this process's runtime: store and engine.
    pub runtime: u64,
    /// Its other threads, which are the Kafka client's.
    pub client: u64,
    pub idle: u64,
    /// All cores, whatever they did.
    pub all: u64,
}

impl Machine {
    pub async fn find(url: &str, brokers: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        let sql = "SELECT pg_backend_pid()";
        let backend: i32 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        let postmaster = stat(&format!("/proc/{backend}/stat")).map_or(0, |fields| fields[1]);
        connection.close().await.unwrap();
        Self { postmaster, kafka: listener(brokers).unwrap_or(0) }
    }

    /// What was spent since the start of everything.
    pub fn now(self) -> Ticks {
        let mut ticks = Ticks::default();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let path = process.path();
            let Some(fields) = stat(&path.join("stat").to_string_lossy()) else { continue };
            let pid = process.file_name().to_string_lossy().parse::<u64>().unwrap_or_default();
            // The postmaster has the time of its children that have ended.
            if pid == self.postmaster {
                ticks.postgres += fields[11..15].iter().sum::<u64>();
            } else if fields[1] == self.postmaster {
                ticks.postgres += fields[11] + fields[12];
            } else if pid == self.kafka {
                ticks.kafka += fields[11] + fields[12];
            }
        }
        for thread in fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            let main = thread.file_name().to_string_lossy() == std::process::id().to_string();
            if (main || name.starts_with("tokio"))
                && let Some(fields) = stat(&thread.path().join("stat").to_string_lossy())
            {
                ticks.runtime += fields[11] + fields[12];
            }
        }
        ticks.client = own().saturating_sub(ticks.runtime);
        (ticks.idle, ticks.all) = cores();
        ticks
    }

    /// Waits until the cores are idle, but not for ever: what others take is told with the result.
    pub async fn quiet(self) {
        let deadline = tokio::time::Instant::now() + QUIET_WAIT_MAX;
        loop {
            let (idle, all) = cores();
            tokio::time::sleep(QUIET_LOOK).await;
            let now = cores();
            if (now.0 - idle) * 10 >= (now.1 - all) * 9 || tokio::time::Instant::now() > deadline {
                return;
            }
        }
    }
}

impl Ticks {
    pub fn since(self, before: Self) -> Self {
        Self {
            postgres: self.postgres.saturating_sub(before.postgres),
            kafka: self.kafka.saturating_sub(before.kafka),
            runtime: self.runtime.saturating_sub(before.runtime),
            client: self.client.saturating_sub(before.client),
            idle: self.idle - before.idle,
            all: self.all - before.all,
        }
    }

    pub fn add(&mut self, other: Self) {
        self.postgres += other.postgres;
        self.kafka += other.kafka;
        self.runtime += other.runtime;
        self.client += other.client;
        self.idle += other.idle;
        self.all += other.all;
    }

    /// The share of the cores that neither the servers nor this process used, in per cent.
    pub fn foreign(self) -> u64 {
        let ours = self.postgres + self.kafka + self.runtime + self.client;
        self.all.saturating_sub(self.idle + ours) * 100 / self.all.max(1)
    }
}

/// The ticks of this process.
pub fn own() -> u64 {
    stat("/proc/self/stat").map_or(0, |fields| fields[11] + fields[12])
}

/// Ticks that all cores were idle, and all ticks.
pub fn cores() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let cores: Vec<u64> = stat.lines().next().unwrap().split_whitespace().flat_map(str::parse).collect();
    (cores[3] + cores[4], cores[..8].iter().sum())
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

/// The fields of `/proc/…/stat` after the name, those that are not numbers as 0: the parent is 1, the times
/// are 11 to 14.
fn stat(path: &str) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(path).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}
