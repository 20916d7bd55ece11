//! The relay of a storm: a small model of one, which checks the fetch contract itself after each fetch. What
//! was returned is, with what it holds, closed under *earlier*.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use outbox_core::{
    AggregateKey, WhenSent,
    store::{
        DueHold, EventRecord, FULL_MAX, FailureCause, FetchRequest, Fetched, HoldEnd, HoldReason, HoldRecord,
        Lease, OutboxReader, Outcome, Owner, RelayId, Row, Sequence, SettleRequest, Successors, Unhold,
    },
};

use crate::{
    store::{
        relay::settlement,
        stage::{HOUR, Stage, key},
    },
    violation::{Verdict, Violation},
};

/// How many aggregates there are: few, so that each is always in another one's way.
pub(crate) const KEYS: usize = 40;

/// The versions that are scheduled, by aggregate: they join the order when they become due.
pub(crate) type Scheduled = Mutex<HashSet<(AggregateKey, i32)>>;

/// Events of these aggregates are discarded by the operator, so that their order cannot be known from
/// outside.
pub(crate) fn is_loose(key: &AggregateKey) -> bool {
    key.aggregate_id().ends_with('9')
}

pub(crate) struct Storm<'a> {
    stage: &'a Stage<'a>,
    seed: u64,
    partitions: usize,
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
    scheduled: &'a Scheduled,
    fetches: usize,
    /// Held aggregates whose hold a new reader may return again.
    repeatable: HashSet<AggregateKey>,
}

fn version(row: &Row) -> i32 {
    row.content.as_ref().map_or(0, |content| content.version)
}

impl<'a> Storm<'a> {
    pub(crate) async fn start(
        stage: &'a Stage<'a>,
        seed: u64,
        when_sent: WhenSent,
        scheduled: &'a Scheduled,
    ) -> Verdict<Self> {
        let id = stage.store.join(HOUR).await?;
        let reader = stage.store.reader(id).await?;
        let mut relay = Self {
            stage,
            seed,
            partitions: usize::from(stage.store.capabilities().partitions),
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
        relay.claim().await?;
        Ok(relay)
    }

    async fn claim(&mut self) -> Verdict {
        let membership = self.stage.store.membership(self.id).await?;
        let free = membership.partitions.iter().filter(|view| view.owner == Owner::Free);
        let mut seen: Vec<_> = free.map(|view| (view.partition, view.epoch)).collect();
        // Not all at once, so that passes begin at different times.
        if seen.len() < self.partitions {
            self.rng.shuffle(&mut seen);
            seen.truncate(8);
        }
        self.leases
            .extend(self.stage.store.claim(self.id, &seen).await?.into_iter().map(|claimed| claimed.lease));
        Ok(())
    }

    /// The accidents of a relay's life.
    async fn accident(&mut self) -> Verdict {
        match self.rng.u16(..1000) {
            0..=19 => {
                self.reader = self.stage.store.reader(self.id).await?;
                self.repeatable = self.due.keys().cloned().collect();
            }
            20..=39 => {
                self.rng.shuffle(&mut self.leases);
                let lost = self.leases.split_off(self.leases.len() - self.leases.len().min(5));
                self.stage.store.release(self.id, &lost).await?;
                let lost = |partition| lost.iter().any(|lease| lease.partition == partition);
                self.known.retain(|_, row| !lost(row.partition));
                self.due.retain(|_, hold| !lost(hold.partition));
                self.ended.retain(|end| !lost(end.partition));
            }
            40..=44 => {
                self.stage.store.leave(self.id).await?;
                let id = self.stage.store.join(HOUR).await?;
                self.reader = self.stage.store.reader(id).await?;
                self.id = id;
                self.leases.clear();
                self.known.clear();
                self.due.clear();
                self.ended.clear();
            }
            _ => {}
        }
        if self.leases.len() < self.partitions {
            self.claim().await?;
        }
        Ok(())
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
        debug_assert!(self.full.len() <= FULL_MAX);
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
        for row in first.into_values() {
            if self.rng.u8(..) < 60 {
                continue;
            }
            let outcome = self.outcome();
            let attempts = row.attempts + 1;
            settlements.push(settlement(&row, attempts, outcome));
        }
        let mut request = SettleRequest::new(self.id, self.leases.clone());
        (request.settlements, request.unholds) = (settlements, unholds);
        request.when_sent = self.when_sent;
        request
    }

    /// One turn: a fetch and a settle at the same time.
    pub(crate) async fn turn(&mut self) -> Verdict<usize> {
        self.accident().await?;
        self.crowd();
        let settle = self.settlements();
        let mut known: Vec<Sequence> = self.known.keys().copied().collect();
        known.extend(self.due.values().filter_map(|hold| hold.row.as_ref().map(|row| row.sequence)));
        known.sort_unstable();
        let events_max = [1, 2, 3, 10, 100, 1000][self.rng.usize(0..6)];
        let bytes_max = [1, 20_000, 1 << 20][self.rng.usize(0..3)];
        let mut request = FetchRequest::new(self.leases.clone(), events_max, bytes_max);
        request.known.clone_from(&known);
        request.ended_holds = std::mem::take(&mut self.ended);
        request.full = self.full.iter().cloned().collect();
        let (fetched, settled) = tokio::join!(self.reader.fetch(request), self.stage.store.settle(&settle));
        let (fetched, settled) = (fetched?, settled?);
        if !settled.fenced.is_empty() {
            return Err(self.broken(&format!(
                "partitions {:?} were fenced, which no other relay claims",
                settled.fenced
            )));
        }
        self.fetches += 1;
        let held = self.apply(&settle);
        let count = fetched.rows.len() + fetched.due_holds.iter().filter(|hold| hold.row.is_some()).count();
        if count > events_max {
            return Err(self.broken(&format!("{count} rows of at most {events_max}")));
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
            let row = row.or_else(|| due.as_ref().and_then(|hold| hold.row.clone()));
            // Only what it held was settled.
            let Some(row) = row else { continue };
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
    fn take(&mut self, fetched: Fetched, known: &[Sequence], held: &HashSet<AggregateKey>) -> Verdict {
        for hold in fetched.due_holds {
            if self.due.contains_key(&hold.key) && !self.repeatable.remove(&hold.key) {
                return Err(self.broken(&format!("the hold of {} was returned twice", hold.key)));
            }
            self.known.retain(|_, row| row.key != hold.key);
            if !held.contains(&hold.key) {
                self.due.insert(hold.key.clone(), hold);
            }
        }
        let mut last: HashMap<AggregateKey, Sequence> = HashMap::new();
        for row in fetched.rows {
            if self.full.contains(&row.key) {
                return Err(
                    self.broken(&format!("{} of {} was returned, which is full", row.sequence, row.key))
                );
            }
            let before = last.insert(row.key.clone(), row.sequence);
            if before.is_some_and(|before| before >= row.sequence) {
                return Err(self.broken(&format!("{} comes after {before:?}", row.sequence)));
            }
            if known.binary_search(&row.sequence).is_ok() || held.contains(&row.key) {
                continue;
            }
            if self.sent_sequences.contains(&row.sequence) {
                return Err(
                    self.broken(&format!("{} of {} was returned after it was sent", row.sequence, row.key))
                );
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
    fn check_closure(&self) -> Verdict {
        let scheduled = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
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
                return Err(
                    self.broken(&format!("version {highest} of {key} was returned without {missing:?}"))
                );
            }
        }
        Ok(())
    }

    /// How many events were sent.
    pub(crate) fn sent(&self) -> usize {
        self.sent_sequences.len()
    }

    pub(crate) fn fetches(&self) -> usize {
        self.fetches
    }

    fn broken(&self, found: &str) -> Violation {
        let expected = format!("the contract of a fetch to be kept, by seed {}", self.seed);
        Violation::new(expected, format!("{found}, by fetch {}", self.fetches))
    }

    pub(crate) fn never_settled(&self, left: &[EventRecord], holds: &[HoldRecord]) -> Violation {
        let left: Vec<_> = left.iter().map(|record| (record.sequence, record.key.to_string())).collect();
        let due: Vec<_> = self.due.keys().collect();
        self.broken(&format!(
            "events {left:?} and perhaps more were never returned; holds {holds:?}, due {due:?}"
        ))
    }
}
