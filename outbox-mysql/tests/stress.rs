//! The fetch contract, on both servers, under writers that commit late and out of order, with every other event of a relay's life at
//! random: retries, parks, pauses, requeues, schedules, lost leases, new readers and restarts.
//!
//! The relay here is a small model of one. After each fetch it checks the contract itself: what was returned, with
//! what it holds, is closed under *earlier*. In the end nothing may be lost.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use outbox_core::{
    AggregateKey, Enqueue as _, Event, EventFilter, OutboxAdmin as _, OutboxStore as _, WhenSent,
    store::{
        DueHold, FULL_MAX, FailureCause, FetchRequest, Fetched, HoldEnd, HoldReason, Lease, OutboxReader,
        Outcome, RelayId, Row, Sequence, SettleRequest, Settlement, Status, Successors, Unhold,
    },
};
use outbox_mysql::{MysqlOutbox, MysqlStore};
use sqlx::MySqlPool;
use support::{Place, Server, key, on_both};

const KEYS: usize = 40;
const WRITERS: u64 = 4;
/// The versions that are scheduled, by aggregate: they join the order when they become due.
type Scheduled = Arc<Mutex<HashSet<(AggregateKey, i32)>>>;
const DEADLINE: Duration = Duration::from_secs(240);

/// Events of these aggregates are discarded by the operator, so that their order cannot be known from outside.
fn is_loose(key: &AggregateKey) -> bool {
    key.aggregate_id().ends_with('9')
}

/// Writes `count` events: each counts its aggregate's version up under the lock of a row, so that versions ascend
/// in the order of the commits of one aggregate.
async fn write(
    (pool, outbox): (MySqlPool, MysqlOutbox),
    seed: u64,
    count: usize,
    scheduled: Scheduled,
    running: Arc<AtomicUsize>,
) {
    let mut rng = Rng::with_seed(seed);
    let mut written = 0;
    while written < count {
        let mut transaction = pool.begin().await.unwrap();
        let mut ids: Vec<usize> = (0..rng.usize(1..4)).map(|_| rng.usize(0..KEYS)).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            for _ in 0..rng.usize(1..4) {
                let count = "UPDATE aggregates SET version = LAST_INSERT_ID(version + 1) WHERE id = ?";
                let counted =
                    sqlx::query(count).bind(id.to_string()).execute(&mut *transaction).await.unwrap();
                let version = i32::try_from(counted.last_insert_id()).unwrap();
                let mut event = Event::builder("order", id.to_string(), "changed").version(version);
                if rng.u8(..) < 20 {
                    // Some far enough ahead that the floor passes them by.
                    let millis = if rng.u8(..) < 64 { 1_000..4_000 } else { 0..200 };
                    let at = chrono::Utc::now() + Duration::from_millis(rng.u64(millis));
                    event = event.available_at(at);
                    scheduled.lock().unwrap().insert((key(&id.to_string()), version));
                }
                if rng.u8(..) < 8 {
                    event = event.payload(vec![b'x'; rng.usize(8_000..20_000)]);
                }
                outbox.enqueue(&mut transaction, &event.build().unwrap()).await.unwrap();
                written += 1;
            }
            // Straddles fetches; some for long.
            match rng.u8(..) {
                0..=3 => tokio::time::sleep(Duration::from_millis(rng.u64(20..150))).await,
                4..=60 => tokio::time::sleep(Duration::from_millis(rng.u64(0..4))).await,
                _ => {}
            }
        }
        if rng.u8(..) < 25 {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
        }
    }
    running.fetch_sub(1, Ordering::Release);
}

/// Pauses, resumes, requeues and discards, as long as events are written.
async fn operate(store: MysqlStore, seed: u64, running: Arc<AtomicUsize>) {
    let mut rng = Rng::with_seed(seed);
    while running.load(Ordering::Acquire) > 0 {
        let key = key(&rng.usize(0..KEYS).to_string());
        match rng.u8(..) {
            0..=59 => store.pause(&key).await.unwrap(),
            60..=159 => drop(store.resume(&key).await.unwrap()),
            160..=219 => drop(store.requeue(&EventFilter::aggregate(&key)).await.unwrap()),
            _ if is_loose(&key) => drop(store.discard(&EventFilter::aggregate(&key)).await.unwrap()),
            _ => drop(store.requeue(&EventFilter::status(Status::Failed)).await.unwrap()),
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
    }
}

struct Relay {
    store: MysqlStore,
    rng: Rng,
    when_sent: WhenSent,
    id: RelayId,
    leases: Vec<Lease>,
    reader: Box<dyn OutboxReader>,
    /// Rows that are held, of aggregates that are not read by key.
    known: BTreeMap<Sequence, Row>,
    due: HashMap<AggregateKey, DueHold>,
    ended: Vec<HoldEnd>,
    /// Aggregates that it wants no more of: those it has much of, and any other.
    full: BTreeSet<AggregateKey>,
    /// What was sent and what was given up, by aggregate and version.
    sent: HashMap<AggregateKey, BTreeSet<i32>>,
    failed: HashMap<AggregateKey, BTreeSet<i32>>,
    sent_sequences: HashSet<Sequence>,
    scheduled: Scheduled,
    fetches: usize,
    /// Held aggregates whose hold a new reader may return again.
    repeatable: HashSet<AggregateKey>,
}

fn version(row: &Row) -> i32 {
    row.content.as_ref().unwrap().version
}

impl Relay {
    async fn start(store: MysqlStore, seed: u64, when_sent: WhenSent, scheduled: Scheduled) -> Self {
        let id = store.join(Duration::from_secs(60)).await.unwrap();
        let reader = store.reader(id).await.unwrap();
        let mut relay = Self {
            store,
            rng: Rng::with_seed(seed),
            when_sent,
            id,
            leases: Vec::new(),
            reader,
            known: BTreeMap::new(),
            due: HashMap::new(),
            ended: Vec::new(),
            full: BTreeSet::new(),
            sent: HashMap::new(),
            failed: HashMap::new(),
            sent_sequences: HashSet::new(),
            scheduled,
            fetches: 0,
            repeatable: HashSet::new(),
        };
        relay.claim().await;
        relay
    }

    async fn claim(&mut self) {
        let membership = self.store.membership(self.id).await.unwrap();
        let free = membership.partitions.iter().filter(|p| p.owner == outbox_core::store::Owner::Free);
        let mut seen: Vec<_> = free.map(|p| (p.partition, p.epoch)).collect();
        // Not all at once, so that passes begin at different times.
        if seen.len() < 64 {
            self.rng.shuffle(&mut seen);
            seen.truncate(8);
        }
        self.leases.extend(self.store.claim(self.id, &seen).await.unwrap().into_iter().map(|c| c.lease));
    }

    /// The accidents of a relay's life.
    async fn accident(&mut self) {
        match self.rng.u16(..1000) {
            0..=19 => {
                self.reader = self.store.reader(self.id).await.unwrap();
                self.repeatable = self.due.keys().cloned().collect();
            }
            20..=39 => {
                self.rng.shuffle(&mut self.leases);
                let lost = self.leases.split_off(self.leases.len() - self.leases.len().min(5));
                self.store.release(self.id, &lost).await.unwrap();
                let lost = |partition| lost.iter().any(|lease| lease.partition == partition);
                self.known.retain(|_, row| !lost(row.partition));
                self.due.retain(|_, hold| !lost(hold.partition));
                self.ended.retain(|end| !lost(end.partition));
            }
            40..=44 => {
                self.store.leave(self.id).await.unwrap();
                let id = self.store.join(Duration::from_secs(60)).await.unwrap();
                self.reader = self.store.reader(id).await.unwrap();
                self.id = id;
                self.leases.clear();
                self.known.clear();
                self.due.clear();
                self.ended.clear();
            }
            _ => {}
        }
        if self.leases.len() < 64 {
            self.claim().await;
        }
    }

    /// Names those of which it has much, and takes that back at any time, as it does with any other.
    fn crowd(&mut self) {
        match self.rng.u8(..) {
            0..=25 => self.full.clear(),
            26..=76 => {
                let key = key(&self.rng.usize(0..KEYS).to_string());
                if !self.full.remove(&key) {
                    self.full.insert(key);
                }
            }
            77..=160 => {
                let mut counts: BTreeMap<&AggregateKey, usize> = BTreeMap::new();
                for row in self.known.values() {
                    *counts.entry(&row.key).or_default() += 1;
                }
                self.full
                    .extend(counts.into_iter().filter(|(_, count)| *count > 2).map(|(key, _)| key.clone()));
            }
            _ => {}
        }
        assert!(self.full.len() <= FULL_MAX);
    }

    fn outcome(&mut self) -> Outcome {
        let error = "it failed".to_owned();
        match self.rng.u8(..) {
            0..=9 => {
                let after = Duration::from_millis(self.rng.u64(0..60));
                let reason = if self.rng.bool() { HoldReason::Backoff } else { HoldReason::Topic };
                Outcome::Retry { after, error, reason }
            }
            10..=13 => {
                Outcome::Failed { cause: FailureCause::Exhausted, error, successors: Successors::Release }
            }
            14..=16 => {
                Outcome::Failed { cause: FailureCause::Permanent, error, successors: Successors::Park }
            }
            _ => Outcome::Sent,
        }
    }

    /// What the relay would have published meanwhile: of each aggregate the first event, or the held one.
    fn settlements(&mut self) -> SettleRequest {
        let (mut settlements, mut unholds) = (Vec::new(), Vec::new());
        let mut first: BTreeMap<AggregateKey, Row> = BTreeMap::new();
        for row in self.known.values() {
            first.entry(row.key.clone()).or_insert_with(|| row.clone());
        }
        for hold in self.due.values() {
            match &hold.row {
                Some(row) => drop(first.insert(hold.key.clone(), row.clone())),
                None => unholds.push(Unhold::new(hold.key.clone(), hold.partition, hold.sequence)),
            }
        }
        for (key, row) in first {
            if self.rng.u8(..) < 60 {
                continue;
            }
            let outcome = self.outcome();
            let attempts = row.attempts + 1;
            settlements.push(Settlement::new(row.sequence, row.partition, key, attempts, outcome));
        }
        let leases = self.leases.clone();
        SettleRequest::new(self.id, leases)
            .with_settlements(settlements)
            .with_unholds(unholds)
            .with_when_sent(self.when_sent)
    }

    /// One turn: a fetch and a settle at the same time.
    async fn turn(&mut self) -> Result<usize, String> {
        self.accident().await;
        self.crowd();
        let settle = self.settlements();
        let mut known: Vec<Sequence> = self.known.keys().copied().collect();
        known.extend(self.due.values().filter_map(|hold| hold.row.as_ref().map(|row| row.sequence)));
        known.sort_unstable();
        let request = FetchRequest::new(
            self.leases.clone(),
            [1, 2, 3, 10, 100, 1000][self.rng.usize(0..6)],
            [1, 20_000, 1 << 20][self.rng.usize(0..3)],
        )
        .with_known(known.clone())
        .with_ended_holds(std::mem::take(&mut self.ended))
        .with_full(self.full.iter().cloned().collect());
        let events_max = request.events_max;
        let (fetched, settled) = tokio::join!(self.reader.fetch(request), self.store.settle(&settle));
        let (fetched, settled) = (fetched.unwrap(), settled.unwrap());
        assert!(settled.fenced.is_empty(), "nobody else claims");
        self.fetches += 1;
        let held = self.apply(&settle);
        let count = fetched.rows.len() + fetched.due_holds.iter().filter(|hold| hold.row.is_some()).count();
        if count > events_max {
            return Err(format!("{count} rows of at most {events_max}"));
        }
        self.take(fetched, &known, &held)?;
        Ok(count + settle.settlements.len() + settle.unholds.len())
    }

    /// Records what the settle did; returns the aggregates that it held.
    fn apply(&mut self, settle: &SettleRequest) -> HashSet<AggregateKey> {
        let mut held = HashSet::new();
        for settlement in &settle.settlements {
            let key = &settlement.key;
            let row = self.known.remove(&settlement.sequence);
            let due = self.due.remove(key);
            let row = row.or_else(|| due.as_ref().and_then(|hold| hold.row.clone())).unwrap();
            let removed = match &settlement.outcome {
                Outcome::Sent => {
                    self.sent.entry(key.clone()).or_default().insert(version(&row));
                    self.sent_sequences.insert(row.sequence);
                    true
                }
                Outcome::Failed { successors, .. } => {
                    self.failed.entry(key.clone()).or_default().insert(version(&row));
                    *successors == Successors::Release
                }
                Outcome::Retry { .. } => false,
            };
            if let Some(due) = due {
                self.ended.push(HoldEnd::new(key.clone(), due.partition, removed));
            }
            if !removed {
                held.insert(key.clone());
                self.known.retain(|_, row| row.key != *key);
            }
        }
        for unhold in &settle.unholds {
            self.due.remove(&unhold.key);
            self.ended.push(HoldEnd::new(unhold.key.clone(), unhold.partition, true));
        }
        held
    }

    /// Takes what was fetched, and checks the contract.
    fn take(
        &mut self,
        fetched: Fetched,
        known: &[Sequence],
        held: &HashSet<AggregateKey>,
    ) -> Result<(), String> {
        for hold in fetched.due_holds {
            if self.due.contains_key(&hold.key) && !self.repeatable.remove(&hold.key) {
                return Err(format!("the hold of {} was returned twice", hold.key));
            }
            self.known.retain(|_, row| row.key != hold.key);
            if !held.contains(&hold.key) {
                self.due.insert(hold.key.clone(), hold);
            }
        }
        let mut last: HashMap<AggregateKey, Sequence> = HashMap::new();
        for row in fetched.rows {
            if self.full.contains(&row.key) {
                return Err(format!("{} of {} was returned, which is full", row.sequence, row.key));
            }
            let before = last.insert(row.key.clone(), row.sequence);
            if before.is_some_and(|before| before >= row.sequence) {
                return Err(format!("{} comes after {before:?}", row.sequence));
            }
            if known.binary_search(&row.sequence).is_ok() || held.contains(&row.key) {
                continue;
            }
            if self.sent_sequences.contains(&row.sequence) {
                return Err(format!("{} of {} was returned after it was sent", row.sequence, row.key));
            }
            if self.due.contains_key(&row.key) {
                // Held since the fetch began, or the next requeue of the same aggregate.
                continue;
            }
            self.known.insert(row.sequence, row);
        }
        // After the rows of the same fetch, which may have been read before the pause.
        for key in &fetched.paused {
            self.known.retain(|_, row| row.key != *key);
        }
        self.check_closure()
    }

    /// Of each aggregate, no earlier event is missing between those that are held.
    fn check_closure(&self) -> Result<(), String> {
        let scheduled = self.scheduled.lock().unwrap();
        let is_scheduled = |key: &AggregateKey, version| scheduled.contains(&(key.clone(), version));
        let mut keys: HashMap<&AggregateKey, Vec<&Row>> = HashMap::new();
        for row in self.known.values() {
            keys.entry(&row.key).or_default().push(row);
        }
        for (key, rows) in keys {
            if is_loose(key) {
                continue;
            }
            let done = |version| {
                let is = |map: &HashMap<AggregateKey, BTreeSet<i32>>| {
                    map.get(key).is_some_and(|versions| versions.contains(&version))
                };
                is(&self.sent) || is(&self.failed)
            };
            let held: BTreeSet<i32> = rows.iter().map(|row| version(row)).collect();
            let Some(highest) = held.iter().rev().find(|version| !is_scheduled(key, **version)) else {
                continue;
            };
            let missing: Vec<i32> = (1..*highest)
                .filter(|version| !done(*version) && !held.contains(version) && !is_scheduled(key, *version))
                .collect();
            if !missing.is_empty() {
                return Err(format!("version {highest} of {key} was returned without {missing:?}"));
            }
        }
        Ok(())
    }
}

/// Runs writers, an operator and the relay until everything is settled.
async fn run(server: Server, seed: u64, events: usize, when_sent: WhenSent) {
    let Some(place) = Place::new(server).await else { return };
    place.run("CREATE TABLE aggregates (id VARCHAR(9) PRIMARY KEY, version INT NOT NULL DEFAULT 0)").await;
    for id in 0..KEYS {
        place.run(&format!("INSERT INTO aggregates (id) VALUES ('{id}')")).await;
    }
    let running = Arc::new(AtomicUsize::new(usize::try_from(WRITERS).unwrap()));
    let scheduled = Scheduled::default();
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let database = (place.pool.clone(), place.outbox.clone());
        let count = events / usize::try_from(WRITERS).unwrap();
        let seed = seed * 100 + writer;
        tasks.push(tokio::spawn(write(database, seed, count, Arc::clone(&scheduled), Arc::clone(&running))));
    }
    tasks.push(tokio::spawn(operate(place.store.clone(), seed * 100 + 99, Arc::clone(&running))));
    let mut relay = Relay::start(place.store.clone(), seed, when_sent, scheduled).await;
    let start = Instant::now();
    let pending = "SELECT count(*) FROM outbox WHERE status = 0";
    loop {
        let work = relay.turn().await.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let writing = running.load(Ordering::Acquire) > 0;
        if !writing && relay.fetches % 50 == 0 {
            if place.number(pending).await == 0 {
                break;
            }
            // Parked and paused aggregates go on.
            for id in 0..KEYS {
                place.store.resume(&key(&id.to_string())).await.unwrap();
            }
        }
        if start.elapsed() > DEADLINE {
            let pending = place.number(pending).await;
            panic!(
                "seed {seed}: {pending} events are still pending; holds {:?}, known {}, due {:?}",
                place.store.holds(9).await.unwrap(),
                relay.known.len(),
                relay.due.keys()
            );
        }
        if work == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let written = place.number("SELECT sum(version) FROM aggregates").await;
    let failed = place.number("SELECT count(*) FROM outbox WHERE status = 2").await;
    let sent = i64::try_from(relay.sent_sequences.len()).unwrap();
    assert_eq!(
        written,
        sent + failed,
        "seed {seed}: written = sent + failed, after {} fetches",
        relay.fetches
    );
    place.drop().await;
}

/// One seed, or as many as `OUTBOX_TEST_SEEDS` says.
fn seeds(first: u64) -> impl Iterator<Item = u64> {
    let count = std::env::var("OUTBOX_TEST_SEEDS").map_or(1, |count| count.parse().unwrap());
    (0..count).map(move |seed| first + 3 * seed)
}

on_both! {
    nothing_is_lost_or_overtaken_when_sent_rows_are_kept
    nothing_is_lost_or_overtaken_when_sent_rows_are_deleted
    nothing_is_lost_or_overtaken_when_sent_rows_are_archived
}

async fn nothing_is_lost_or_overtaken_when_sent_rows_are_kept(server: Server) {
    for seed in seeds(1) {
        run(server, seed, 3_000, WhenSent::Keep).await;
    }
}

async fn nothing_is_lost_or_overtaken_when_sent_rows_are_deleted(server: Server) {
    for seed in seeds(2) {
        run(server, seed, 3_000, WhenSent::Delete).await;
    }
}

async fn nothing_is_lost_or_overtaken_when_sent_rows_are_archived(server: Server) {
    for seed in seeds(3) {
        run(server, seed, 1_500, WhenSent::Archive).await;
    }
}
