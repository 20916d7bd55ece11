//! One run: writers, relays, operators, and whatever goes wrong.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outbox::{
    AggregateKey, Disposal, Event, EventFilter, OutboxAdmin, Relay, RelayConfig, RelayHandle, Retention,
    RetryPolicy, WhenSent,
    memory::MemoryStore,
    relay::{Clock, GiveUp, Phase},
    store::Status,
};
use uuid::Uuid;

use super::{
    checker::{Checker, Committed},
    executor::{Process, Sim, SimClock, StoreClock, WORLD},
    publisher::{Broker, SimPublisher},
    store::{Bug, Database, SimStore},
};

/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(15);
/// By when everything must have been dealt with once nothing goes wrong any more.
const END: Duration = Duration::from_secs(120);
const PUBLISH_MAX: usize = 8;
/// How long after the end of all trouble its last traces are gone: frozen relays, their leases, holds of
/// topics.
const TRACES: Duration = Duration::from_secs(8);
/// What is written at once of one aggregate then, and by when others that were written after it must be
/// delivered. The one alone takes at least three times as long.
const CROWD: u128 = 400;
const CROWDED: Duration = Duration::from_secs(2);

/// What a run found.
pub(crate) struct Run {
    pub violations: Vec<String>,
    pub digest: u64,
    pub trace: Vec<String>,
    pub deliveries: usize,
}

/// The relays that run, by process, each with the task of its run.
type Relays = Arc<Mutex<BTreeMap<Process, (RelayHandle, u64)>>>;

#[derive(Clone)]
struct World {
    sim: Sim,
    checker: Arc<Checker>,
    database: Arc<Database>,
    broker: Arc<Broker>,
    store_ahead: Arc<Mutex<Duration>>,
    relays: Relays,
    processes: Arc<Mutex<Process>>,
    config: RelayConfig,
    healed: Arc<AtomicBool>,
    writers_left: Arc<Mutex<u32>>,
    locks: Arc<Mutex<BTreeSet<AggregateKey>>>,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Run {
    let sim = Sim::new(seed, trace);
    let checker = Arc::new(Checker::default());
    let store_ahead = Arc::new(Mutex::new(Duration::from_secs(3600)));
    let memory = MemoryStore::new(Arc::new(StoreClock { sim: sim.clone(), ahead: Arc::clone(&store_ahead) }));
    let database = Arc::new(Database {
        sim: sim.clone(),
        checker: Arc::clone(&checker),
        memory,
        faults: Mutex::new([0.0, 0.01, 0.04][sim.pick(0..3) as usize]),
        down: Mutex::new(false),
        bug,
        vanished: Mutex::default(),
        hidden: Mutex::default(),
        relays: Mutex::default(),
    });
    let broker = Arc::new(Broker {
        sim: sim.clone(),
        checker: Arc::clone(&checker),
        faults: Mutex::new([0.0, 0.02, 0.1][sim.pick(0..3) as usize]),
        down: AtomicBool::new(false),
        topics_down: Mutex::default(),
        publish_max: PUBLISH_MAX,
    });
    let world = World {
        config: config(&sim),
        sim: sim.clone(),
        checker: Arc::clone(&checker),
        database,
        broker,
        store_ahead,
        relays: Relays::default(),
        processes: Arc::new(Mutex::new(WORLD)),
        healed: Arc::default(),
        writers_left: Arc::default(),
        locks: Arc::default(),
    };
    world.populate();
    let (done, looked_at) = (world.clone(), Cell::new(Duration::ZERO));
    let finished = sim.run(END, move || {
        let due = done.sim.now() >= looked_at.get() + Duration::from_millis(200);
        if due {
            looked_at.set(done.sim.now());
        }
        due && done.is_quiet()
    });
    if !finished {
        checker
            .violation(format!("G4: not quiet by {END:?} although nothing has gone wrong since {TROUBLE:?}"));
    }
    checker.finish(&world.left());
    let run = Run {
        violations: checker.violations(),
        digest: sim.digest(),
        trace: sim.trace(),
        deliveries: checker.deliveries(),
    };
    world.tear_down();
    run
}

fn config(sim: &Sim) -> RelayConfig {
    let ms = Duration::from_millis;
    // What is drawn is drawn in this order: a seed's run depends on it.
    let config = RelayConfig::default()
        .with_lease_ttl(ms(2000))
        .with_beat_interval(ms(300))
        .with_membership_interval(ms(150))
        .with_publish_timeout(ms(600))
        .with_lease_margin(ms(200))
        .with_in_flight_max(16)
        .with_publish_max(PUBLISH_MAX)
        .with_buffer_events_max([16, 32, 48, 96][sim.pick(0..4) as usize])
        .with_fetch_events_max(sim.pick(1..20) as usize)
        .with_settle_events_max(sim.pick(1..20) as usize)
        .with_poll_min(ms(10))
        .with_poll_max(ms(150))
        .with_unavailable_delay((ms(50), ms(500)))
        .with_topic_recheck(ms(1500))
        .with_shutdown_timeout(ms(2000));
    let retry = RetryPolicy::default()
        .with_attempts_max(sim.pick(2..7) as u32)
        .with_delay_min(ms(50))
        .with_delay_max(ms(800))
        .with_give_up([GiveUp::Store, GiveUp::Discard, GiveUp::Park][sim.pick(0..3) as usize]);
    let retention = Retention::default()
        .with_when_sent([WhenSent::Keep, WhenSent::Delete, WhenSent::Archive][sim.pick(0..3) as usize])
        .with_sent(Some((ms(3000), Disposal::Delete)))
        .with_failed(sim.chance(0.5).then_some((ms(3000), Disposal::Delete)))
        .with_interval(ms(700))
        .with_batch_max(5);
    config.with_retry(retry).with_retention(retention)
}

impl World {
    fn populate(&self) {
        for _ in 0..self.sim.pick(1..4) {
            self.start_relay();
        }
        let writers = self.sim.pick(2..5) as u32;
        let crowd = self.sim.chance(0.3);
        let odd = self.sim.chance(0.3);
        *self.writers_left.lock().expect("writers") = writers + u32::from(crowd) + u32::from(odd);
        if odd {
            let world = self.clone();
            self.sim.spawn(WORLD, async move { world.odd().await });
        }
        if crowd {
            let world = self.clone();
            self.sim.spawn(WORLD, async move { world.crowd().await });
        }
        let aggregates = self.sim.pick(2..9);
        for writer in 0..writers {
            let world = self.clone();
            self.sim.spawn(WORLD, async move { world.write(writer, aggregates).await });
        }
        let world = self.clone();
        self.sim.spawn(WORLD, async move { world.make_trouble().await });
        let world = self.clone();
        self.sim.spawn(WORLD, async move { world.operate(aggregates).await });
    }

    fn start_relay(&self) {
        let process = {
            let mut processes = self.processes.lock().expect("processes");
            *processes += 1;
            *processes
        };
        let config = self.config.clone().with_seed(Some(self.sim.pick(0..u64::MAX)));
        // Every process's clock has an origin of its own.
        let offset = Duration::from_secs(u64::from(process) * 3600);
        let clock: Arc<dyn Clock> = Arc::new(SimClock { sim: self.sim.clone(), process, offset });
        let store = SimStore { database: Arc::clone(&self.database), process };
        let unknown_is_success = self.database.bug == Some(Bug::UnknownIsSuccess);
        let publisher = SimPublisher { broker: Arc::clone(&self.broker), process, unknown_is_success };
        let relay = Relay::with_clock(store, publisher, config, clock).expect("valid settings");
        self.sim.note(|| format!("relay {process} starts"));
        let (sim, relays) = (self.sim.clone(), Arc::clone(&self.relays));
        let handle = relay.handle();
        let task = self.sim.spawn(process, async move {
            let status = relay.run().await;
            relays.lock().expect("relays").remove(&process);
            sim.note(|| format!("relay {process} has ended: {} sent", status.sent));
        });
        self.relays.lock().expect("relays").insert(process, (handle, task));
    }

    /// The relay's process is killed, or its future dropped while the process goes on.
    fn end_relay(&self, process: Process, killed: bool) {
        let ended = self.relays.lock().expect("relays").remove(&process);
        if killed {
            self.sim.note(|| format!("relay {process} is killed"));
            self.sim.kill(process);
        } else if let Some((handle, task)) = ended {
            self.sim.note(|| format!("relay {process} is dropped"));
            self.sim.end_task(task);
            assert_eq!(handle.status().phase, Phase::Dropped, "a relay that was dropped says so");
        }
    }

    fn key(&self, aggregates: u64) -> AggregateKey {
        let number = self.sim.pick(0..aggregates);
        AggregateKey::new(if number.is_multiple_of(2) { "order" } else { "stock" }, &number.to_string())
    }

    /// Transactions that lock their aggregates, write events, stay open for a while, and commit or roll back.
    async fn write(&self, writer: u32, aggregates: u64) {
        let mut made = 0_u128;
        while self.sim.now() < TROUBLE.mul_f64(0.8) {
            let keys: BTreeSet<AggregateKey> =
                (0..self.sim.pick(1..3)).map(|_| self.key(aggregates)).collect();
            while !self.try_lock(&keys) {
                self.sim.sleep(self.sim.millis(5..40)).await;
            }
            let mut transaction = self.database.memory.begin();
            let mut events = Vec::new();
            // Now and then one aggregate has more than a relay wants of it.
            let count = if self.sim.chance(0.05) { self.sim.pick(20..60) } else { self.sim.pick(1..6) };
            for _ in 0..count {
                made += 1;
                let key = keys.iter().nth(self.sim.pick(0..keys.len() as u64) as usize).expect("a key");
                let id = Uuid::from_u128((u128::from(writer) + 1) << 64 | made);
                events.push(self.event(&mut transaction, key, id));
                self.sim.sleep(self.sim.millis(0..10)).await;
            }
            let open = if self.sim.chance(0.1) { 1500 } else { 30 };
            self.sim.sleep(self.sim.millis(0..open)).await;
            if self.sim.chance(0.15) {
                transaction.rollback();
                events.iter().for_each(|event| self.checker.rolled_back(event.id));
            } else {
                for event in events {
                    self.sim.note(|| format!("committed {} {}", event.key, event.sequence));
                    self.checker.state(event.sequence, Status::Pending);
                    self.checker.committed(event);
                }
                transaction.commit();
            }
            self.locks.lock().expect("locks").retain(|key| !keys.contains(key));
            let rest = if self.sim.chance(0.1) { 3000 } else { 400 };
            self.sim.sleep(self.sim.millis(0..rest)).await;
        }
        *self.writers_left.lock().expect("writers") -= 1;
    }

    /// Once all is well, much is written of one aggregate, and then a little of others, which must not wait
    /// for it.
    async fn crowd(&self) {
        while !self.healed.load(Ordering::Relaxed) {
            self.sim.sleep(Duration::from_millis(200)).await;
        }
        self.sim.sleep(TRACES).await;
        let (hot, first) = (AggregateKey::new("crowd", "hot"), 1 << 96);
        self.commit_good((first..first + CROWD).map(|id| (hot.clone(), Uuid::from_u128(id))));
        let others: Vec<_> = (1..6)
            .map(|n| (AggregateKey::new("crowd", &n.to_string()), Uuid::from_u128(first + CROWD + n)))
            .collect();
        self.commit_good(others.clone());
        self.sim.sleep(CROWDED).await;
        for (key, id) in others {
            if !self.checker.is_delivered(id) {
                self.checker.violation(format!(
                    "G4: event of {key} is not delivered {CROWDED:?} after its commit, behind {CROWD} of {hot}"
                ));
            }
        }
        *self.writers_left.lock().expect("writers") -= 1;
    }

    /// Once all is well, the database refuses to record what becomes of one aggregate, and others must not
    /// wait for it.
    async fn odd(&self) {
        while !self.healed.load(Ordering::Relaxed) {
            self.sim.sleep(Duration::from_millis(200)).await;
        }
        self.sim.sleep(TRACES).await;
        let odd = AggregateKey::new("odd", "1");
        self.refuse(&odd, true);
        let first = 1_u128 << 97;
        let others: Vec<_> = (0..40)
            .map(|n| (AggregateKey::new("odd", &(n % 8).to_string()), Uuid::from_u128(first + n)))
            .collect();
        self.commit_good(others.clone());
        self.sim.sleep(CROWDED).await;
        for (key, id) in others.iter().filter(|(key, _)| *key != odd) {
            let filter = EventFilter::id(*id).with_status(Status::Pending);
            if !self.database.memory.list(&filter, 1).await.expect("list").is_empty() {
                self.checker.violation(format!(
                    "G4: event of {key} is not recorded {CROWDED:?} after its commit, beside {odd}, which is refused"
                ));
            }
        }
        self.refuse(&odd, false);
        *self.writers_left.lock().expect("writers") -= 1;
    }

    fn refuse(&self, key: &AggregateKey, refused: bool) {
        self.sim.note(|| format!("the database refuses to record {key}: {refused}"));
        self.database.memory.refuse(key, refused);
    }

    /// Commits events that nothing is wrong with.
    fn commit_good(&self, events: impl IntoIterator<Item = (AggregateKey, Uuid)>) {
        let mut transaction = self.database.memory.begin();
        for (key, id) in events {
            let event = Event::builder(key.aggregate_type(), key.aggregate_id(), "good").id(id);
            let sequence = transaction.enqueue(&event.build().expect("a valid event")).expect("a new id");
            self.checker.state(sequence, Status::Pending);
            self.checker.committed(Committed { id, sequence, key, scheduled: false });
        }
        transaction.commit();
    }

    fn try_lock(&self, keys: &BTreeSet<AggregateKey>) -> bool {
        let mut locks = self.locks.lock().expect("locks");
        let free = keys.iter().all(|key| !locks.contains(key));
        if free {
            locks.extend(keys.iter().cloned());
        }
        free
    }

    fn event(
        &self,
        transaction: &mut outbox::memory::MemoryTransaction,
        key: &AggregateKey,
        id: Uuid,
    ) -> Committed {
        let key = key.clone();
        if self.sim.chance(0.03) {
            let sequence = transaction.enqueue_undecodable(&key, "simulated");
            return Committed { id, sequence, key, scheduled: false };
        }
        let event_type = match self.sim.pick(0..100) {
            0..3 => "permanent",
            3..5 => "batch",
            5..8 => "transient",
            _ => "good",
        };
        let mut event = Event::builder(key.aggregate_type(), key.aggregate_id(), event_type).id(id);
        let scheduled = self.sim.chance(0.05);
        if scheduled {
            event = event.available_at(self.database.memory.now() + self.sim.millis(0..4000));
        }
        let sequence = transaction.enqueue(&event.build().expect("a valid event")).expect("a new id");
        Committed { id, sequence, key, scheduled }
    }

    async fn make_trouble(&self) {
        while self.sim.now() < TROUBLE {
            self.sim.sleep(self.sim.millis(100..4000)).await;
            let process = {
                let relays: Vec<Process> = self.relays.lock().expect("relays").keys().copied().collect();
                if relays.is_empty() { WORLD } else { relays[self.sim.pick(0..relays.len() as u64) as usize] }
            };
            match self.sim.pick(0..10) {
                _ if process == WORLD => self.start_relay(),
                how @ (0 | 1) => {
                    self.end_relay(process, how == 0);
                    self.sim.sleep(self.sim.millis(0..1000)).await;
                    self.start_relay();
                }
                2 | 3 => {
                    self.sim.note(|| format!("relay {process} is frozen"));
                    let freeze = self.sim.millis(200..6000);
                    self.sim.freeze(process, freeze);
                }
                4 => {
                    self.sim.note(|| format!("relay {process} is asked to end"));
                    if let Some((handle, _)) = self.relays.lock().expect("relays").get(&process) {
                        handle.shutdown();
                    }
                    self.start_relay();
                }
                5 => {
                    let set = |down| *self.database.down.lock().expect("down") = down;
                    self.outage("the database", set).await;
                }
                6 => self.outage("the broker", |down| self.broker.down.store(down, Ordering::Relaxed)).await,
                7 => {
                    let change = |down| {
                        let mut topics = self.broker.topics_down.lock().expect("topics");
                        if down {
                            topics.insert("order".into());
                        } else {
                            topics.clear();
                        }
                    };
                    self.outage("topic order", change).await;
                }
                8 => {
                    let key = self.key(8);
                    self.outage("what records one aggregate", |down| self.refuse(&key, down)).await;
                }
                _ => self.set_store_clock(),
            }
        }
        self.heal().await;
    }

    async fn outage(&self, what: &str, set: impl Fn(bool)) {
        self.sim.note(|| format!("{what} is down"));
        set(true);
        self.sim.sleep(self.sim.millis(50..5000)).await;
        set(false);
        self.sim.note(|| format!("{what} is back"));
    }

    fn set_store_clock(&self) {
        let mut ahead = self.store_ahead.lock().expect("the clock's offset");
        let jump = self.sim.millis(0..3000);
        *ahead = if self.sim.chance(0.5) { *ahead + jump } else { ahead.saturating_sub(jump) };
        self.sim.note(|| format!("the database's clock is {:?} ahead", *ahead));
    }

    /// Ends all trouble, and goes on ending it: relays park what they give up.
    async fn heal(&self) {
        self.sim.note(|| "nothing goes wrong any more".to_owned());
        *self.database.faults.lock().expect("faults") = 0.0;
        *self.broker.faults.lock().expect("faults") = 0.0;
        if self.relays.lock().expect("relays").is_empty() {
            self.start_relay();
        }
        loop {
            for topic in self.database.memory.paused_topics().await.expect("topics") {
                self.database.memory.resume_topic(&topic).await.expect("resume");
            }
            for hold in self.database.memory.holds(1000).await.expect("holds") {
                if hold.due_in.is_none() || hold.paused {
                    self.database.memory.resume(&hold.key).await.expect("resume");
                }
            }
            if self.relays.lock().expect("relays").is_empty() {
                self.start_relay();
            }
            self.healed.store(true, Ordering::Relaxed);
            self.sim.sleep(Duration::from_secs(1)).await;
        }
    }

    /// An operator who does sensible things at senseless moments.
    async fn operate(&self, aggregates: u64) {
        let admin = &self.database.memory;
        while self.sim.now() < TROUBLE {
            self.sim.sleep(self.sim.millis(50..3000)).await;
            let key = self.key(aggregates);
            let topic = key.aggregate_type().to_owned();
            match self.sim.pick(0..8) {
                0 => admin.pause(&key).await.expect("pause"),
                1 | 2 => drop(admin.resume(&key).await.expect("resume")),
                3 => admin.pause_topic(&topic).await.expect("pause"),
                4 => drop(admin.resume_topic(&topic).await.expect("resume")),
                5 => self.discard(&key).await,
                _ => self.requeue(&key).await,
            }
            self.sim.note(|| format!("the operator was at {key}"));
        }
    }

    async fn requeue(&self, key: &AggregateKey) {
        let filter = EventFilter::aggregate(key).with_status(Status::Failed);
        let failed = self.database.memory.list(&filter, 100).await.expect("list");
        if self.database.memory.requeue(&EventFilter::aggregate(key)).await.expect("requeue") > 0 {
            for record in failed {
                self.sim.note(|| format!("requeued {}", record.sequence));
                self.checker.requeued(record.sequence);
            }
        }
    }

    async fn discard(&self, key: &AggregateKey) {
        let pending = EventFilter::aggregate(key).with_status(Status::Pending);
        let before = self.database.memory.list(&pending, 1000).await.expect("list");
        self.database.memory.discard(&EventFilter::aggregate(key)).await.expect("discard");
        let after = self.database.memory.list(&pending, 1000).await.expect("list");
        for record in
            before.iter().filter(|record| !after.iter().any(|left| left.sequence == record.sequence))
        {
            self.sim.note(|| format!("discarded {}", record.sequence));
            self.checker.state(record.sequence, Status::Failed);
        }
    }

    fn left(&self) -> BTreeMap<outbox::store::Sequence, Status> {
        let vanished = self.database.vanished.lock().expect("vanished");
        let all = futures::executor::block_on(self.database.memory.list(&EventFilter::default(), u32::MAX));
        all.expect("list")
            .into_iter()
            .filter(|record| !vanished.contains(&record.sequence))
            .map(|record| (record.sequence, record.status))
            .collect()
    }

    /// Trouble is over, writers have ended, and nothing is pending.
    fn is_quiet(&self) -> bool {
        if !self.healed.load(Ordering::Relaxed) || *self.writers_left.lock().expect("writers") > 0 {
            return false;
        }
        let pending = EventFilter::status(Status::Pending);
        let vanished = self.database.vanished.lock().expect("vanished");
        let left = futures::executor::block_on(self.database.memory.list(&pending, u32::MAX)).expect("list");
        left.iter().all(|record| vanished.contains(&record.sequence))
    }

    fn tear_down(&self) {
        let last = *self.processes.lock().expect("processes");
        for process in WORLD..=last {
            self.sim.kill(process);
        }
    }
}
