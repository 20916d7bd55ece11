//! The loops around the engine: one task each for reading, settling, membership and retention, one for every publish
//! call, and the one that feeds the engine what happened and does what it says.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::{
    RelayConfig, RelayStatus,
    engine::{Command, Engine},
    handle::{Phase, Signals},
    steward::{Standing, Steward},
};
use crate::{
    Clock, FetchRequest, Fetched, Lease, Message, Monotonic, OutboxReader, OutboxStore, Publisher,
    PurgeRequest, RelayId, Report, Reporter, Sequence, SettleRequest, Settled, StoreError, Task,
    retry::backoff,
};

/// How many reports are taken up before what follows from them is done.
const REPORTS_AT_ONCE: usize = 4_096;

/// Something that happened outside the engine.
#[derive(Debug)]
pub(crate) enum Happening {
    Standing(Standing),
    Fetched(Fetched),
    FetchFailed(StoreError, Monotonic),
    Settled(Settled),
    AttemptBegun(bool),
    PublishEnded(u64, &'static str),
    Trouble(StoreError),
    Wakeup,
}

/// What the settler is asked to write.
enum Write {
    Settle(Arc<SettleRequest>),
    Attempt(RelayId, Lease, Sequence, u32),
}

/// The parts that every task needs.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn OutboxStore>,
    pub(crate) publisher: Arc<dyn Publisher>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: RelayConfig,
}

/// The running relay.
pub(crate) struct Loop {
    parts: Parts,
    engine: Engine,
    happenings: mpsc::UnboundedReceiver<Happening>,
    tell: mpsc::UnboundedSender<Happening>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    fetches: mpsc::UnboundedSender<(RelayId, FetchRequest)>,
    writes: mpsc::UnboundedSender<Write>,
    releases: mpsc::UnboundedSender<Vec<Lease>>,
    calls: std::collections::HashMap<u64, Task>,
    tasks: Vec<Task>,
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
        let mut tasks = vec![
            clock.spawn(Box::pin(steward.run())),
            clock.spawn(Box::pin(read(parts.clone(), rng.fork(), fetch_orders, tell.clone()))),
            clock.spawn(Box::pin(write(parts.clone(), rng.fork(), write_orders, tell.clone()))),
        ];
        if let Some(wakeups) = parts.store.wakeups() {
            tasks.push(clock.spawn(Box::pin(listen(wakeups, tell.clone()))));
        }
        let engine = Engine::new(parts.config.clone(), rng.u64(..));
        let calls = std::collections::HashMap::new();
        Self { parts, engine, happenings, tell, reports, reporter, fetches, writes, releases, calls, tasks }
    }

    /// Runs until the handle asks for a shutdown, and then until what is in flight is settled or its time is up.
    pub(crate) async fn run(mut self, signals: &mut Signals) -> RelayStatus {
        let retention = self.parts.clock.spawn(Box::pin(retain(self.parts.clone(), self.tell.clone())));
        self.tasks.push(retention);
        self.engine.status.phase = Phase::Running;
        let mut stop_at: Option<Monotonic> = None;
        let mut reports = Vec::with_capacity(REPORTS_AT_ONCE);
        loop {
            let now = self.parts.clock.now();
            self.act(now);
            self.engine.refresh_status();
            signals.publish(&self.engine.status);
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
                    self.engine.status.phase = Phase::Draining;
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
        if let Some(relay) = self.engine.status.relay {
            // Whoever comes next must not wait for the lease to expire; should this fail, it does just that.
            let leave = self.parts.store.leave(relay);
            let timeout = self.parts.clock.sleep(self.parts.config.publish_timeout);
            tokio::select! {
                biased;
                left = leave => if let Err(error) = left {
                    tracing::warn!(%error, "the relay's leases could not be released and will expire");
                },
                () = timeout => tracing::warn!("the store did not answer: the relay's leases will expire"),
            }
        }
        self.parts.publisher.close().await;
        self.engine.status.phase = Phase::Stopped;
        self.engine.refresh_status();
        signals.publish(&self.engine.status);
        self.engine.status
    }

    /// Does all that the engine wants done.
    fn act(&mut self, now: Monotonic) {
        // Settling first: it is what makes room, and what failed events wait for.
        while let Some(command) = self.engine.next_settle() {
            self.order(command);
        }
        while let Some(command) = self.engine.next_publish(now) {
            self.order(command);
        }
        while let Some(command) = self.engine.next_settle() {
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
            Happening::Fetched(fetched) => engine.fetched(now, fetched),
            Happening::FetchFailed(error, retry_at) => {
                engine.fetch_failed(now, retry_at);
                self.trouble(&error);
            }
            Happening::Settled(settled) => engine.settled(now, &settled),
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
            Happening::Trouble(error) => self.trouble(&error),
            Happening::Wakeup => engine.wake(now),
        }
    }

    fn standing(&mut self, now: Monotonic, standing: Standing) {
        let engine = &mut self.engine;
        match standing {
            Standing::Joined(relay, lease_until) => engine.joined(relay, lease_until),
            Standing::Renewed(lease_until) => engine.renewed(lease_until),
            Standing::Buried => {
                tracing::warn!("the relay's lease expired before it was renewed: starting anew");
                engine.buried();
            }
            Standing::Claimed(claimed) => engine.claimed(now, &claimed),
            Standing::Lost(leases) => engine.lost(&leases),
            Standing::Drain(partitions) => engine.drain(&partitions),
            Standing::PausedTopics(topics) => engine.paused_topics(topics),
            Standing::Trouble(error) => self.trouble(&error),
        }
    }

    fn trouble(&mut self, error: &StoreError) {
        tracing::warn!(%error, "the store did not do what was asked: trying again");
        self.engine.status.store_errors += 1;
        self.engine.status.last_store_error = Some(error.to_string());
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
                Happening::Fetched(fetched)
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

/// Writes as it is told, one thing after the other, each until it has succeeded: an outcome that is not recorded
/// would be published again.
async fn write(
    parts: Parts,
    mut rng: fastrand::Rng,
    mut orders: mpsc::UnboundedReceiver<Write>,
    tell: mpsc::UnboundedSender<Happening>,
) {
    while let Some(order) = orders.recv().await {
        let mut failures = 0;
        loop {
            let written = match &order {
                Write::Settle(request) => parts.store.settle(request).await.map(Happening::Settled),
                Write::Attempt(relay, lease, sequence, attempts) => parts
                    .store
                    .begin_attempt(*relay, *lease, *sequence, *attempts)
                    .await
                    .map(Happening::AttemptBegun),
            };
            match written {
                Ok(happening) => {
                    let _ = tell.send(happening);
                    break;
                }
                Err(error) => {
                    failures += 1;
                    let _ = tell.send(Happening::Trouble(error));
                    let (min, max) = parts.config.unavailable_delay;
                    parts.clock.sleep(backoff(min, max, failures, rng.f64())).await;
                }
            }
        }
    }
}

async fn listen(
    mut wakeups: futures::stream::BoxStream<'static, ()>,
    tell: mpsc::UnboundedSender<Happening>,
) {
    use futures::StreamExt;
    while wakeups.next().await.is_some() {
        let _ = tell.send(Happening::Wakeup);
    }
    std::future::pending::<()>().await;
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
            match parts.store.purge(request).await {
                Ok(purged) if purged.sent.max(purged.failed) >= u64::from(request.rows_max) => {
                    // Retention gives way to the relay's own statements.
                    parts.clock.sleep(Duration::from_millis(10)).await;
                }
                Ok(_) => break,
                Err(error) => {
                    let _ = tell.send(Happening::Trouble(error));
                    break;
                }
            }
        }
    }
}
