//! The loop of a replay: reads pages, begins what may begin, takes outcomes.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::sync::mpsc;

use super::{Pages, Replay, ReplayEnd, ReplayProgress, keep, pace::Pace, queue::Queue};
use crate::{
    StoreError, StoreErrorKind, chain,
    clock::Monotonic,
    publisher::{Message, PublishError, PublishErrorKind, PublishErrorScope, Report, Reporter},
    relay::{Phase, random_seed},
    retry::{RetryDecision, backoff},
    store::EventRecord,
};

/// The next page is read when fewer events than this are left to be begun.
const QUEUE_LOW: usize = 256;

/// How often a page is asked for again before the replay ends.
const READS_MAX: u32 = 10;

impl Replay {
    /// Sends the events, until there is no further one or the handle asks for a shutdown; what is in flight
    /// then is waited for, for at most the publish time-out.
    ///
    /// A broker that is away is waited for, until the shutdown; a store that is away for ten tries. Dropping
    /// the returned future ends the replay at once: what is in flight may arrive or not.
    pub async fn run(self) -> (ReplayProgress, ReplayEnd) {
        let mut state = State::new(&self);
        let mut stop = std::pin::pin!(self.signals.stopped().fuse());
        loop {
            let now = self.clock.now();
            state.begin(now);
            if let Some(end) = state.ended() {
                state.progress.phase = Phase::Stopped;
                self.signals.publish(&state.progress);
                return (state.progress, end);
            }
            let wake = OptionFuture::from(state.next_wake(now).map(|at| self.clock.sleep(at - now)));
            tokio::select! {
                // What was reported is looked at before the end of a call, which decides over what was not.
                biased;
                () = &mut stop, if !state.stopping => state.stop(),
                Some(report) = state.reports.recv() => state.reported_all(report),
                Some(call) = state.calls.next() => state.call_ended(call),
                Some(page) = OptionFuture::from(state.reading.as_mut()) => state.page_read(page),
                Some(()) = wake => {}
            }
            state.note_position();
            self.signals.publish(&state.progress);
        }
    }

    /// Sends the events, until there is no further one, `stop` completes or the handle asks for a shutdown,
    /// and waits for what is in flight.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> (ReplayProgress, ReplayEnd) {
        let handle = self.handle();
        let mut running = std::pin::pin!(self.run());
        tokio::select! {
            biased;
            ended = &mut running => return ended,
            () = stop => handle.shutdown(),
        }
        running.await
    }
}

type Page = (u32, Result<Vec<EventRecord>, StoreError>);

struct State<'a> {
    replay: &'a Replay,
    queue: Queue,
    pace: Pace,
    pages: Pages,
    reading: Option<BoxFuture<'a, Page>>,
    /// Reads that have failed in a row, and the last error.
    reads_failed: (u32, Option<StoreError>),
    /// Nothing is read before this.
    read_at: Monotonic,
    /// The last event that was read.
    read_until: Option<i64>,
    calls: FuturesUnordered<BoxFuture<'a, u64>>,
    in_flight: BTreeMap<u64, Call>,
    calls_made: u64,
    reporter: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// How often in a row the broker was unavailable, and when it is tried again.
    unavailable: (u32, Monotonic),
    stopping: bool,
    progress: ReplayProgress,
    rng: fastrand::Rng,
}

struct Call {
    messages: Vec<Option<Arc<Message>>>,
    alone: bool,
}

impl<'a> State<'a> {
    fn new(replay: &'a Replay) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        Self {
            replay,
            queue: Queue::default(),
            pace: Pace::new(replay.config.rate, replay.clock.now()),
            pages: Pages::new(&replay.config.filter),
            reading: None,
            reads_failed: (0, None),
            read_at: Monotonic::ZERO,
            read_until: None,
            calls: FuturesUnordered::new(),
            in_flight: BTreeMap::new(),
            calls_made: 0,
            reporter,
            reports,
            unavailable: (0, Monotonic::ZERO),
            stopping: false,
            progress: ReplayProgress {
                phase: Phase::Running,
                position: replay.config.filter.after,
                ..ReplayProgress::default()
            },
            rng: fastrand::Rng::with_seed(random_seed()),
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.progress.phase = Phase::Draining;
    }

    /// Begins whatever may begin: a read, a publish.
    fn begin(&mut self, now: Monotonic) {
        if self.stopping || self.given_up() {
            self.reading = None;
            return;
        }
        if self.reading.is_none()
            && now >= self.read_at
            && self.queue.len() - self.queue.in_flight() < QUEUE_LOW
            && let Some((filter, rows)) = self.pages.next()
        {
            let admin = &self.replay.admin;
            self.reading = Some(Box::pin(async move { (rows, admin.list(&filter, rows).await) }));
        }
        while now >= self.unavailable.1 {
            let config = &self.replay.config;
            // A broker that has just failed gets one message first.
            let in_flight_max = if self.unavailable.0 > 0 { 1 } else { config.in_flight_max };
            let room = in_flight_max.saturating_sub(self.queue.in_flight());
            let Some(batch) = self.queue.take(now, room.min(self.pace.room(now))) else { return };
            self.pace.begun(batch.messages.len());
            self.publish(batch.messages, batch.alone);
        }
    }

    fn publish(&mut self, messages: Vec<Arc<Message>>, alone: bool) {
        self.calls_made += 1;
        let (call, replay, timeout) = (self.calls_made, self.replay, self.replay.config.publish_timeout);
        let reporter = Reporter::new(call, self.reporter.clone());
        let kept = messages.iter().cloned().map(Some).collect();
        self.in_flight.insert(call, Call { messages: kept, alone });
        let ends = replay.clock.sleep(timeout);
        self.calls.push(Box::pin(async move {
            tokio::select! {
                biased;
                () = replay.publisher.publish(messages, timeout, reporter) => {}
                () = ends => {}
            }
            call
        }));
    }

    /// The end, once nothing is in flight any more.
    fn ended(&mut self) -> Option<ReplayEnd> {
        if !self.calls.is_empty() || self.queue.in_flight() > 0 {
            return None;
        }
        let complete = self.queue.len() == 0 && self.pages.next().is_none();
        match self.reads_failed.1.take() {
            _ if complete => Some(ReplayEnd::Complete),
            _ if self.stopping => Some(ReplayEnd::Stopped),
            Some(error) if self.reads_failed.0 >= READS_MAX => Some(ReplayEnd::Store(error)),
            error => {
                self.reads_failed.1 = error;
                None
            }
        }
    }

    /// The store could not be read on, and all that had been read is on its way.
    fn given_up(&self) -> bool {
        self.reads_failed.0 >= READS_MAX && self.queue.len() == self.queue.in_flight()
    }

    /// When there is something to begin, as it was at `now`.
    fn next_wake(&self, now: Monotonic) -> Option<Monotonic> {
        if self.stopping {
            return None;
        }
        let read = (self.reading.is_none() && self.reads_failed.0 > 0).then_some(self.read_at);
        let ready = self.queue.is_ready().then(|| self.pace.next());
        let send = ready.into_iter().chain(self.queue.next_due()).min().map(|at| at.max(self.unavailable.1));
        // What could have begun by now and has not waits for an outcome.
        read.into_iter().chain(send).filter(|at| *at > now).min()
    }

    fn page_read(&mut self, (rows, page): Page) {
        self.reading = None;
        let page = match page {
            Ok(page) => page,
            Err(error) => return self.read_failed(error),
        };
        self.reads_failed = (0, None);
        self.progress.waiting_for = None;
        self.pages.read(&page, rows);
        self.read_until = page.last().map(|record| record.sequence).or(self.read_until);
        for record in page {
            match self.replay.message(&record) {
                Ok(message) => self.queue.push(message),
                Err(error) => {
                    self.progress.refused += 1;
                    keep(&mut self.progress.refusals, record.sequence, record.id, error);
                }
            }
        }
    }

    fn read_failed(&mut self, error: StoreError) {
        let passing = matches!(error.kind(), StoreErrorKind::Unavailable | StoreErrorKind::Conflict);
        let failures = if passing { self.reads_failed.0 + 1 } else { READS_MAX };
        let (min, max) = self.replay.config.unavailable_delay;
        self.read_at = self.replay.clock.now() + backoff(min, max, failures, self.rng.f64());
        self.progress.waiting_for = Some(chain(&error).to_string());
        self.reads_failed = (failures, Some(error));
    }

    /// This report and what has come with it, so that their successors go out together.
    fn reported_all(&mut self, report: Report) {
        self.reported(report);
        while let Ok(report) = self.reports.try_recv() {
            self.reported(report);
        }
    }

    fn reported(&mut self, report: Report) {
        let Some(call) = self.in_flight.get_mut(&report.call) else { return };
        let alone = call.alone;
        // A second report of a message is ignored: the first counts.
        let Some(message) = call.messages.get_mut(report.index as usize).and_then(Option::take) else {
            return;
        };
        self.outcome(&message, alone, report.result);
    }

    fn call_ended(&mut self, call: u64) {
        while let Ok(report) = self.reports.try_recv() {
            self.reported(report);
        }
        let Some(call) = self.in_flight.remove(&call) else { return };
        for message in call.messages.into_iter().flatten() {
            let error = PublishError::transient("NoOutcome", "no answer within the publish time-out");
            self.outcome(&message, call.alone, Err(error));
        }
    }

    fn outcome(&mut self, message: &Message, alone: bool, result: Result<(), PublishError>) {
        let Err(error) = result else {
            self.unavailable = (0, Monotonic::ZERO);
            self.progress.waiting_for = None;
            self.progress.sent += 1;
            return self.queue.done(message);
        };
        let now = self.replay.clock.now();
        match (error.kind, error.scope) {
            (PublishErrorKind::Unavailable, scope) if scope != PublishErrorScope::Message => {
                let (min, max) = self.replay.config.unavailable_delay;
                // Messages that failed together are one failure.
                if now >= self.unavailable.1 {
                    self.unavailable.0 = self.unavailable.0.saturating_add(1);
                    self.unavailable.1 = now + backoff(min, max, self.unavailable.0, self.rng.f64());
                }
                self.progress.waiting_for = Some(error.to_string());
                self.queue.put_back(message, alone);
            }
            (PublishErrorKind::Permanent, PublishErrorScope::Batch) if !alone => {
                self.queue.put_back(message, true);
            }
            (PublishErrorKind::Permanent, _) => self.refuse(message, &error),
            _ => {
                let failures = self.queue.failures(message);
                let age = std::time::Duration::ZERO;
                match self.replay.config.retry.decide(failures, age, self.rng.f64()) {
                    RetryDecision::After(delay) => {
                        self.progress.retried += 1;
                        self.queue.again(message, now + delay);
                    }
                    RetryDecision::GiveUp(_) => self.refuse(message, &error),
                }
            }
        }
    }

    fn refuse(&mut self, message: &Message, error: &PublishError) {
        self.progress.refused += 1;
        let (sequence, id) = (message.sequence, Some(message.event.id));
        keep(&mut self.progress.refusals, sequence, id, error.to_string());
        self.queue.done(message);
    }

    fn note_position(&mut self) {
        let done_until = self.queue.first().map(|first| first - 1).or(self.read_until);
        self.progress.position = done_until.max(self.progress.position);
    }
}
