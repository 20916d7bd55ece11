//! `outbox relay`: the relays of all outboxes, from their checks to the end of their shutdown.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join_all};
use outbox_core::{
    EventFilter, Finding, OutboxAdmin, Publisher, Relay, RelayHandle, RelayStatus, Severity, StoreError,
    chain,
    publisher::SharedPublisher,
    relay::{Clock, Monotonic, Task, TokioClock},
    settings::Problem,
    store::{Status, StoredEvent},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tracing::{Instrument, Span};

use crate::{
    config::{Config, OutboxConfig, PublisherConfig},
    output::{Failure, LogFormat, has_errors, name_findings},
};

/// How long changes of the relay's state are gathered after one was logged, so that a flapping broker cannot
/// flood the log.
const CHANGES_INTERVAL: Duration = Duration::from_secs(1);

/// How many of the oldest pending events are asked for their topics before a relay starts: a moment's work,
/// and little memory, though each comes with its payload.
const PENDING_PAGE: u32 = 20;
const PENDING_PAGES: u32 = 20;

/// Signals that come within this time are one request. What ends a process group, such as `timeout`, may
/// signal the process itself as well.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// How long after a check that failed, or a relay that broke, an outbox beside others is tried again.
const START_AGAIN: Duration = Duration::from_secs(10);

/// One outbox with all that its relay needs.
struct Outbox {
    config: OutboxConfig,
    publishers: Arc<Publishers>,
    span: Span,
}

/// The publishers, each made when it is first wanted.
struct Publishers {
    configs: Vec<PublisherConfig>,
    made: Mutex<Vec<Option<Arc<dyn Publisher>>>>,
}

/// A relay that has passed its check, with what the check said all the same.
type Checked = (Relay, Vec<Finding>);

/// Checks, relays until a signal comes, and finishes what is in flight.
pub(crate) async fn run(config: Config, format: LogFormat) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (outboxes, publishers) = outboxes(config);
    let starting = join_all(outboxes.iter().map(Outbox::checked));
    let started = tokio::select! {
        started = starting => started,
        name = signals.next() => {
            tracing::info!("{name} came before the relay had started");
            return Ok(());
        }
    };
    if !started.iter().any(Result::is_ok) {
        return Err(Failure::Findings(started.into_iter().filter_map(Result::err).flatten().collect()));
    }
    let (stop, stopping) = watch::channel(false);
    let handles = Arc::default();
    let alone = outboxes.len() == 1;
    let mut running = Vec::new();
    for (outbox, started) in outboxes.into_iter().zip(started) {
        let (stopping, handles, span) = (stopping.clone(), Arc::clone(&handles), outbox.span.clone());
        let tending = async move { outbox.tend(started, stopping, &handles, alone, format).await };
        running.push(tokio::spawn(tending.instrument(span)));
    }
    let ended = until_ended(running, &stop, &handles, &mut signals).await?;
    publishers.close().await;
    let problems: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::Runtime(problems.join("; "))) }
}

/// Everything that would keep the relays from working.
pub(crate) async fn check(config: Config) -> Vec<Finding> {
    let (outboxes, _) = outboxes(config);
    let checked = join_all(outboxes.iter().map(Outbox::checked)).await;
    checked
        .into_iter()
        .flat_map(|checked| checked.map_or_else(|findings| findings, |(_, findings)| findings))
        .collect()
}

fn outboxes(config: Config) -> (Vec<Outbox>, Arc<Publishers>) {
    let made = config.publishers.iter().map(|_| None).collect();
    let publishers = Arc::new(Publishers { configs: config.publishers, made: Mutex::new(made) });
    let outbox = |config: OutboxConfig| {
        // The log of one outbox without a name has nothing to tell it from.
        let span = match &config.name {
            Some(name) => tracing::info_span!("relay", outbox = %name),
            None => Span::none(),
        };
        Outbox { config, publishers: Arc::clone(&publishers), span }
    };
    (config.outboxes.into_iter().map(outbox).collect(), publishers)
}

fn unopened(error: &StoreError) -> Vec<Finding> {
    let remedy = "correct [store], or see that it can be reached";
    vec![Finding::error("store", format!("the store cannot be opened: {}", chain(error)), remedy)]
}

impl Outbox {
    /// A relay as the configuration says, not yet running; or why it cannot, with the outbox that is meant.
    async fn checked(&self) -> Result<Checked, Vec<Finding>> {
        let checked = async {
            let (relay, admin) = self.build().await?;
            let mut findings = relay.check().await;
            if has_errors(&findings) {
                return Err(findings);
            }
            findings.extend(self.check_pending_topics(&*admin).await);
            Ok((relay, findings))
        };
        match checked.instrument(self.span.clone()).await {
            Ok((relay, findings)) => Ok((relay, self.config.name_in(findings))),
            Err(findings) => Err(self.config.name_in(findings)),
        }
    }

    /// Where the topics depend on the events, those of the oldest that wait are asked for. A missing one is a
    /// warning: its messages wait, and it keeps back no other.
    async fn check_pending_topics(&self, admin: &dyn OutboxAdmin) -> Vec<Finding> {
        let template = &self.config.relay.topic;
        let known = template.topics();
        let mut topics = BTreeSet::new();
        let mut filter = EventFilter::status(Status::Pending);
        for _ in 0..PENDING_PAGES {
            let page = admin.list(&filter, PENDING_PAGE).await;
            let Ok(page) = page.inspect_err(|error| tracing::debug!(error = %chain(error), "cannot list"))
            else {
                break;
            };
            let Some(last) = page.last() else { break };
            filter.after = Some(last.sequence);
            topics.extend(page.into_iter().filter_map(|record| {
                let event =
                    StoredEvent::new(record.id.unwrap_or_default(), record.event_type, "", record.created_at)
                        .with_version(record.version)
                        .with_headers(record.headers)
                        .with_topic(record.topic);
                // An event whose topic cannot be told fails alone, and is named then.
                template.resolve(&record.key, &event).ok().map(|topic| topic.to_string())
            }));
        }
        let topics: Vec<String> = topics.into_iter().filter(|topic| !known.contains(topic)).collect();
        let Ok(publisher) = self.publishers.get(self.config.publisher) else { return Vec::new() };
        if topics.is_empty() {
            return Vec::new();
        }
        let mut findings = publisher.check(&topics).await;
        findings.iter_mut().for_each(|finding| finding.severity = Severity::Warning);
        findings
    }

    async fn build(&self) -> Result<(Relay, Arc<dyn OutboxAdmin>), Vec<Finding>> {
        let opened = self.config.store.open().await.map_err(|error| unopened(&error))?;
        let (store, admin) = (opened.store, opened.admin);
        let publisher = self.publishers.get(self.config.publisher)?;
        let clock = SpanClock { inner: TokioClock::default(), span: self.span.clone() };
        let relay = Relay::with_clock(store, publisher, self.config.relay.clone(), Arc::new(clock));
        relay.map(|relay| (relay, admin)).map_err(|error| {
            let finding = |problem: &Problem| {
                Finding::error("settings", format!("{} {}", problem.setting, problem.what), &*problem.remedy)
            };
            error.problems().iter().map(finding).collect()
        })
    }

    /// Runs the relay until the stop. One that has not passed its check, or that breaks, is tried again
    /// later, so that it can neither stop the others nor stay away for good; one that is alone ends.
    async fn tend(
        self,
        mut started: Result<Checked, Vec<Finding>>,
        mut stopping: watch::Receiver<bool>,
        handles: &Mutex<Vec<RelayHandle>>,
        alone: bool,
        format: LogFormat,
    ) -> Result<(), String> {
        let mut said = Vec::new();
        loop {
            match started {
                Ok((relay, warnings)) => {
                    name_findings(&warnings, format);
                    let error = match self.relay(relay, &mut stopping, handles).await {
                        Ok(ended) => return ended,
                        Err(error) if alone => return Err(error),
                        Err(error) => error,
                    };
                    tracing::error!("{error}; it is started again in {START_AGAIN:?}");
                }
                // The same error again is not repeated.
                Err(findings) if findings == said => {}
                Err(findings) => {
                    name_findings(&findings, format);
                    tracing::warn!("this outbox is not relayed; it is checked again every {START_AGAIN:?}");
                    said = findings;
                }
            }
            tokio::select! {
                () = stopped(&mut stopping) => return Ok(()),
                () = tokio::time::sleep(START_AGAIN) => {}
            }
            started = tokio::select! {
                () = stopped(&mut stopping) => return Ok(()),
                started = self.checked() => started,
            };
        }
    }

    /// Relays until the stop, and says how that ended; an error is a relay that ended by itself.
    async fn relay(
        &self,
        relay: Relay,
        stopping: &mut watch::Receiver<bool>,
        handles: &Mutex<Vec<RelayHandle>>,
    ) -> Result<Result<(), String>, String> {
        let (from, to) = (self.config.store.shown(), self.publishers.shown(self.config.publisher));
        let topic = self.config.relay.topic.to_string();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), %from, %to, %topic, "relaying");
        let handle = relay.handle();
        handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle.clone());
        let mut running = tokio::spawn(relay.run().instrument(self.span.clone()));
        tokio::spawn(narrate(handle.clone()).instrument(self.span.clone()));
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = stopped(stopping) => {
                handle.shutdown();
                running.await
            }
        };
        let status = ended.map_err(|error| format!("the relay failed: {error}"))?;
        Ok(summary(&status))
    }
}

impl Publishers {
    /// The publisher, which is closed by [`close`](Self::close) and not by the relays that share it.
    fn get(&self, index: Option<usize>) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let missing =
            || vec![Finding::error("missing-key", "publisher.url is missing", "give publisher.url")];
        let index = index.ok_or_else(missing)?;
        let (config, made) = self.configs.get(index).zip(made.get_mut(index)).ok_or_else(missing)?;
        let publisher = match made {
            Some(publisher) => Arc::clone(publisher),
            None => Arc::clone(made.insert(config.open()?)),
        };
        Ok(Arc::new(SharedPublisher::new(publisher)))
    }

    fn shown(&self, index: Option<usize>) -> String {
        index.and_then(|index| self.configs.get(index)).map(|config| config.shown()).unwrap_or_default()
    }

    async fn close(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(made.iter().flatten().map(|publisher| publisher.close())).await;
    }
}

/// Tokio's clock, whose tasks log as those of their outbox.
struct SpanClock {
    inner: TokioClock,
    span: Span,
}

#[deny(clippy::missing_trait_methods)]
impl Clock for SpanClock {
    fn now(&self) -> Monotonic {
        self.inner.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.inner.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        self.inner.spawn(Box::pin(task.instrument(self.span.clone())))
    }

    fn detach(&self, task: BoxFuture<'static, ()>) {
        self.inner.detach(Box::pin(task.instrument(self.span.clone())));
    }
}

/// Completes once the process is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The value that is awaited here must not be held across another wait. The sender outlives the relays.
    let _ = stopping.wait_for(|stop| *stop).await;
}

type Ended = Vec<Result<(), String>>;

async fn until_ended(
    running: Vec<JoinHandle<Result<(), String>>>,
    stop: &watch::Sender<bool>,
    handles: &Mutex<Vec<RelayHandle>>,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let mut running = std::pin::pin!(join_all(running));
    let mut draining_since: Option<Instant> = None;
    loop {
        let name = tokio::select! {
            ended = &mut running => {
                let failed = |error| Err(format!("the relay failed: {error}"));
                return Ok(ended.into_iter().map(|ended| ended.unwrap_or_else(failed)).collect());
            }
            name = signals.next() => name,
        };
        match draining_since {
            None => {
                draining_since = Some(Instant::now());
                tracing::info!("{name}: finishing what is in flight; a second signal ends at once");
                stop.send_replace(true);
            }
            Some(since) if since.elapsed() < SAME_REQUEST => {}
            Some(_) => {
                let handles = handles.lock().unwrap_or_else(PoisonError::into_inner);
                let in_flight: usize = handles.iter().map(|handle| handle.status().in_flight).sum();
                return Err(Failure::Runtime(format!(
                    "ended at once by a second signal, {name}; messages in flight, now {in_flight}, will be published \
                     again, and the partitions are free when the lease expires"
                )));
            }
        }
    }
}

fn summary(status: &RelayStatus) -> Result<(), String> {
    let &RelayStatus { published, refused, sent, retried, failed, fenced, buried, store_errors, .. } = status;
    tracing::info!(published, refused, sent, retried, failed, fenced, buried, store_errors, "ended");
    if status.in_flight > 0 {
        return Err(format!(
            "relay.shutdown_timeout passed; messages in flight, {}, will be published again",
            status.in_flight
        ));
    }
    if status.unrecorded > 0 {
        return Err(format!(
            "the database refuses to record what became of {} events, which will be published again: {}",
            status.unrecorded,
            status.last_store_error.as_deref().unwrap_or("see the log")
        ));
    }
    Ok(())
}

/// Logs how many partitions there are, which come and go a few at a time. All else the engine logs itself.
async fn narrate(mut handle: RelayHandle) {
    let mut seen = 0;
    while let Ok(status) =
        handle.wait_for(|status| !status.phase.is_over() && status.partitions != seen).await
    {
        tracing::info!(partitions = status.partitions, before = seen, "partitions changed");
        seen = status.partitions;
        tokio::time::sleep(CHANGES_INTERVAL).await;
    }
}

/// The signals that end a process in an orderly way. Left alone, SIGQUIT and SIGHUP would end it at once, and
/// a terminal that is closed sends SIGHUP.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next request to end.
    pub(crate) async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.quit.recv() => return "SIGQUIT",
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP: the settings are read at the start alone; SIGTERM ends the program");
                }
            }
        }
    }
}
