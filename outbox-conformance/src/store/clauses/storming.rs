//! The fetch contract under writers that commit late and out of order, with everything else of a relay's life
//! at random: retries, parks, pauses, requeues, discards, schedules, lost leases, new readers and restarts.

use std::{
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures::future::{try_join_all, try_join3};
use outbox_core::{Event, EventFilter, WhenSent, store::Status};
use tokio::sync::Mutex as Turn;

use crate::{
    store::{
        stage::{AGGREGATE_TYPE, Stage, build, key},
        storm::{KEYS, Scheduled, Storm, is_loose},
    },
    violation::{Verdict, equal},
};

/// How many transactions are open at a time, where the store has concurrent writers.
const WRITERS: usize = 4;

/// How long a writer leaves a transaction open at most, as an application does: a store may rely on a bound.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the relay may need for what is left once nothing is written any more.
const DEADLINE: Duration = Duration::from_secs(120);

pub(super) async fn nothing_is_lost_or_overtaken_when_sent_rows_are_kept(stage: &Stage<'_>) -> Verdict {
    storm(stage, 1, 3_000, WhenSent::Keep).await
}

pub(super) async fn nothing_is_lost_or_overtaken_when_sent_rows_are_deleted(stage: &Stage<'_>) -> Verdict {
    storm(stage, 2, 3_000, WhenSent::Delete).await
}

pub(super) async fn nothing_is_lost_or_overtaken_when_sent_rows_are_archived(stage: &Stage<'_>) -> Verdict {
    storm(stage, 3, 1_500, WhenSent::Archive).await
}

/// What the writers, the operator and the relay have in common.
struct Sea<'a> {
    stage: &'a Stage<'a>,
    /// The last version of each aggregate that has committed. Who writes to an aggregate has locked it until
    /// the end of the transaction, so that versions ascend in the order of the commits, as with the lock of a
    /// row.
    versions: Vec<Turn<i32>>,
    scheduled: Scheduled,
    /// How many writers are at work.
    writing: AtomicUsize,
}

/// Runs writers, an operator and the relay until everything is settled.
async fn storm(stage: &Stage<'_>, seed: u64, events: usize, when_sent: WhenSent) -> Verdict {
    let writers = if stage.harness.concurrent_writers() { WRITERS } else { 1 };
    let sea = Sea {
        stage,
        versions: (0..KEYS).map(|_| Turn::new(0)).collect(),
        scheduled: Scheduled::default(),
        writing: AtomicUsize::new(writers),
    };
    let write = (0_u64..).take(writers).map(|writer| sea.write(seed * 100 + writer, events / writers));
    let write = async { try_join_all(write).await.map(drop) };
    let relay = Storm::start(stage, seed, when_sent, &sea.scheduled).await?;
    let ((), (), relay) = try_join3(write, sea.operate(seed * 100 + 99), sea.relay(relay)).await?;
    let mut written = 0;
    for version in &sea.versions {
        written += usize::try_from(*version.lock().await).unwrap_or_default();
    }
    let failed = stage.admin.list(&EventFilter::status(Status::Failed), u32::MAX).await?.len();
    equal(&format!("seed {seed}: events that were written, sent or given up"), written, relay.sent() + failed)
}

impl Sea<'_> {
    /// Writes so many events, some of which are rolled back.
    async fn write(&self, seed: u64, count: usize) -> Verdict {
        let mut rng = Rng::with_seed(seed);
        let mut written = 0;
        while written < count {
            let mut ids: Vec<usize> = (0..rng.usize(1..4)).map(|_| rng.usize(0..KEYS)).collect();
            // Every writer locks in this order, so that no writer waits for one that waits.
            ids.sort_unstable();
            ids.dedup();
            let (mut locked, mut events) = (Vec::new(), Vec::new());
            for id in ids {
                let last = self.versions[id].lock().await;
                let mut version = *last;
                for _ in 0..rng.usize(1..4) {
                    version += 1;
                    events.push(self.event(&mut rng, id, version).await);
                }
                locked.push((last, version));
            }
            written += events.len();
            if self.transact(events, &mut rng).await? {
                locked.iter_mut().for_each(|(last, version)| **last = *version);
            }
        }
        self.writing.fetch_sub(1, Ordering::Release);
        Ok(())
    }

    async fn event(&self, rng: &mut Rng, id: usize, version: i32) -> Event {
        let id = id.to_string();
        let mut event = Event::builder(AGGREGATE_TYPE, &id, "changed").version(version);
        if rng.u8(..) < 20 {
            // Some far enough ahead that a read position passes them by.
            let millis = if rng.u8(..) < 64 { 1_000..4_000 } else { 0..200 };
            let at = self.stage.harness.now().await + Duration::from_millis(rng.u64(millis));
            event = event.available_at(at);
            let mut scheduled = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
            scheduled.insert((key(&id), version));
        }
        if rng.u8(..) < 8 {
            event = event.payload(vec![b'x'; rng.usize(8_000..20_000)]);
        }
        build(event)
    }

    /// Writes the events in one transaction, which fetches overlap, some of them for long. False if it was
    /// rolled back.
    async fn transact(&self, events: Vec<Event>, rng: &mut Rng) -> Verdict<bool> {
        if !self.stage.harness.concurrent_writers() {
            // Its open transaction would keep the relay and the operator waiting.
            tokio::time::sleep(Duration::from_millis(rng.u64(0..4))).await;
            return self.stage.commit_events(events).await.map(|_| true);
        }
        let start = Instant::now();
        let open = self.stage.harness.begin(events).await;
        match rng.u8(..) {
            0..=7 => tokio::time::sleep(Duration::from_millis(rng.u64(20..150))).await,
            8..=120 => tokio::time::sleep(Duration::from_millis(rng.u64(0..4))).await,
            _ => {}
        }
        let is_kept = rng.u8(..) >= 25 && start.elapsed() < PATIENCE;
        if is_kept {
            open.commit().await;
        } else {
            open.rollback().await;
        }
        Ok(is_kept)
    }

    fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Acquire) > 0
    }

    /// Pauses, resumes, requeues and discards, as long as events are written.
    async fn operate(&self, seed: u64) -> Verdict {
        let (mut rng, admin) = (Rng::with_seed(seed), &self.stage.admin);
        while self.is_writing() {
            let key = key(&rng.usize(0..KEYS).to_string());
            match rng.u8(..) {
                0..=59 => admin.pause(&key).await?,
                60..=159 => drop(admin.resume(&key).await?),
                160..=219 => drop(admin.requeue(&EventFilter::aggregate(&key)).await?),
                _ if is_loose(&key) => drop(admin.discard(&EventFilter::aggregate(&key)).await?),
                _ => drop(admin.requeue(&EventFilter::status(Status::Failed)).await?),
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
        }
        Ok(())
    }

    /// Lets the relay work until nothing is written and nothing pending any more.
    async fn relay<'b>(&self, mut relay: Storm<'b>) -> Verdict<Storm<'b>> {
        let mut deadline = None;
        loop {
            let work = relay.turn().await?;
            if !self.is_writing() && relay.fetches().is_multiple_of(50) {
                let left = self.stage.admin.list(&EventFilter::status(Status::Pending), 3).await?;
                if left.is_empty() {
                    return Ok(relay);
                }
                if *deadline.get_or_insert(Instant::now() + DEADLINE) < Instant::now() {
                    let holds = self.stage.admin.holds(9).await?;
                    return Err(relay.never_settled(&left, &holds));
                }
                // Parked and paused aggregates go on.
                for id in 0..KEYS {
                    self.stage.admin.resume(&key(&id.to_string())).await?;
                }
            }
            if work == 0 {
                self.stage.harness.advance(Duration::from_millis(1)).await;
            }
            // A store that answers at once would leave no other task a turn.
            tokio::task::yield_now().await;
        }
    }
}
