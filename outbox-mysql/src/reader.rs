//! The reader of one relay: [`MysqlReader`]. It scans from the lowest pending row each time, so that rows
//! that commit late, scheduled rows, new partitions and aggregates whose hold is gone are all found in the
//! same way.
//!
//! # Why it is not a read position
//! A sequence is drawn before its row commits, so rows appear below those that were read. A position is safe
//! only with a bound below which no writer can still commit, and these servers tell no one without special
//! privileges who has an open transaction on a table.
//!
//! # Why it is fast enough
//! The scan runs on an index that has all that decides whether a row is taken, so that what is in flight,
//! held or scheduled for later is passed by without being read: some 1.5 million rows a second. What is in
//! flight comes as a bitmap, which is asked in constant time and without a list that the server would have to
//! look through. One statement is one snapshot, and so the closure under *earlier* is kept.
//!
//! # The cost of what waits, and of a long transaction
//! A scan that took long and hit no limit has met many rows that wait, or rows that are gone and whose
//! removal a transaction somewhere keeps from being finished (a dump, a forgotten session). The reader then
//! rests three times as long, at most a second, so that this costs the server a quarter of one core, and some
//! latency.

mod batch;
mod decode;
mod due_holds;
mod known;
#[cfg(test)]
mod plans;
mod statements;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, StoreError, StoreErrorKind,
    store::{Epoch, FULL_MAX, FetchRequest, Fetched, OutboxReader, Partition, Sequence},
};
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use self::{batch::Batch, decode::decode, known::Bitmap, statements::Statements};
use crate::{
    codec::{NOW_MICROS, duration, micros},
    database::{Database, open},
    error::{CALL_TIMEOUT, silent, store_error},
};

/// A scan that took longer than this and hit no limit is followed by a rest.
const SCAN_LONG: Duration = Duration::from_millis(20);
/// How many times as long as the scan it rests, and the most.
const REST_TIMES: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);

/// How long the transaction of a pause may take from its statement to its commit and still be noticed.
const PAUSED_OVERLAP: Duration = Duration::from_secs(5);

/// Reads for one relay, on a connection of its own.
pub(crate) struct MysqlReader {
    connection: MySqlConnection,
    sql: Statements,
    /// A fetch failed or was dropped half-way: what it read may be lost.
    broken: bool,
    leases: BTreeMap<Partition, Epoch>,
    /// Due holds that were returned and that the relay has not dealt with.
    holds_out: HashMap<AggregateKey, Partition>,
    /// The server's clock when pauses were last looked for.
    paused_looked: i64,
    /// Until when the scan rests.
    rest_until: Option<Instant>,
}

/// What the probe saw.
struct Probe {
    now: i64,
    holds_due: bool,
    next_hold: Option<i64>,
    paused: bool,
}

#[async_trait]
impl OutboxReader for MysqlReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(StoreError::new(
                StoreErrorKind::Misuse,
                "cannot fetch: an earlier fetch of this reader failed or was dropped; make a new reader",
            ));
        }
        let fetched = match tokio::time::timeout(CALL_TIMEOUT, self.read(&request)).await {
            Ok(result) => result.map_err(|error| store_error("read the outbox", error))?,
            Err(_) => return Err(silent("fetch")),
        };
        self.broken = false;
        Ok(fetched)
    }
}

impl MysqlReader {
    pub(crate) async fn open(database: Arc<Database>) -> Result<Self, StoreError> {
        let mut connection = open(&database.pool).await?;
        let query = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW_MICROS}")));
        let now: i64 =
            query.fetch_one(&mut connection).await.map_err(|error| store_error("open a reader", error))?;
        Ok(Self {
            connection,
            sql: Statements::new(database.tables()),
            broken: false,
            leases: BTreeMap::new(),
            holds_out: HashMap::new(),
            paused_looked: now,
            rest_until: None,
        })
    }

    async fn read(&mut self, request: &FetchRequest) -> Result<Fetched, sqlx::Error> {
        self.advance(request);
        if self.leases.is_empty() {
            return Ok(Fetched::default());
        }
        let probe = self.probe().await?;
        let mut batch = Batch::new(request);
        if probe.holds_due {
            self.read_due_holds(&request.known, &mut batch).await?;
        }
        let next_scheduled = self.scan(request, &mut batch).await?;
        let mut fetched = batch.finish();
        fetched.paused = self.paused(&probe).await?;
        let rest = self.rest_until.and_then(|until| until.checked_duration_since(Instant::now()));
        let next = [probe.next_hold, next_scheduled].into_iter().flatten().min().map(duration);
        fetched.next_due = [next, rest].into_iter().flatten().min();
        Ok(fetched)
    }

    /// Takes note of what the relay owns and has dealt with. What it was given under another lease is
    /// forgotten, and what is new is not kept waiting by a rest.
    fn advance(&mut self, request: &FetchRequest) {
        let leases = request.leases.iter().map(|lease| (lease.partition, lease.epoch)).collect();
        let before = std::mem::replace(&mut self.leases, leases);
        let after = &self.leases;
        self.holds_out.retain(|_, partition| {
            after.contains_key(partition) && after.get(partition) == before.get(partition)
        });
        for end in &request.ended_holds {
            self.holds_out.remove(&end.key);
        }
        if before != self.leases || request.ended_holds.iter().any(|end| end.removed) {
            self.rest_until = None;
        }
    }

    /// The owned partitions, one bit each.
    fn parts(&self) -> u64 {
        self.leases.keys().filter(|part| **part < 64).fold(0, |parts, part| parts | 1 << part)
    }

    async fn probe(&mut self) -> Result<Probe, sqlx::Error> {
        let parts = self.parts();
        let since = self.paused_looked.saturating_sub(micros(PAUSED_OVERLAP));
        let row = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.probe)))
            .bind(parts)
            .bind(parts)
            .bind(since)
            .bind(parts)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(Probe {
            now: row.try_get(0)?,
            holds_due: row.try_get(1)?,
            next_hold: row.try_get(2)?,
            paused: row.try_get(3)?,
        })
    }

    /// Adds pending and due rows of aggregates without a hold. Returns when the next scheduled event becomes
    /// due, if all that waits was met.
    async fn scan(&mut self, request: &FetchRequest, batch: &mut Batch) -> Result<Option<i64>, sqlx::Error> {
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        if batch.page.is_full() {
            batch.page.set_more();
            return Ok(None);
        }
        let started = Instant::now();
        let limited = self.scan_rows(request, batch).await?;
        if limited {
            batch.page.set_more();
            self.rest_until = None;
            return Ok(None);
        }
        let sql = AssertSqlSafe(Arc::clone(&self.sql.next_scheduled));
        let next = sqlx::query_scalar(sql).bind(self.parts()).fetch_one(&mut self.connection).await?;
        let took = started.elapsed();
        self.rest_until = (took > SCAN_LONG).then(|| Instant::now() + (took * REST_TIMES).min(REST_MAX));
        Ok(next)
    }

    /// True if there may be more rows.
    async fn scan_rows(&mut self, request: &FetchRequest, batch: &mut Batch) -> Result<bool, sqlx::Error> {
        let bitmap = Bitmap::new(&request.known);
        let (room, bytes_left) = (batch.page.events_left(), batch.page.bytes_left());
        // What the bitmap does not reach may be returned, and must not take the room of others.
        let limit = room + bitmap.left_out;
        let full = &request.full[..request.full.len().min(FULL_MAX)];
        let sql = if full.is_empty() { &self.sql.scan } else { &self.sql.scan_full };
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(self.parts())
            .bind(bitmap.base)
            .bind(&bitmap.bits)
            .bind(bitmap.base)
            .bind(bitmap.base);
        if !full.is_empty() {
            // Always as many, so that the statement is constant.
            for key in full.iter().cycle().take(FULL_MAX) {
                query = query.bind(key.aggregate_type().as_bytes()).bind(key.aggregate_id().as_bytes());
            }
        }
        let query = query.bind(u64::try_from(limit).unwrap_or(u64::MAX));
        let query = query.bind(i64::try_from(bytes_left).unwrap_or(i64::MAX));
        let rows = query.fetch_all(&mut self.connection).await?;
        let mut limited = rows.len() >= limit;
        let mut reads = Vec::with_capacity(rows.len());
        for row in &rows {
            let read = decode(row)?;
            if !is_known(&request.known, read.sequence) {
                reads.push(read);
            }
        }
        reads.sort_unstable_by_key(|read| read.sequence);
        for read in reads {
            if batch.page.is_full() {
                limited = true;
                break;
            }
            if self.holds_out.contains_key(&read.key) {
                // Its hold has just gone, and the relay has not said so yet.
                limited = true;
                continue;
            }
            batch.push(read);
        }
        // The server stops at the payloads' bytes, which are fewer than those of the rows.
        Ok(limited || batch.page.is_full())
    }
}

fn is_known(known: &[Sequence], sequence: Sequence) -> bool {
    known.binary_search(&sequence).is_ok()
}
