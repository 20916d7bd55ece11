//! A service at work: writers that change an account and write its events in one transaction.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outbox::Event;
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::{
    PATIENCE,
    databases::{ACCOUNTS, Change, Database, End, Fate},
    stage::Stage,
};

const WRITERS: u64 = 4;

/// Writers at work, until they are told to end.
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    committed: watch::Receiver<u64>,
    writers: JoinSet<HashMap<Uuid, Fate>>,
}

impl Workload {
    pub(crate) fn start(stage: &Stage) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (count, committed) = watch::channel(0);
        let count = Arc::new(count);
        let mut writers = JoinSet::new();
        for seed in 0..WRITERS {
            let writer = Writer {
                database: Arc::clone(&stage.database),
                rng: fastrand::Rng::with_seed(seed),
                fates: HashMap::new(),
            };
            writers.spawn(writer.run(Arc::clone(&stop), Arc::clone(&count)));
        }
        Self { stop, committed, writers }
    }

    /// Waits until so many more events have been committed.
    pub(crate) async fn more(&mut self, events: u64) {
        let wanted = *self.committed.borrow() + events;
        let reached = self.committed.wait_for(|count| *count >= wanted);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached
            .unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {wanted} committed events"))
            .unwrap();
    }

    /// Ends the writers, and compares what they were told with what the service's table says.
    pub(crate) async fn end(mut self, stage: &Stage) {
        self.stop.store(true, Ordering::Relaxed);
        let mut fates = HashMap::new();
        while let Some(ended) = tokio::time::timeout(PATIENCE, self.writers.join_next()).await.unwrap() {
            fates.extend(ended.unwrap());
        }
        let kept: HashSet<Uuid> =
            stage.database.committed(None).await.into_iter().map(|(_, event)| event).collect();
        let mut told = [0; 3];
        for (id, fate) in fates {
            told[fate as usize] += 1;
            assert!(fate != Fate::Committed || kept.contains(&id), "{id} was committed and is gone");
            assert!(fate != Fate::RolledBack || !kept.contains(&id), "{id} was rolled back and is there");
        }
        let [committed, rolled_back, unknown] = told;
        eprintln!(
            "writers were told: {committed} committed, {rolled_back} rolled back, {unknown} of unknown end"
        );
        assert!(rolled_back > 0, "no transaction was rolled back, so nothing is shown of those");
    }
}

struct Writer {
    database: Arc<dyn Database>,
    rng: fastrand::Rng,
    fates: HashMap<Uuid, Fate>,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>, count: Arc<watch::Sender<u64>>) -> HashMap<Uuid, Fate> {
        while !stop.load(Ordering::Relaxed) {
            let account = format!("account-{}", self.rng.u32(..ACCOUNTS));
            let events = events(&account, self.rng.usize(1..=3));
            let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
            // Some dawdle with their transaction open, so that low sequences become visible late.
            let open = if self.rng.u32(..20) == 0 { self.rng.u64(10..150) } else { 0 };
            let end = if self.rng.u32(..10) == 0 { End::RollBack } else { End::Commit };
            let changes = [Change { account, events, topic: None }];
            // An error before the end takes the whole transaction back; the service goes on.
            let fate = self.database.transact(&changes, Duration::from_millis(open), end).await;
            let fate = fate.unwrap_or(Fate::RolledBack);
            if fate == Fate::Committed {
                count.send_modify(|count| *count += ids.len() as u64);
            }
            self.fates.extend(ids.into_iter().map(|id| (id, fate)));
            // The load: a service that does other things as well.
            tokio::time::sleep(Duration::from_millis(self.rng.u64(1..8))).await;
        }
        self.fates
    }
}

pub(crate) fn events(account: &str, count: usize) -> Vec<Event> {
    (0..count)
        .map(|_| Event::builder("account", account, "account.changed").payload("{}").build().unwrap())
        .collect()
}

/// One transaction, which must commit.
pub(crate) async fn commit(stage: &Stage, changes: &[Change]) {
    let fate = stage.database.transact(changes, Duration::ZERO, End::Commit).await;
    assert_eq!(fate, Ok(Fate::Committed));
}

/// A sudden heap of work: so many events for every account, ten accounts in a transaction.
pub(crate) async fn burst(stage: &Stage, events_each: usize) {
    // In one order, and the writers hold one account at a time: no deadlock. All at once would be in
    // another's way for ever where a database does not wait for locks.
    for accounts in (0..ACCOUNTS).collect::<Vec<_>>().chunks(10) {
        let change = |account: &u32| {
            let account = format!("account-{account}");
            Change { events: events(&account, events_each), account, topic: None }
        };
        commit(stage, &accounts.iter().map(change).collect::<Vec<_>>()).await;
    }
}
