//! One relay's way through the table: [`SqliteReader`].
//!
//! # Why a read position is safe here
//! SQLite has one writer at a time, in WAL and in rollback-journal mode, and gives the number of an
//! `AUTOINCREMENT` row while that writer holds the lock until its commit. So sequences ascend in the order of
//! commits: no transaction that commits later can leave a row below one that was seen. A number drawn by a
//! transaction that rolled back was never seen, and is given again.
//!
//! # What has to be found behind it
//! Everything at or below the position is either returned, or passed by for a reason that ends with a signal:
//!
//! - it was held. Its aggregate is `waiting` until the relay says that the hold is removed;
//! - it was scheduled for later. A second position, in the order of `available_at`, meets it when its time
//!   has come;
//! - its aggregate was full: the relay has enough of it until it says otherwise.
//!
//! All of them put the aggregate on the list of those to `catch_up`, which are read by key up to the
//! position, and which the scan passes by until that is done: so nothing overtakes. All statements of a fetch
//! see one snapshot.
//!
//! What an operator does by hand (a status set back, a hold deleted) gives no signal: when there is nothing
//! else to read, the reader starts from the beginning again, every [`SWEEP`].

mod snapshot;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, StoreError,
    store::{DueHold, Epoch, FetchRequest, Fetched, OutboxReader, Page, Sequence},
};
use rusqlite::{Connection, params};

use self::snapshot::{Rows, Snapshot};
use crate::{
    SqliteConfig,
    codec::{PARTITION, PENDING_COLUMNS, Pending, lossy},
    database::{Worker, now},
    error::Context,
};

/// The most due holds of one fetch, so that a long outage that ends does not fill the memory.
const DUE_HOLDS_MAX: usize = 256;

/// The most rows one fetch passes by, so that a parked aggregate with a long backlog does not make it slow.
const SCAN_ROWS_MAX: usize = 10_000;

/// The most rows that became due that one fetch takes note of.
const SCHEDULED_ROWS_MAX: usize = 1_000;

/// No more rows that became due are looked for while this many aggregates are to be caught up with.
const CATCH_UP_MAX: usize = 1_000;

/// How often a reader that has read everything starts again: 30 seconds. A scan of 100,000 parked rows takes
/// a few hundred milliseconds, and this keeps it near one per cent.
const SWEEP: Duration = Duration::from_secs(30);

/// The reader of one relay, with a connection and a thread of its own.
///
/// If a fetch is dropped before it answers, the next one starts from the beginning: what was read meanwhile
/// is lost, and would otherwise count as returned.
pub(crate) struct SqliteReader {
    config: SqliteConfig,
    worker: Worker,
    position: Option<Position>,
}

impl SqliteReader {
    pub(crate) fn new(config: &SqliteConfig) -> Result<Self, StoreError> {
        Ok(Self {
            config: config.clone(),
            worker: Worker::spawn(config, "outbox-sqlite-fetch")?,
            position: None,
        })
    }
}

#[async_trait]
impl OutboxReader for SqliteReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        const WHAT: &str = "fetch events";
        let Some(lease) = request.leases.iter().find(|lease| lease.partition == PARTITION).copied() else {
            self.position = None;
            return Ok(Fetched::default());
        };
        let position = self.position.take().filter(|position| position.epoch == lease.epoch);
        let config = self.config.clone();
        let fetched = self.worker.run(move |connection| {
            let mut position = position.unwrap_or_else(|| Position::new(lease.epoch));
            let fetched = position.fetch(&config, connection, &request).doing(WHAT)?;
            Ok((position, fetched))
        });
        let (position, fetched) = fetched.await?;
        self.position = Some(position);
        Ok(fetched)
    }
}

/// Where a reader is, under one lease.
struct Position {
    epoch: Epoch,
    /// Everything up to here has been returned or passed by.
    read: Sequence,
    /// Everything that was due up to here, by time and then by sequence, has been taken note of.
    due: (i64, Sequence),
    /// Aggregates that were passed by because of a hold.
    waiting: HashSet<AggregateKey>,
    /// Aggregates whose due hold the relay has been given and has not answered yet.
    given: HashSet<AggregateKey>,
    /// Aggregates with something behind `read`, and the sequence after which it is.
    catch_up: HashMap<AggregateKey, Sequence>,
    /// The turns of those to be caught up with. May name one that is not any more, or twice.
    turns: VecDeque<AggregateKey>,
    /// Aggregates of which the relay wants no more at present.
    full: HashSet<AggregateKey>,
    /// The pauses that the relay has been told of, with the time of each.
    pauses: HashMap<AggregateKey, i64>,
    /// When the scan last started from the beginning; `None` before the first fetch.
    started_at: Option<i64>,
    /// The previous fetch read everything.
    idle: bool,
}

impl Position {
    fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            read: 0,
            due: (i64::MIN, 0),
            waiting: HashSet::new(),
            given: HashSet::new(),
            catch_up: HashMap::new(),
            turns: VecDeque::new(),
            full: HashSet::new(),
            pauses: HashMap::new(),
            started_at: None,
            idle: false,
        }
    }

    fn fetch(
        &mut self,
        config: &SqliteConfig,
        connection: &mut Connection,
        request: &FetchRequest,
    ) -> rusqlite::Result<Fetched> {
        // Only reads, and ends without a commit: one snapshot for every statement.
        let transaction = connection.transaction()?;
        let at = Snapshot {
            config,
            transaction: &transaction,
            now: now(config, &transaction)?,
            known: &request.known,
        };
        self.advance(&at, request);
        let mut found = Rows { rows: Vec::new(), page: Page::new(request) };
        // Due holds first: everything of their aggregate waits for them.
        let due_holds = self.due_holds(&at, &mut found.page)?;
        let all_due_noted = self.note_scheduled(&at)?;
        self.catch_up(&at, &mut found)?;
        if all_due_noted {
            self.scan(&at, &mut found)?;
        }
        let Rows { rows, page } = found;
        let more = page.more() || !all_due_noted || self.catch_up.keys().any(|key| !self.full.contains(key));
        self.idle = !more && self.catch_up.is_empty();
        let paused = self.paused(&at)?;
        Ok(Fetched::default()
            .with_rows(rows)
            .with_due_holds(due_holds)
            .with_paused(paused)
            .with_more(more)
            .with_next_due(at.next_due()?))
    }

    fn advance(&mut self, at: &Snapshot<'_>, request: &FetchRequest) {
        self.full = request.full.iter().cloned().collect();
        for end in &request.ended_holds {
            self.given.remove(&end.key);
            if end.removed {
                self.waiting.remove(&end.key);
                self.catch_up_after(&end.key, 0);
            } else {
                self.waiting.insert(end.key.clone());
            }
        }
        // If the clock was set back, rows have been passed by since whose time is not behind this position.
        self.due = self.due.min((at.now, Sequence::MAX));
        let interval = i64::try_from(SWEEP.as_micros()).unwrap_or(i64::MAX);
        let is_recent = |started_at| (0..interval).contains(&at.now.saturating_sub(started_at));
        if self.started_at.is_none() || (self.idle && !self.started_at.is_some_and(is_recent)) {
            self.started_at = Some(at.now);
            self.read = 0;
            // The scan meets what is due by now, and this position what becomes due later.
            self.due = (at.now, Sequence::MAX);
            self.waiting.clear();
            self.catch_up.clear();
            self.turns.clear();
        }
    }

    fn catch_up_after(&mut self, key: &AggregateKey, after: Sequence) {
        let known = self.catch_up.get_mut(key).map(|position| *position = after.min(*position));
        if known.is_none() {
            self.catch_up.insert(key.clone(), after);
            self.turns.push_back(key.clone());
        }
    }

    fn due_holds(&mut self, at: &Snapshot<'_>, page: &mut Page) -> rusqlite::Result<Vec<DueHold>> {
        let mut due = at.transaction.prepare_cached(&at.config.sql(
            "SELECT aggregate_type, aggregate_id, sequence FROM {p}_holds INDEXED BY {p}_holds_until \
             WHERE paused_at IS NULL AND until IS NOT NULL AND until <= ?1 ORDER BY until",
        ))?;
        let mut due = due.query([at.now])?;
        let mut found = Vec::new();
        // Half of the page is left to the others, so that a topic which comes back does not stop the rest.
        let events_min = page.events_left() / 2;
        while let Some(hold) = due.next()? {
            let key = AggregateKey::new(&lossy(hold.get_ref(0)?), &lossy(hold.get_ref(1)?));
            let sequence: Option<Sequence> = hold.get(2)?;
            // A relay that still holds the event would not know this one for another attempt, and never
            // answer.
            let is_known = sequence.is_some_and(|sequence| at.is_known(sequence));
            if is_known || self.given.contains(&key) {
                continue;
            }
            if found.len() == DUE_HOLDS_MAX || page.events_left() <= events_min || page.is_full() {
                page.set_more();
                break;
            }
            let row = match sequence {
                Some(sequence) => at.held_row(&key, sequence)?,
                None => None,
            };
            if let Some(row) = &row {
                page.take(row.bytes());
            }
            self.catch_up.remove(&key);
            self.given.insert(key.clone());
            found.push(DueHold::new(key, PARTITION, sequence, row));
        }
        Ok(found)
    }

    /// Takes note of the aggregates of rows behind the position whose time has come. False: there may be
    /// more.
    fn note_scheduled(&mut self, at: &Snapshot<'_>) -> rusqlite::Result<bool> {
        if self.catch_up.len() >= CATCH_UP_MAX {
            return Ok(false);
        }
        let mut rows = at.transaction.prepare_cached(&at.config.sql(
            "SELECT available_at, sequence, aggregate_type, aggregate_id FROM {p} INDEXED BY {p}_scheduled \
             WHERE status = 0 AND available_at IS NOT NULL AND (available_at, sequence) > (?1, ?2) \
             AND available_at <= ?3 ORDER BY available_at, sequence LIMIT ?4",
        ))?;
        let limit = i64::try_from(SCHEDULED_ROWS_MAX).unwrap_or(i64::MAX);
        let mut rows = rows.query(params![self.due.0, self.due.1, at.now, limit])?;
        let mut noted = 0;
        while let Some(row) = rows.next()? {
            noted += 1;
            let sequence = row.get(1)?;
            self.due = (row.get(0)?, sequence);
            let key = AggregateKey::new(&lossy(row.get_ref(2)?), &lossy(row.get_ref(3)?));
            // What is before the position is for the scan, and what is held comes with the end of the hold.
            if sequence <= self.read && !self.waiting.contains(&key) && !self.given.contains(&key) {
                self.catch_up_after(&key, sequence - 1);
            }
        }
        let all = noted < SCHEDULED_ROWS_MAX;
        if all {
            self.due = (at.now, Sequence::MAX);
        }
        Ok(all)
    }

    /// Reads what is behind the position of the aggregates that have something there, each in its turn.
    fn catch_up(&mut self, at: &Snapshot<'_>, found: &mut Rows) -> rusqlite::Result<()> {
        if self.catch_up.is_empty() {
            self.turns.clear();
            return Ok(());
        }
        let mut left = found.page.events_left().div_ceil(2);
        let wanted = self.catch_up.keys().filter(|key| !self.full.contains(*key)).count();
        let share = (left / wanted.max(1)).max(1);
        for _ in 0..self.turns.len() {
            if left == 0 || found.page.is_full() {
                break;
            }
            let Some(key) = self.turns.pop_front() else { break };
            let Some(&after) = self.catch_up.get(&key) else { continue };
            if self.full.contains(&key) {
                self.turns.push_back(key);
                continue;
            }
            if at.is_held(&key)? {
                self.catch_up.remove(&key);
                self.waiting.insert(key);
                continue;
            }
            let events_before = found.rows.len();
            match at.rows_of(&key, (after, self.read), share.min(left), found)? {
                Some(after) => {
                    self.catch_up.insert(key.clone(), after);
                    self.turns.push_back(key);
                }
                None => drop(self.catch_up.remove(&key)),
            }
            left -= found.rows.len() - events_before;
        }
        Ok(())
    }

    /// Reads on from the position.
    fn scan(&mut self, at: &Snapshot<'_>, found: &mut Rows) -> rusqlite::Result<()> {
        let mut rows = at.transaction.prepare_cached(&at.config.sql(&format!(
            "SELECT {PENDING_COLUMNS}, EXISTS(SELECT 1 FROM {{p}}_holds h WHERE h.aggregate_type = o.aggregate_type \
             AND h.aggregate_id = o.aggregate_id) AS held FROM {{p}} o INDEXED BY {{p}}_pending \
             WHERE o.status = 0 AND o.sequence > ?1 ORDER BY o.sequence"
        )))?;
        let mut rows = rows.query([self.read])?;
        let mut rows_left = SCAN_ROWS_MAX.max(found.page.events_left());
        while let Some(row) = rows.next()? {
            if rows_left == 0 || found.page.is_full() {
                found.page.set_more();
                break;
            }
            rows_left -= 1;
            let pending = Pending(row);
            let sequence = pending.sequence()?;
            if !at.is_known(sequence) {
                let (key, valid) = pending.key()?;
                if !valid || (pending.due(at.now)? && !self.passes_by(&key, sequence, row.get("held")?)) {
                    found.add(pending.row(key, at.now)?);
                }
            }
            self.read = sequence;
        }
        Ok(())
    }

    fn passes_by(&mut self, key: &AggregateKey, sequence: Sequence, held: bool) -> bool {
        if self.given.contains(key) || self.catch_up.contains_key(key) || self.waiting.contains(key) {
            return true;
        }
        let full = self.full.contains(key);
        if held {
            self.waiting.insert(key.clone());
        } else if full {
            self.catch_up_after(key, sequence - 1);
        }
        held || full
    }

    fn paused(&mut self, at: &Snapshot<'_>) -> rusqlite::Result<Vec<AggregateKey>> {
        let mut pauses = at.transaction.prepare_cached(&at.config.sql(
            "SELECT aggregate_type, aggregate_id, paused_at FROM {p}_holds INDEXED BY {p}_holds_paused \
             WHERE paused_at IS NOT NULL",
        ))?;
        let pauses = pauses.query_map([], |row| {
            Ok((AggregateKey::new(&lossy(row.get_ref(0)?), &lossy(row.get_ref(1)?)), row.get(2)?))
        })?;
        let told = std::mem::replace(&mut self.pauses, pauses.collect::<rusqlite::Result<_>>()?);
        let new = self.pauses.iter().filter(|(key, paused_at)| told.get(*key) != Some(*paused_at));
        Ok(new.map(|(key, _)| key.clone()).collect())
    }
}
