//! The loops around the engine: one task each for reading, settling, membership and retention, one for every
//! publish call, and the one that feeds the engine what happened and does what it says.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::{
    RelayStatus, StoreWork,
    engine::{Command, Engine},
    handle::Signals,
    happening::{Happening, Standing},
    parts::Parts,
    steward::Steward,
    writing::{Write, write},
};
use crate::{
    OutboxStore, Publisher, chain,
    clock::{Monotonic, Task},
    publisher::{Message, Report, Reporter},
    retry::backoff,
    store::{FetchRequest, Lease, OutboxReader, PurgeRequest, RelayId},
};

/// How many reports are taken up before what follows from them is done.
const REPORTS_AT_ONCE: usize = 4_096;

/// The running relay.
///
/// Its channels have no limit of their own: each is bounded by what the engine asks for at a time, and by the
/// pauses after errors.
pub(crate) struct Loop {
    parts: Parts,
    engine: Engine,
    /// One answer of the reader, one of the settler, one end of each call (`publish_max`), and what the
    /// steward and retention say, who pause after each statement.
    happenings: mpsc::UnboundedReceiver<Happening>,
    tell: mpsc::UnboundedSender<Happening>,
    /// One for each message in flight: `publish_max`.
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    /// One at a time.
    fetches: mpsc::UnboundedSender<(RelayId, FetchRequest)>,
    /// One settle and one attempt at a time.
    writes: mpsc::UnboundedSender<Write>,
    /// Each lease once.
    releases: mpsc::UnboundedSender<Vec<Lease>>,
    calls: BTreeMap<u64, Task>,
    tasks: Vec<Task>,
    /// The leases were given back, or are to expire.
    left: bool,
}

impl Loop {
    pub(crate) fn start(parts: Parts, seed: u64) -> Self {
        let (tell, happenings) = mpsc::unbounded_channel();
        let (reporter, reports) = mpsc::unbounded_channel();
        let (fetches, fetch_orders) = mpsc::unbounded_channel();
        let (writes, write_orders) = mpsc::unbounded_channel();
        let (releases, release_orders) = mpsc::unbounded_channel();
        let mut rng = fastrand::Rng::with_seed(seed);
        let steward = Steward {
            store: Arc::clone(&parts.store),
            clock: Arc::clone(&parts.clock),
            config: parts.config.clone(),
            rng: rng.fork(),
            tell: tell.clone(),
            releases: release_orders,
            paused_topics: Vec::new(),
        };
        let clock = Arc::clone(&parts.clock);
        let tasks = vec![
            clock.spawn(Box::pin(steward.run())),
            clock.spawn(Box::pin(read(parts.clone(), rng.fork(), fetch_orders, tell.clone()))),
            clock.spawn(Box::pin(write(parts.clone(), rng.fork(), write_orders, tell.clone()))),
        ];
        let engine = Engine::new(parts.config.clone(), rng.u64(..), parts.observer.clone());
        let (calls, left) = (BTreeMap::new(), false);
        Self {
            parts,
            engine,
            happenings,
            tell,
            reports,
            reporter,
            fetches,
            writes,
            releases,
            calls,
            tasks,
            left,
        }
    }

    /// Runs until the handle asks for a shutdown, and then until what is in flight is settled or its time is
    /// up.
    pub(crate) async fn run(mut self, signals: &mut Signals) -> RelayStatus {
        let retention = self.parts.clock.spawn(Box::pin(retain(self.parts.clone(), self.tell.clone())));
        self.tasks.push(retention);
        self.engine.start();
        let mut stop_at: Option<Monotonic> = None;
        let mut reports = Vec::with_capacity(REPORTS_AT_ONCE);
        loop {
            let now = self.parts.clock.now();
            self.act(now);
            self.engine.turn_ended(now);
            signals.publish(self.engine.status());
            if let Some(stop_at) = stop_at
                && (self.engine.is_drained() || now >= stop_at)
            {
                break;
            }
            let wake_at = match (self.engine.next_time(now), stop_at) {
                (Some(next), Some(stop)) => Some(next.min(stop)),
                (next, stop) => next.or(stop),
            };
            let timer = wake_at.map(|at| self.parts.clock.sleep(at.saturating_sub(now)));
            tokio::select! {
                biased;
                () = signals.stopped(), if stop_at.is_none() => {
                    stop_at = Some(self.parts.clock.now() + self.parts.config.shutdown_timeout);
                    self.engine.stop();
                }
                Some(happening) = self.happenings.recv() => self.happened(happening),
                _ = self.reports.recv_many(&mut reports, REPORTS_AT_ONCE) => {}
                () = signals.woken() => self.engine.wake(self.parts.clock.now()),
                () = async { if let Some(timer) = timer { timer.await } else { std::future::pending().await } } => {}
            }
            let now = self.parts.clock.now();
            for report in reports.drain(..) {
                self.engine.reported(now, report);
            }
            while let Ok(happening) = self.happenings.try_recv() {
                self.happened(happening);
            }
        }
        self.end(signals).await
    }

    async fn end(mut self, signals: &Signals) -> RelayStatus {
        self.calls.clear();
        self.tasks.clear();
        if let Some(relay) = self.engine.status().relay {
            leave(&self.parts, relay).await;
        }
        self.left = true;
        self.parts.publisher.close().await;
        self.engine.ended(self.parts.clock.now());
        signals.publish(self.engine.status());
        self.engine.status().clone()
    }

    /// Does all that the engine wants done.
    fn act(&mut self, now: Monotonic) {
        // Settling first: it is what makes room, and what failed events wait for.
        while let Some(command) = self.engine.next_settle(now) {
            self.order(command);
        }
        while let Some(command) = self.engine.next_publish(now) {
            self.order(command);
        }
        // Once more: an event that must not be published, such as one whose topic is paused, was decided just
        // now.
        while let Some(command) = self.engine.next_settle(now) {
            self.order(command);
        }
        while let Some(command) = self.engine.next_release() {
            self.order(command);
        }
        while let Some(command) = self.engine.next_fetch(now) {
            self.order(command);
        }
    }

    fn order(&mut self, command: Command) {
        // The receivers live as long as this loop: their tasks never return.
        match command {
            Command::Fetch(relay, request) => drop(self.fetches.send((relay, request))),
            Command::Settle(request) => drop(self.writes.send(Write::Settle(request))),
            Command::BeginAttempt(relay, lease, sequence, attempts) => {
                drop(self.writes.send(Write::Attempt(relay, lease, sequence, attempts)));
            }
            Command::Release(leases) => drop(self.releases.send(leases)),
            Command::Publish(call, messages) => self.publish(call, messages),
        }
    }

    fn publish(&mut self, call: u64, messages: Vec<Arc<Message>>) {
        let Parts { publisher, clock, config, .. } = self.parts.clone();
        let reporter = Reporter::new(call, self.reporter.clone());
        let tell = self.tell.clone();
        let timeout = clock.sleep(config.publish_timeout);
        let task = async move {
            let publish = AssertUnwindSafe(publisher.publish(messages, config.publish_timeout, reporter));
            let why = tokio::select! {
                biased;
                ended = publish.catch_unwind() => match ended {
                    Ok(()) => "the publisher ended without an outcome",
                    Err(_) => "the publisher panicked",
                },
                () = timeout => "no answer within the publish time-out",
            };
            let _ = tell.send(Happening::PublishEnded(call, why));
        };
        self.calls.insert(call, self.parts.clock.spawn(Box::pin(task)));
    }

    fn happened(&mut self, happening: Happening) {
        let now = self.parts.clock.now();
        let engine = &mut self.engine;
        match happening {
            Happening::Standing(standing) => self.standing(now, standing),
            Happening::Fetched(fetched, took) => engine.fetched(now, fetched, took),
            Happening::FetchFailed(error, retry_at) => {
                engine.fetch_failed(now, retry_at);
                engine.store_failed(now, StoreWork::Reading, &error);
            }
            Happening::Settled(written) => engine.settled(now, *written),
            Happening::AttemptBegun(recorded) => {
                if let Some(command) = engine.attempt_begun(now, recorded) {
                    self.order(command);
                }
            }
            Happening::PublishEnded(call, why) => {
                // What was reported before the call ended is in the channel by now.
                while let Ok(report) = self.reports.try_recv() {
                    self.engine.reported(now, report);
                }
                self.engine.call_ended(now, call, why);
                self.calls.remove(&call);
            }
            Happening::Purged(purged) => engine.purged(now, &purged),
            Happening::Trouble(work, error) => engine.store_failed(now, work, &error),
        }
    }

    fn standing(&mut self, now: Monotonic, standing: Standing) {
        let engine = &mut self.engine;
        match standing {
            Standing::Joined(relay, lease_until) => engine.joined(now, relay, lease_until),
            Standing::Renewed(lease_until) => engine.renewed(now, lease_until),
            Standing::Buried => engine.buried(),
            Standing::Looked => engine.looked(now),
            Standing::Claimed(claimed) => engine.claimed(now, &claimed),
            Standing::Lost(leases) => engine.lost(&leases),
            Standing::Drain(partitions) => engine.drain(&partitions),
            Standing::PausedTopics(topics) => engine.paused_topics(topics),
            Standing::Trouble(work, error) => engine.store_failed(now, work, &error),
        }
    }
}

impl Drop for Loop {
    /// The future was dropped, or a panic ends it: other relays should not have to wait for the leases to
    /// expire.
    fn drop(&mut self) {
        let Some(relay) = self.engine.status().relay.filter(|_| !self.left) else { return };
        self.tasks.clear();
        let (parts, calls) = (self.parts.clone(), std::mem::take(&mut self.calls));
        self.parts.clock.detach(Box::pin(async move {
            // What is on its way ends first, each call within the publish time-out: a successor that another
            // relay sends must not overtake it.
            for call in calls.into_values() {
                call.await;
            }
            leave(&parts, relay).await;
        }));
    }
}

/// Gives the leases back, so that the next relay need not wait for them to expire; should this fail, it does
/// just that.
async fn leave(parts: &Parts, relay: RelayId) {
    let leave = parts.store.leave(relay);
    let timeout = parts.clock.sleep(parts.config.publish_timeout);
    tokio::select! {
        biased;
        left = leave => if let Err(error) = left {
            tracing::warn!(error = %chain(&error), "the relay's leases could not be released and will expire");
        },
        () = timeout => tracing::warn!("the store did not answer: the relay's leases will expire"),
    }
}

/// Reads as it is told, with a reader that is made anew after each error and for each relay id.
async fn read(
    parts: Parts,
    mut rng: fastrand::Rng,
    mut orders: mpsc::UnboundedReceiver<(RelayId, FetchRequest)>,
    tell: mpsc::UnboundedSender<Happening>,
) {
    let mut reader: Option<(RelayId, Box<dyn OutboxReader>)> = None;
    let mut failures = 0;
    while let Some((relay, request)) = orders.recv().await {
        let began_at = parts.clock.now();
        let fetched = match reader.take_if(|(of, _)| *of == relay) {
            Some(kept) => Ok(kept),
            None => parts.store.reader(relay).await.map(|made| (relay, made)),
        };
        let fetched = match fetched {
            Ok((relay, mut made)) => {
                let fetched = made.fetch(request).await;
                reader = fetched.is_ok().then_some((relay, made));
                fetched
            }
            Err(error) => Err(error),
        };
        let happening = match fetched {
            Ok(fetched) => {
                failures = 0;
                Happening::Fetched(fetched, parts.clock.now().saturating_sub(began_at))
            }
            Err(error) => {
                failures += 1;
                let (min, max) = parts.config.unavailable_delay;
                let delay = backoff(min, max, failures, rng.f64()).max(min);
                Happening::FetchFailed(error, parts.clock.now() + delay)
            }
        };
        let _ = tell.send(happening);
    }
}

/// Removes final rows as retention says, a batch at a time.
async fn retain(parts: Parts, tell: mpsc::UnboundedSender<Happening>) {
    let retention = &parts.config.retention;
    let request =
        PurgeRequest { sent: retention.sent, failed: retention.failed, rows_max: retention.batch_max };
    if request.sent.is_none() && request.failed.is_none() {
        return std::future::pending().await;
    }
    loop {
        parts.clock.sleep(retention.interval).await;
        loop {
            let purged = match parts.store.purge(request).await {
                Ok(purged) => purged,
                Err(error) => {
                    let _ = tell.send(Happening::Trouble(StoreWork::Retention, error));
                    break;
                }
            };
            let _ = tell.send(Happening::Purged(purged));
            if purged.sent.max(purged.failed) < u64::from(request.rows_max) {
                break;
            }
            // Retention gives way to the relay's own statements.
            parts.clock.sleep(Duration::from_millis(10)).await;
        }
    }
}
