//! Where a reader is: [`Position`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use mongodb::bson::{Bson, DateTime as BsonDateTime, Document, doc};
use outbox_core::{
    AggregateKey,
    store::{Epoch, FetchRequest, PARTITIONS, Partition, Sequence},
};

use super::snapshot::Snapshot;
use crate::{
    codec::{document::partition_of, sequence::first_of},
    database::Database,
};

/// The most due holds of one fetch, so that a long outage that ends does not fill the memory.
pub(super) const DUE_HOLDS_MAX: usize = 256;

/// The most events that became due that one fetch takes note of.
pub(super) const SCHEDULED_ROWS_MAX: usize = 1_000;

/// No more events that became due are taken note of while this many aggregates are to be caught up with.
const CATCH_UP_MAX: usize = 1_000;

/// How often a reader that has read everything starts again: 30 seconds. A scan of 100,000 parked events
/// takes a few hundred milliseconds, and this keeps it near one per cent.
pub(super) const SWEEP: Duration = Duration::from_secs(30);

/// Where a reader is.
pub(super) struct Position {
    leases: BTreeMap<Partition, Epoch>,
    /// Everything up to here has been returned or passed by, as far as it is visible.
    pub(super) read: Sequence,
    /// Nothing that is not visible yet has a sequence up to here. Not beyond `read`.
    pub(super) bound: Sequence,
    /// What was passed by between the two, so that it is not read again and again.
    pub(super) passed: BTreeSet<Sequence>,
    /// Everything that was due up to here, by time and then by sequence, has been taken note of.
    pub(super) due: (BsonDateTime, Sequence),
    /// Aggregates that were passed by because of a hold.
    pub(super) waiting: HashSet<AggregateKey>,
    /// Aggregates whose due hold the relay has been given and has not answered yet.
    pub(super) given: HashSet<AggregateKey>,
    /// Aggregates with something behind `read`, and the sequence after which it is.
    pub(super) catch_up: HashMap<AggregateKey, Sequence>,
    /// The turns of those to be caught up with. May name one that is not any more, or twice.
    pub(super) turns: VecDeque<AggregateKey>,
    /// The pauses of late that the relay has been told of, with the time of each.
    told: HashMap<AggregateKey, BsonDateTime>,
    /// When the previous fetch was.
    pub(super) fetched_at: Option<BsonDateTime>,
    /// When the scan last started from the beginning; `None` if it is to.
    started_at: Option<BsonDateTime>,
    /// The previous fetch read everything.
    pub(super) idle: bool,
    /// The size of an event, as far as has been seen: how many to ask for at once.
    pub(super) row_bytes: usize,
}

impl Position {
    pub(super) fn new() -> Self {
        Self {
            leases: BTreeMap::new(),
            read: 0,
            bound: 0,
            passed: BTreeSet::new(),
            due: (BsonDateTime::MIN, 0),
            waiting: HashSet::new(),
            given: HashSet::new(),
            catch_up: HashMap::new(),
            turns: VecDeque::new(),
            told: HashMap::new(),
            fetched_at: None,
            started_at: None,
            idle: false,
            row_bytes: 1_000,
        }
    }

    /// Whether the events of this aggregate are the relay's.
    pub(super) fn owns(&self, partition: Partition) -> bool {
        self.leases.contains_key(&partition)
    }

    /// What belongs to the relay, as a condition that an index can answer. What has no partition belongs to
    /// all; its owner finds out by its aggregate.
    pub(super) fn of_partitions(&self) -> Document {
        let others = (0..PARTITIONS).filter(|partition| !self.owns(*partition));
        let others: Vec<Bson> = others.map(|partition| Bson::Int32(partition.into())).collect();
        if others.is_empty() {
            Document::new()
        } else {
            doc! { "partition": { "$nin": others } }
        }
    }

    /// Puts an aggregate on the list of those to be caught up with after a sequence; never beyond the bound,
    /// since an event that becomes visible late can be before those that were read.
    pub(super) fn catch_up_after(&mut self, key: &AggregateKey, after: Sequence) {
        let after = after.min(self.bound);
        let known = self.catch_up.get_mut(key).map(|position| *position = after.min(*position));
        if known.is_none() {
            self.catch_up.insert(key.clone(), after);
            self.turns.push_back(key.clone());
        }
    }

    /// Takes note of what the relay owns. A lease that is new is read from the beginning, and so is
    /// everything else: it costs no more than once what the relay has in hand.
    pub(super) fn lease(&mut self, request: &FetchRequest) {
        let leases = request.leases.iter().map(|lease| (lease.partition, lease.epoch)).collect();
        let before = std::mem::replace(&mut self.leases, leases);
        if self.leases == before {
            return;
        }
        let leases = &self.leases;
        let is_kept = |key: &AggregateKey| {
            let partition = partition_of(key);
            leases.contains_key(&partition) && leases.get(&partition) == before.get(&partition)
        };
        self.waiting.retain(is_kept);
        self.given.retain(is_kept);
        self.catch_up.retain(|key, _| is_kept(key));
        if leases.iter().any(|(partition, epoch)| before.get(partition) != Some(epoch)) {
            self.started_at = None;
        }
    }

    pub(super) fn advance(&mut self, at: &Snapshot<'_>) {
        for end in &at.request.ended_holds {
            self.given.remove(&end.key);
            if end.removed {
                self.waiting.remove(&end.key);
                self.catch_up_after(&end.key, 0);
            } else {
                self.waiting.insert(end.key.clone());
            }
        }
        let is_recent = |started_at: BsonDateTime| {
            started_at <= at.now && at.now.saturating_duration_since(started_at) < SWEEP
        };
        if self.started_at.is_none() || (self.idle && !self.started_at.is_some_and(is_recent)) {
            self.started_at = Some(at.now);
            self.read = 0;
            self.bound = 0;
            self.passed.clear();
            // The scan meets what is due by now, and this position what becomes due later.
            self.due = (at.now, Sequence::MAX);
            self.waiting.clear();
            self.catch_up.clear();
            self.turns.clear();
        }
        // If the clock was set back, events have been passed by since whose time is not behind this position.
        self.due = self.due.min((at.now, Sequence::MAX));
        // What is left out of the scan is read by key, once there is room.
        for key in &at.request.full {
            // What is held comes with the end of the hold.
            if !self.waiting.contains(key) && !self.given.contains(key) {
                self.catch_up_after(key, self.bound);
            }
        }
    }

    /// Takes note of the aggregates of events behind the read position whose time has come. False: there may
    /// be more.
    pub(super) fn note_scheduled(
        &mut self,
        now: BsonDateTime,
        scheduled: Vec<(BsonDateTime, Sequence, AggregateKey)>,
    ) -> bool {
        if self.catch_up.len() >= CATCH_UP_MAX {
            return scheduled.is_empty();
        }
        let all = scheduled.len() < SCHEDULED_ROWS_MAX;
        for (at, sequence, key) in scheduled {
            // The scan has started again since they were looked for.
            if (at, sequence) <= self.due {
                continue;
            }
            self.due = (at, sequence);
            // What is before the read position is for the scan, and what is held comes with the end of the
            // hold.
            let is_held = self.waiting.contains(&key) || self.given.contains(&key);
            if sequence <= self.read && !is_held && self.owns(partition_of(&key)) {
                self.catch_up_after(&key, sequence - 1);
            }
        }
        if all {
            self.due = (now, Sequence::MAX);
        }
        all
    }

    /// Nothing can become visible any more that was inserted twice the life of a transaction ago. What has
    /// become visible since the last scan is behind the bound only once a scan has come so far: none had its
    /// turn where others filled the page, and one that met more than the page takes has ended sooner.
    pub(super) fn move_bound(&mut self, database: &Database, now: BsonDateTime, scanned: Sequence) {
        let lifetime = i64::try_from(database.config.transaction_lifetime.as_secs()).unwrap_or(i64::MAX);
        let second = now.timestamp_millis().div_euclid(1000).saturating_sub(lifetime.saturating_mul(2));
        self.bound = self.bound.max(scanned.min(first_of(second)));
        self.passed = self.passed.split_off(&(self.bound + 1));
    }

    pub(super) fn paused(&mut self, paused: HashMap<AggregateKey, BsonDateTime>) -> Vec<AggregateKey> {
        let told = std::mem::replace(&mut self.told, paused);
        let new = self.told.iter().filter(|(key, at)| told.get(*key) != Some(*at));
        new.map(|(key, _)| key.clone()).filter(|key| self.owns(partition_of(key))).collect()
    }
}
