//! A service at work: writers that change an account and write its events in one transaction.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outbox::{Enqueue as _, Event, postgres::PostgresOutbox};
use sqlx::{PgConnection, PgPool};
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::{
    PATIENCE,
    stage::{ACCOUNTS, Stage},
};

const WRITERS: u64 = 4;

/// What a writer was told of a transaction's end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Committed,
    RolledBack,
    /// The connection was lost while it committed.
    Unknown,
}

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
                pool: stage.pool.clone(),
                outbox: stage.outbox.clone(),
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
        let kept: Vec<Uuid> =
            sqlx::query_scalar("SELECT event FROM changes").fetch_all(&stage.pool).await.unwrap();
        let kept: std::collections::HashSet<_> = kept.into_iter().collect();
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
    pool: PgPool,
    outbox: PostgresOutbox,
    rng: fastrand::Rng,
    fates: HashMap<Uuid, Fate>,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>, count: Arc<watch::Sender<u64>>) -> HashMap<Uuid, Fate> {
        while !stop.load(Ordering::Relaxed) {
            let account = format!("account-{}", self.rng.u32(..ACCOUNTS));
            let events = events(&account, self.rng.usize(1..=3));
            // An error before the commit takes the whole transaction back; the service goes on.
            let fate = self.transaction(&account, &events).await.unwrap_or(Fate::RolledBack);
            self.fates.extend(events.iter().map(|event| (event.id(), fate)));
            if fate == Fate::Committed {
                count.send_modify(|count| *count += events.len() as u64);
            }
            // The load: a service that does other things as well.
            tokio::time::sleep(Duration::from_millis(self.rng.u64(1..8))).await;
        }
        self.fates
    }

    async fn transaction(&mut self, account: &str, events: &[Event]) -> Result<Fate, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        change(&mut transaction, &self.outbox, account, events, None).await?;
        if self.rng.u32(..20) == 0 {
            // A service that dawdles with its transaction open: low sequences become visible late.
            tokio::time::sleep(Duration::from_millis(self.rng.u64(10..150))).await;
        }
        if self.rng.u32(..10) == 0 {
            transaction.rollback().await?;
            return Ok(Fate::RolledBack);
        }
        Ok(transaction.commit().await.map_or(Fate::Unknown, |()| Fate::Committed))
    }
}

pub(crate) fn events(account: &str, count: usize) -> Vec<Event> {
    (0..count)
        .map(|_| Event::builder("account", account, "account.changed").payload("{}").build().unwrap())
        .collect()
}

/// Locks the account, changes it, and writes its events: in this order, which is what makes sequences right.
pub(crate) async fn change(
    connection: &mut PgConnection,
    outbox: &PostgresOutbox,
    account: &str,
    events: &[Event],
    topic: Option<&str>,
) -> Result<(), sqlx::Error> {
    let lock = "UPDATE accounts SET changes = changes + $2 WHERE id = $1";
    sqlx::query(lock).bind(account).bind(events.len() as i64).execute(&mut *connection).await?;
    let written = if let [event] = events {
        outbox.enqueue(&mut *connection, event).await.map(|sequence| vec![sequence])
    } else {
        outbox.enqueue_all(&mut *connection, events).await
    };
    let sequences = written.map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
    let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
    let note = "INSERT INTO changes (event, sequence, account, topic) \
                SELECT *, $3, $4 FROM unnest($1::uuid[], $2::bigint[])";
    sqlx::query(note).bind(ids).bind(sequences).bind(account).bind(topic).execute(connection).await?;
    Ok(())
}

/// A sudden heap of work: one transaction with so many events for every account.
pub(crate) async fn burst(stage: &Stage, events_each: usize) {
    let mut transaction = stage.pool.begin().await.unwrap();
    // In one order, and the writers hold one account at a time: no deadlock.
    for account in 0..ACCOUNTS {
        let account = format!("account-{account}");
        let events = events(&account, events_each);
        change(&mut transaction, &stage.outbox, &account, &events, None).await.unwrap();
    }
    transaction.commit().await.unwrap();
}
