//! The fetch contract under random operations, checked against the table after every fetch.
//!
//! A small relay keeps one event of an aggregate in flight, as the engine does; beside it, events are written
//! and scheduled, operators pause, resume, requeue and discard, and leases change hands. A seed repeats the
//! choices; the clock is SQLite's own, so that what is due when may differ.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, OutboxStore, WhenSent,
    store::{
        FailureCause, Fetched, HoldEnd, Outcome, Row, Sequence, SettleRequest, Settlement, Status,
        Successors, Unhold,
    },
};
use rusqlite::Connection;

use crate::common::{TestDatabase, TestRelay, key, retry};

const SEEDS: u64 = 16;
const STEPS: usize = 250;
const AGGREGATES: usize = 5;

struct World {
    seed: u64,
    random: fastrand::Rng,
    connection: Connection,
    relay: TestRelay,
    lanes: BTreeMap<AggregateKey, VecDeque<Row>>,
    /// Due holds in hand, with the row of each.
    holds: Vec<(AggregateKey, Option<Sequence>, Option<Row>)>,
    ended: Vec<HoldEnd>,
}

#[tokio::test]
async fn random_operations_keep_the_fetch_contract_and_lose_nothing() {
    for seed in 0..SEEDS {
        let database = TestDatabase::new();
        let connection = database.connect();
        // The power of the writer's machine does not fail here, and its flushes would be most of the test.
        connection.pragma_update(None, "synchronous", "OFF").unwrap();
        let relay = TestRelay::new(database.store()).await;
        let random = fastrand::Rng::with_seed(seed);
        let mut world = World {
            seed,
            random,
            connection,
            relay,
            lanes: BTreeMap::new(),
            holds: Vec::new(),
            ended: Vec::new(),
        };
        for _ in 0..STEPS {
            world.step().await;
        }
        world.drain().await;
    }
}

impl World {
    async fn step(&mut self) {
        let key = key(&self.random.usize(..AGGREGATES).to_string());
        match self.random.u32(..100) {
            0..20 => self.insert(&key),
            20..55 => self.fetch().await,
            55..80 => self.settle_some(false).await,
            80..84 => self.relay.store.pause(&key).await.unwrap(),
            84..90 => drop(self.relay.store.resume(&key).await.unwrap()),
            90..94 => drop(self.relay.store.requeue(&EventFilter::aggregate(&key)).await.unwrap()),
            94..96 => drop(self.relay.store.discard(&EventFilter::aggregate(&key)).await.unwrap()),
            _ => self.hand_over().await,
        }
    }

    fn insert(&mut self, key: &AggregateKey) {
        for _ in 0..self.random.usize(1..6) {
            // One in four is scheduled, up to eight milliseconds ahead.
            let ahead = self.random.u8(..4).eq(&0).then(|| i64::from(self.random.u8(..8)) * 1_000);
            let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, available_at) VALUES (?1, ?2, 'e', \
                       '', (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000) + ?3)";
            self.connection.execute(sql, (key.aggregate_type(), key.aggregate_id(), ahead)).unwrap();
        }
    }

    fn known(&self) -> BTreeSet<Sequence> {
        let held = self.holds.iter().filter_map(|(_, _, row)| row.as_ref());
        self.lanes.values().flatten().chain(held).map(|row| row.sequence).collect()
    }

    async fn fetch(&mut self) {
        let known = self.known();
        // The end of a hold may be told late: until then, the rest of its aggregate stays away.
        let random = &mut self.random;
        let told = self.ended.extract_if(.., |_| random.u8(..3) > 0).collect();
        let request = self
            .relay
            .request()
            .with_known(known.iter().copied().collect())
            .with_ended_holds(told)
            .with_events_max(self.random.usize(1..8));
        // Taken before the fetch: what was due by then must not be missing.
        let due = self.due_by_key();
        let fetched = self.relay.reader.fetch(request).await.unwrap();
        self.check(&fetched, &known, &due);
        for row in fetched.rows {
            self.lanes.entry(row.key.clone()).or_default().push_back(row);
        }
        for lane in self.lanes.values_mut() {
            lane.make_contiguous().sort_by_key(|row| row.sequence);
        }
        for key in fetched.paused {
            self.lanes.remove(&key);
        }
        for hold in fetched.due_holds {
            self.lanes.remove(&hold.key);
            self.holds.push((hold.key, hold.sequence, hold.row));
        }
    }

    fn due_by_key(&self) -> BTreeMap<AggregateKey, Vec<Sequence>> {
        let sql = "SELECT aggregate_type, aggregate_id, sequence FROM outbox WHERE status = 0 AND (available_at IS NULL \
                   OR available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000) \
                   ORDER BY sequence";
        let mut due: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
        let mut statement = self.connection.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let key = AggregateKey::new(&row.get::<_, String>(0).unwrap(), &row.get::<_, String>(1).unwrap());
            due.entry(key).or_default().push(row.get(2).unwrap());
        }
        due
    }

    fn held(&self) -> BTreeSet<AggregateKey> {
        let mut statement =
            self.connection.prepare("SELECT aggregate_type, aggregate_id FROM outbox_holds").unwrap();
        let keys = statement
            .query_map([], |row| Ok(AggregateKey::new(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)));
        keys.unwrap().map(Result::unwrap).collect()
    }

    fn check(
        &self,
        fetched: &Fetched,
        known: &BTreeSet<Sequence>,
        due: &BTreeMap<AggregateKey, Vec<Sequence>>,
    ) {
        let seed = self.seed;
        let held = self.held();
        let returned: BTreeSet<_> = fetched.rows.iter().map(|row| row.sequence).collect();
        assert_eq!(returned.len(), fetched.rows.len(), "seed {seed}: a row was returned twice");
        let mut last: BTreeMap<&AggregateKey, Sequence> = BTreeMap::new();
        for row in &fetched.rows {
            assert!(!held.contains(&row.key), "seed {seed}: {} is held: {}", row.key, row.sequence);
            let given = self.holds.iter().any(|(key, ..)| *key == row.key)
                || self.ended.iter().any(|end| end.key == row.key);
            assert!(!given, "seed {seed}: the hold of {} is not answered: {}", row.key, row.sequence);
            let before = last.insert(&row.key, row.sequence).unwrap_or(0);
            assert!(before < row.sequence, "seed {seed}: {} before {}", before, row.sequence);
            let earlier = due.get(&row.key).into_iter().flatten().filter(|earlier| **earlier < row.sequence);
            for earlier in earlier {
                let there = known.contains(earlier) || returned.contains(earlier);
                assert!(there, "seed {seed}: {} of {} without {earlier}", row.sequence, row.key);
            }
        }
    }

    /// Settles one event of some lanes, and what is known of some due holds.
    async fn settle_some(&mut self, all_sent: bool) {
        let mut request = self.settlement();
        let (mut ended, mut dropped) = (Vec::new(), Vec::new());
        for (key, sequence, row) in std::mem::take(&mut self.holds) {
            if !all_sent && self.random.bool() {
                self.holds.push((key, sequence, row));
                continue;
            }
            let removed = match row {
                Some(row) => {
                    let (outcome, removed) = self.outcome(all_sent);
                    request.settlements.push(to_settlement(&row, outcome));
                    removed
                }
                None => {
                    request.unholds.push(Unhold::new(key.clone(), 0, sequence));
                    true
                }
            };
            ended.push(HoldEnd::new(key, 0, removed));
        }
        let held =
            self.holds.iter().map(|(key, ..)| key.clone()).chain(ended.iter().map(|end| end.key.clone()));
        let held: BTreeSet<AggregateKey> = held.collect();
        let (random, lanes) = (&mut self.random, &mut self.lanes);
        let mut heads = Vec::new();
        for (key, lane) in lanes.iter_mut().filter(|(key, _)| !held.contains(*key)) {
            if (all_sent || random.bool())
                && let Some(row) = lane.pop_front()
            {
                heads.push((key.clone(), row));
            }
        }
        for (key, row) in heads {
            let (outcome, goes_on) = self.outcome(all_sent);
            request.settlements.push(to_settlement(&row, outcome));
            if !goes_on {
                dropped.push(key);
            }
        }
        assert_eq!(self.relay.store.settle(&request).await.unwrap().fenced, Vec::<u16>::new());
        for key in dropped {
            self.lanes.remove(&key);
        }
        self.ended.extend(ended);
    }

    /// An outcome, and whether the aggregate goes on after it.
    fn outcome(&mut self, sent: bool) -> (Outcome, bool) {
        let failed = |successors| Outcome::Failed {
            cause: FailureCause::Exhausted,
            error: "the broker said no".to_owned(),
            successors,
        };
        match if sent { 0 } else { self.random.u8(..10) } {
            0..6 => (Outcome::Sent, true),
            6..8 => (retry(Duration::from_millis(self.random.u64(..4))), false),
            8 => (failed(Successors::Release), true),
            _ => (failed(Successors::Park), false),
        }
    }

    fn settlement(&mut self) -> SettleRequest {
        let when_sent = [WhenSent::Keep, WhenSent::Delete, WhenSent::Archive][self.random.usize(..3)];
        SettleRequest::new(self.relay.id, vec![self.relay.lease]).with_when_sent(when_sent)
    }

    async fn hand_over(&mut self) {
        let relay = &mut self.relay;
        relay.store.release(relay.id, &[relay.lease]).await.unwrap();
        relay.lease = relay.store.claim(relay.id, &[(0, relay.lease.epoch)]).await.unwrap()[0].lease;
        self.lanes.clear();
        self.holds.clear();
        self.ended.clear();
    }

    /// Everything that is not given up is sent in the end, without a new lease.
    async fn drain(&mut self) {
        for id in 0..AGGREGATES {
            self.relay.store.resume(&key(&id.to_string())).await.unwrap();
        }
        // Ten times the rounds that are ever needed, and well below the time after which a reader starts
        // again from the beginning, which would hide a row that its position has lost.
        for _ in 0..1_000 {
            self.fetch().await;
            self.settle_some(true).await;
            let pending = self.relay.store.list(&EventFilter::status(Status::Pending), 100).await.unwrap();
            if pending.is_empty() {
                return;
            }
        }
        let pending = self.relay.store.list(&EventFilter::status(Status::Pending), 100).await.unwrap();
        let pending: Vec<_> = pending.iter().map(|event| (event.sequence, event.key.to_string())).collect();
        panic!("seed {}: never returned: {pending:?}; holds {:?}", self.seed, self.held());
    }
}

fn to_settlement(row: &Row, outcome: Outcome) -> Settlement {
    let Row { sequence, partition, ref key, attempts, .. } = *row;
    Settlement::new(sequence, partition, key.clone(), attempts + 1, outcome)
}
