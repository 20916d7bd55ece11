//! The reader of one relay: [`PostgresReader`]. It keeps a read position, and finds by other ways what lies
//! behind it.
//!
//! | what | how it is found |
//! |---|---|
//! | new rows | above the read position R, up to the last number drawn F |
//! | rows that commit late | between the visibility bound V and R, in the same statement: see [`bound`] |
//! | scheduled events | by their time, when it comes: see [`schedule`] |
//! | a partition that was claimed | a pass from its persisted floor up to R: see [`leases`] |
//! | an aggregate whose hold is gone | a pass from where its hold began up to R: see [`keys`] |
//! | an aggregate that was full | a pass from where it was left up to R: see [`keys`] |
//!
//! A pass is a small scan of its own with the same two parts, late rows and new ones. Its rows are left out
//! of the main scan until it has come to R.
//!
//! # The cost of a writer that stays open
//! V cannot pass a transaction that has written an event and stays open, so each fetch reads the stretch from
//! there to R again, some 2 million rows a second. Nothing is lost or reordered meanwhile, but it costs. So
//! after a scan that took long and hit no limit the reader rests three times as long, at most a second: such
//! a writer costs the server a quarter of one core at most, and the latency of new events grows with what was
//! written since it began. Keep transactions that write events short.
//!
//! # The cost of a long backlog of one aggregate
//! While it is full, the main scan goes over its rows without returning them, some 3 million a second; later
//! a pass returns them, which goes on from where it was. So each is gone over twice, and no aggregate waits.
//! Only an aggregate of the same partition that backs off meanwhile is read from the floor, which the backlog
//! holds back.
//!
//! The relay's statements do not depend on statistics, so the reader never runs `ANALYZE`; autovacuum does.

mod batch;
mod bound;
mod catch_up;
mod decode;
mod due_holds;
mod floor;
mod keys;
mod leases;
mod main_scan;
#[cfg(test)]
mod plans;
mod progress;
mod schedule;
mod statements;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use outbox_core::{
    StoreError, StoreErrorKind,
    store::{FetchRequest, Fetched, OutboxReader, Partition, RelayId, Sequence},
};
use sqlx::{AssertSqlSafe, Row as _, postgres::types::Oid};

use self::{
    batch::Batch,
    bound::Bound,
    decode::{COLUMN_COUNT, decode, decode_payload},
    keys::Keys,
    leases::Leases,
    progress::Progress,
    schedule::Schedule,
    statements::Statements,
};
use crate::{
    codec::Micros,
    database::{Database, Purpose, Session},
    error::{CALL_TIMEOUT, silent, store_error},
};

/// How long the transaction of a pause may take from its first statement to its commit and still be noticed.
const PAUSED_OVERLAP: Duration = Duration::from_secs(5);

/// Reads for one relay, on a connection of its own.
pub(crate) struct PostgresReader {
    database: Arc<Database>,
    relay: RelayId,
    session: Session,
    sql: Statements,
    /// The sequence, the table and the database.
    oids: [Oid; 3],
    /// A fetch failed or was dropped half-way: what it read may be lost.
    broken: bool,
    bound: Option<Bound>,
    leases: Leases,
    keys: Keys,
    schedule: Schedule,
    floors_raised: Instant,
    /// The partitions of the rows that were returned, as far as the relay may still hold them.
    returned: HashMap<Sequence, Partition>,
    /// Until when pauses have been returned, by the server's clock, and when that was, by ours.
    paused_until: Micros,
    paused_looked: Option<Instant>,
    /// When there were last too many holds for the main statement to hash them.
    many_holds_at: Option<Instant>,
    /// Until when the main scan rests, since a writer that stays open has made it long.
    rest_until: Option<Instant>,
    /// Alternates, so that with room for one row each way of reading has its turn.
    turn: bool,
}

/// What the probe saw.
struct Probe {
    now: Micros,
    /// V, once the fetch has succeeded.
    next_visible: Sequence,
    holds_due: bool,
    next_hold_ms: Option<i64>,
    next_scheduled_ms: Option<i64>,
    paused: bool,
}

#[async_trait]
impl OutboxReader for PostgresReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(StoreError::new(
                StoreErrorKind::Misuse,
                "cannot fetch: an earlier fetch of this reader failed or was dropped; make a new reader",
            ));
        }
        let fetched = match tokio::time::timeout(CALL_TIMEOUT, self.read(&request)).await {
            Ok(result) => result?,
            Err(_) => return Err(silent("fetch")),
        };
        self.broken = false;
        Ok(fetched)
    }
}

impl Drop for PostgresReader {
    fn drop(&mut self) {
        let inherited = self.keys.bequeath();
        if !inherited.is_empty() {
            self.database.inherited().insert(self.relay, inherited);
        }
    }
}

impl PostgresReader {
    pub(crate) async fn open(database: Arc<Database>, relay: RelayId) -> Result<Self, StoreError> {
        let mut session = Session::open(&database.pool, Purpose::Fetch).await?;
        let what = format!("open a reader of {}", database.tables().outbox());
        let sql = "SELECT pg_get_serial_sequence($1, 'sequence')::regclass::oid, $1::regclass::oid, \
                   (SELECT oid FROM pg_database WHERE datname = current_database()), clock_timestamp()";
        let row: (Oid, Oid, Oid, Micros) = sqlx::query_as(sql)
            .bind(database.tables().outbox())
            .fetch_one(&mut session.connection)
            .await
            .map_err(|error| store_error(&what, error))?;
        Ok(Self {
            sql: Statements::new(database.tables()),
            oids: [row.0, row.1, row.2],
            database,
            relay,
            session,
            broken: false,
            bound: None,
            leases: Leases::default(),
            keys: Keys::default(),
            schedule: Schedule::default(),
            floors_raised: Instant::now(),
            returned: HashMap::new(),
            paused_until: row.3.minus(PAUSED_OVERLAP),
            paused_looked: None,
            many_holds_at: None,
            rest_until: None,
            turn: false,
        })
    }

    async fn read(&mut self, request: &FetchRequest) -> Result<Fetched, StoreError> {
        let fail = |error| store_error("read the outbox", error);
        self.adopt(&request.leases).await.map_err(fail)?;
        self.end_holds(&request.ended_holds).await.map_err(fail)?;
        if self.leases.is_empty() {
            return Ok(Fetched::default());
        }
        let Some(mut bound) = self.bound.take() else {
            return Ok(Fetched::default());
        };
        let fetched = self.read_from(&mut bound, request).await;
        self.bound = Some(bound);
        fetched
    }

    async fn read_from(&mut self, bound: &mut Bound, request: &FetchRequest) -> Result<Fetched, StoreError> {
        let fail = |error| store_error("read the outbox", error);
        self.raise_floors(bound, &request.known).await.map_err(fail)?;
        let probe = self.probe(bound).await?;
        let mut batch = Batch::new(request);
        let mut known = Known::new(&request.known);
        self.check_inherited(&known).await.map_err(fail)?;
        self.note_full(bound, &request.full).await.map_err(fail)?;
        if probe.holds_due {
            self.read_due_holds(&probe, &mut batch).await.map_err(fail)?;
        }
        self.look_at_schedule(bound, &probe).await.map_err(fail)?;
        let due = self.read_scheduled(bound, &probe, &mut known, &mut batch).await.map_err(fail)?;
        // With room for one row or two the ways of reading take turns.
        self.turn = !self.turn;
        if self.schedule.queue.is_empty() && (self.turn || batch.room() > 2) {
            self.pass_keys(bound, &probe, &mut known, &mut batch).await.map_err(fail)?;
            self.pass_hot(bound, &probe, &mut known, &mut batch).await.map_err(fail)?;
            self.pass_leases(bound, &probe, &mut known, &mut batch).await.map_err(fail)?;
        }
        self.read_main(bound, &probe, &known, &mut batch, due).await.map_err(fail)?;
        self.read_payloads(&mut batch).await.map_err(fail)?;
        batch.more_if(!self.schedule.queue.is_empty() || self.schedule.must_look() || self.passing());
        batch.more_if(bound.read < bound.drawn && !self.rests());
        let mut fetched = batch.finish();
        self.remember(&fetched);
        fetched.paused = self.paused(&probe).await.map_err(fail)?;
        let next = [probe.next_hold_ms, probe.next_scheduled_ms].into_iter().flatten().min();
        let next = next.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default()));
        let rest = self.rest_until.and_then(|until| until.checked_duration_since(Instant::now()));
        fetched.next_due = [next, rest].into_iter().flatten().min();
        Ok(fetched)
    }

    async fn probe(&mut self, bound: &mut Bound) -> Result<Probe, StoreError> {
        let fail = |error| store_error("read the outbox", error);
        let row = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.probe)))
            .bind(self.oids[0])
            .bind(bound.drawn)
            .bind(bound.visible < bound.drawn)
            .bind(self.oids[1])
            .bind(self.oids[2])
            .bind(self.database.settling_pid.load(Ordering::Acquire))
            .bind(self.leases.all())
            .bind(self.schedule.from().0)
            .bind(self.paused_until)
            .fetch_one(&mut self.session.connection)
            .await
            .map_err(fail)?;
        let drawn: Sequence = row.try_get("f").map_err(fail)?;
        if drawn < bound.drawn {
            return Err(behind(self.database.tables().outbox(), drawn, bound.drawn));
        }
        let writers: Option<Vec<String>> = row.try_get("writers").map_err(fail)?;
        let now: Micros = row.try_get("now").map_err(fail)?;
        Ok(Probe {
            now: self.schedule.clock(now),
            next_visible: bound.observe(drawn, writers),
            holds_due: row.try_get("due").map_err(fail)?,
            next_hold_ms: row.try_get("next_hold_ms").map_err(fail)?,
            next_scheduled_ms: row.try_get("next_scheduled_ms").map_err(fail)?,
            paused: row.try_get("paused").map_err(fail)?,
        })
    }

    /// Reads the payloads that were too large to come with their rows.
    async fn read_payloads(&mut self, batch: &mut Batch) -> Result<(), sqlx::Error> {
        let sequences: Vec<Sequence> = batch.missing().map(|read| read.row.sequence).collect();
        if sequences.is_empty() {
            return Ok(());
        }
        let mut rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.payloads)))
            .bind(sequences)
            .fetch(&mut self.session.connection);
        let mut payloads = HashMap::new();
        while let Some(row) = rows.try_next().await? {
            let (sequence, payload) = decode_payload(&row)?;
            payloads.insert(sequence, payload);
        }
        for read in batch.missing() {
            if let Ok(event) = &mut read.row.content {
                match payloads.remove(&read.row.sequence) {
                    Some(Ok(payload)) => event.payload = payload,
                    Some(Err(problem)) => read.row.content = Err(problem),
                    // Settled or removed since by another relay, which then holds the lease.
                    None => read.row.content = Err("the row was removed while it was read".to_owned()),
                }
            }
        }
        Ok(())
    }

    fn passing(&self) -> bool {
        self.leases.pass.is_some()
            || self.keys.is_hot()
            || (0..keys::LANES).any(|lane| self.keys.lane(lane).is_some())
    }
}

/// What the relay holds, and what this fetch has read already.
struct Known<'a> {
    /// Ascending.
    held: &'a [Sequence],
    read: Vec<Sequence>,
}

impl<'a> Known<'a> {
    fn new(held: &'a [Sequence]) -> Self {
        Self { held, read: Vec::new() }
    }

    fn contains(&self, sequence: Sequence) -> bool {
        self.held.last().is_some_and(|last| sequence <= *last) && self.held.binary_search(&sequence).is_ok()
    }

    /// Those above `low` and up to `high`.
    fn between(&self, low: Sequence, high: Sequence) -> Vec<Sequence> {
        let from = self.held.partition_point(|sequence| *sequence <= low);
        let to = self.held.partition_point(|sequence| *sequence <= high);
        let read = self.read.iter().filter(|sequence| (low + 1..=high).contains(*sequence));
        self.held[from..to.max(from)].iter().chain(read).copied().collect()
    }
}

fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn behind(table: &str, drawn: Sequence, read: Sequence) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unexpected,
        format!(
            "the sequence of {table} stands at {drawn}, but {read} was read already: it was reset; set it above the \
             highest number ever used, or set every floor in the table of partitions to 0 with no relay running"
        ),
    )
}
