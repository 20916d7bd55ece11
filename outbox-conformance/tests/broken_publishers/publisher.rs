//! A publisher with one fault.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, future::join_all};
use outbox_conformance::StoredMessage;
use outbox_core::{
    AggregateKey, Finding, Publisher,
    publisher::{Message, PublishError, PublishErrorScope as Scope, PublisherCapabilities, Reporter, Stored},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    broker::{Broker, Mode, Refusal},
    common,
    faults::Fault,
};

pub(crate) const SECRET: &str = "correct-horse";
pub(crate) const BROKEN_NAME: &str = "no name";
pub(crate) const BROKEN_HEADER: &str = "unspeakable";

const PAYLOAD_BYTES_MAX: usize = 100_000;
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(1);
/// What is left of a call's time for its reports.
const MARGIN: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(20);

/// A call of this many messages is a large one, which some faults need.
const MANY: usize = 200;

#[derive(Clone)]
pub(crate) struct Broken(Arc<Inner>);

struct Inner {
    broker: Broker,
    fault: Fault,
    closed: AtomicBool,
    /// The connection was cut, and the fault is never to make another.
    dead: AtomicBool,
    errors: AtomicU32,
    last_reporter: Mutex<Option<Reporter>>,
}

type Outcome = Result<(), PublishError>;

/// Until when a message is tried.
#[derive(Clone, Copy)]
struct End {
    at: Instant,
    /// The relay's timeout comes first.
    by_timeout: bool,
}

impl Broken {
    pub(crate) fn new(broker: Broker, fault: Fault) -> Self {
        Self(Arc::new(Inner {
            broker,
            fault,
            closed: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            errors: AtomicU32::new(0),
            last_reporter: Mutex::new(None),
        }))
    }

    fn is(&self, fault: Fault) -> bool {
        self.0.fault == fault
    }

    async fn send(&self, message: &Message, topic: &str, end: End) -> Outcome {
        self.refuse(message)?;
        loop {
            let refusal = match timeout_at(end.at, self.offer(message, topic)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(refusal)) => refusal,
                Err(_) => Refusal::Lost,
            };
            if refusal != Refusal::Unreachable {
                self.send_on(message, end, refusal == Refusal::Lost);
                return self.classify(refusal, message);
            }
            if self.is(Fault::DeadAfterCut) {
                self.0.dead.store(true, Relaxed);
            }
            if Instant::now() + PAUSE >= end.at {
                self.send_on(message, end, true);
                return self.classify(refusal, message);
            }
            sleep(PAUSE).await;
        }
    }

    /// What is refused without the broker.
    fn refuse(&self, message: &Message) -> Outcome {
        let permanent = |code: &'static str, detail: &str| Err(PublishError::permanent(code, detail));
        let asks_broker = self.is(Fault::LimitAskedOfTheBroker) && self.0.broker.mode() != Mode::Passing;
        let enforced = !asks_broker && !self.is(Fault::LimitNotEnforced);
        let empty = self.is(Fault::EmptyRefused) && message.event.body().is_empty();
        if message.event.payload_len() > PAYLOAD_BYTES_MAX && enforced || empty {
            return permanent("payload-size", "the payload has the wrong size");
        }
        if &*message.topic == BROKEN_NAME {
            if self.is(Fault::BrokenNameIsTheBroker) {
                return Err(PublishError::unavailable("bad-name", "the connection was closed"));
            }
            if self.is(Fault::BrokenNameIsWaitedFor) {
                let error = PublishError::unavailable("bad-name", "no topic can have this name");
                return Err(error.scope(Scope::Destination));
            }
            return permanent("bad-name", "no topic can have this name");
        }
        if message.event.headers.contains_key(BROKEN_HEADER) && !self.is(Fault::HeaderDropped) {
            return permanent("bad-header", "the protocol cannot carry this header");
        }
        Ok(())
    }

    async fn offer(&self, message: &Message, topic: &str) -> Result<(), Refusal> {
        let broker = &self.0.broker;
        if self.0.dead.load(Relaxed) {
            return Err(Refusal::Unreachable);
        }
        let stored = self.stored(message);
        let from_end = if self.is(Fault::NewestFirst) {
            let log = broker.stored(topic);
            log.iter().rposition(|other| other.key == stored.key).map_or(0, |at| log.len() - at)
        } else {
            0
        };
        let request = broker.request(|| broker.store(topic, stored, from_end));
        if self.is(Fault::FireAndForget) {
            return request.now_or_never().unwrap_or(Ok(()));
        }
        request.await
    }

    fn stored(&self, message: &Message) -> StoredMessage {
        let mut stored = common::stored(message);
        let payload = stored.payload.clone();
        match self.0.fault {
            Fault::KeyOfEvent => stored.key = Some(message.event.id.to_string()),
            Fault::TextOnly => stored.payload = String::from_utf8_lossy(&payload).into_owned().into(),
            Fault::Truncated => stored.payload = payload.slice(..payload.len().min(65_536)),
            Fault::TombstoneUnmarked => drop(stored.attributes.remove("tombstone")),
            Fault::TimeForgotten => drop(stored.attributes.remove("time")),
            Fault::HeadersFolded => {
                let folded =
                    stored.headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
                stored.headers = folded.collect();
            }
            _ => {}
        }
        stored.headers.remove(BROKEN_HEADER);
        stored
    }

    fn classify(&self, refusal: Refusal, message: &Message) -> Outcome {
        let number = self.0.errors.fetch_add(1, Relaxed);
        let error = match refusal {
            Refusal::Unreachable => {
                let secret = if self.is(Fault::SecretInError) { SECRET } else { "<hidden>" };
                let error =
                    PublishError::unavailable("unreachable", format!("no connection for user:{secret}"));
                let scope =
                    if self.is(Fault::OutageIsTheDestination) { Scope::Destination } else { Scope::Broker };
                if self.is(Fault::OutageIsTransient) {
                    PublishError::transient("unreachable", "no connection")
                } else {
                    error.stored(Stored::No).scope(scope)
                }
            }
            Refusal::Lost if self.is(Fault::FreezeIsTransient) => {
                PublishError::transient("no-answer", "no answer")
            }
            Refusal::Lost => {
                let stored = if self.is(Fault::UnknownCalledNo) { Stored::No } else { Stored::Unknown };
                PublishError::unavailable("no-answer", "no answer").stored(stored)
            }
            Refusal::NoSuchTopic if self.is(Fault::UnroutableVanishes) => return Ok(()),
            Refusal::NoSuchTopic => {
                let code = match self.0.fault {
                    Fault::CodeEmpty => String::new(),
                    Fault::CodeOfTheMoment => format!("error-{number}"),
                    _ => "no-such-topic".to_owned(),
                };
                let far = self.is(Fault::UnroutableIsTheBroker);
                let scope = if far { Scope::Broker } else { Scope::Destination };
                let detail = format!("there is no topic {}", message.topic);
                PublishError::unavailable(code, detail).scope(scope).stored(Stored::No)
            }
            Refusal::TooLarge if self.is(Fault::OversizedIsTransient) => {
                PublishError::transient("too-large", "")
            }
            Refusal::TooLarge => {
                PublishError::permanent("too-large", "the broker finds the message too large")
            }
        };
        Err(error)
    }

    /// The fault of those that go on although the message was reported as failed.
    fn send_on(&self, message: &Message, end: End, outage: bool) {
        let fault = if end.by_timeout { Fault::SendsAfterDeadline } else { Fault::SendsAfterReturn };
        if !outage || !self.is(fault) {
            return;
        }
        let (broken, message) = (self.clone(), message.clone());
        tokio::spawn(async move {
            while broken.offer(&message, &message.topic).await.is_err() {
                sleep(PAUSE).await;
            }
        });
    }

    /// Sends and reports one message.
    async fn handle(
        &self,
        message: Arc<Message>,
        topic: Arc<str>,
        index: usize,
        end: End,
        reporter: Reporter,
    ) -> Outcome {
        if self.is(Fault::SuccessBeforeStored)
            && self.refuse(&message).is_ok()
            && self.0.broker.mode() == Mode::Passing
            && self.0.broker.takes(&topic, &self.stored(&message)).is_ok()
        {
            reporter.report(index, Ok(()));
            sleep(PAUSE).await;
            return self.send(&message, &topic, end).await;
        }
        let frozen = self.0.broker.mode() == Mode::Frozen;
        let outcome = self.send(&message, &topic, end).await;
        if frozen
            && self.is(Fault::TimeoutIgnored)
            && outcome.as_ref().is_err_and(|error| error.code == "no-answer")
        {
            return std::future::pending().await;
        }
        let reporter = match (&*self.0.last_reporter.lock().unwrap(), self.0.fault) {
            (Some(last), Fault::CallsMixedUp) => last.clone(),
            _ => reporter,
        };
        if !self.is(Fault::ReportsAtTheEnd) && !self.is(Fault::InnocentsBlamed) {
            reporter.report(index, outcome.clone());
        }
        outcome
    }

    async fn publish_in_order(&self, messages: Vec<Arc<Message>>, end: End, reporter: Reporter) {
        let mut failed: Vec<AggregateKey> = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            if failed.contains(&message.key) {
                let behind = PublishError::transient("behind-a-failure", "an earlier message failed");
                reporter.report(index, Err(behind.stored(Stored::No)));
                continue;
            }
            let (key, topic) = (message.key.clone(), Arc::clone(&message.topic));
            if self.handle(message, topic, index, end, reporter.clone()).await.is_err() {
                failed.push(key);
            }
        }
    }
}

#[async_trait]
impl Publisher for Broken {
    fn capabilities(&self) -> PublisherCapabilities {
        let mut capabilities = PublisherCapabilities::default();
        let times = if self.is(Fault::LimitOverstated) { 2 } else { 1 };
        capabilities.payload_bytes_max = Some(PAYLOAD_BYTES_MAX * times);
        capabilities.delivery_timeout = Some(DELIVERY_TIMEOUT);
        capabilities.overtaking = !self.is(Fault::OvertakingDenied) && !self.is(Fault::NoneAndInOrder);
        capabilities
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        let broker = &self.0.broker;
        let mut findings = Vec::new();
        let mut find = |problem: String| findings.push(Finding::error("finding", problem, "see the manual"));
        if broker.mode() != Mode::Passing && !self.is(Fault::UnreachableUnnoticed) {
            find("the broker cannot be reached".to_owned());
        }
        for topic in topics {
            let unnoticed =
                if topic == BROKEN_NAME { Fault::BrokenNameUnnoticed } else { Fault::MissingUnnoticed };
            if !broker.has(topic) && !self.is(unnoticed) {
                let secret = if self.is(Fault::SecretInFinding) { SECRET } else { "<hidden>" };
                find(format!("user:{secret} finds no topic {topic}"));
            }
            if self.is(Fault::CheckCreates) && topic != BROKEN_NAME {
                broker.create(topic);
            }
        }
        if self.is(Fault::FindsSomething) {
            find("something is odd".to_owned());
        }
        findings
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        if self.0.closed.load(Relaxed) {
            assert!(!self.is(Fault::CloseThenPanic), "published after close");
            let closed = || Err(PublishError::unavailable("closed", "closed").stored(Stored::No));
            let answer = |_| if self.is(Fault::CloseThenLies) { Ok(()) } else { closed() };
            return (0..messages.len()).for_each(|index| reporter.report(index, answer(index)));
        }
        let by_timeout = timeout.saturating_sub(MARGIN) < DELIVERY_TIMEOUT;
        let time = timeout.saturating_sub(MARGIN).min(DELIVERY_TIMEOUT);
        let end = End { at: Instant::now() + time, by_timeout };
        *self.0.last_reporter.lock().unwrap() = Some(reporter.clone());
        // As with a real broker, no answer comes at once.
        tokio::task::yield_now().await;
        if self.is(Fault::NoneAndInOrder) {
            return self.publish_in_order(messages, end, reporter).await;
        }
        let (count, many) = (messages.len(), messages.len() >= MANY);
        let ordinary = |message: &&Arc<Message>| message.topic.starts_with('d');
        let first = messages.iter().find(ordinary).map(|message| Arc::clone(&message.topic));
        let handled = messages.iter().cloned().enumerate().map(|(index, message)| {
            let topic = match &first {
                Some(first) if self.is(Fault::OneDestination) && message.topic.starts_with('d') => {
                    Arc::clone(first)
                }
                _ => Arc::clone(&message.topic),
            };
            let at = match self.0.fault {
                Fault::OutcomesReversed => count - 1 - index,
                Fault::LastUnreported if many && index == count - 1 => return async { Ok(()) }.boxed(),
                Fault::StrayReport if many && index == 0 => {
                    reporter.report(count, Ok(()));
                    index
                }
                Fault::ReportedTwice if many && index == 0 => {
                    reporter.report(index, Ok(()));
                    index
                }
                Fault::StoredTwice if many && index == 0 => {
                    let _ = self.0.broker.store(&topic, self.stored(&message), 0);
                    index
                }
                _ => index,
            };
            let (broken, reporter) = (self.clone(), reporter.clone());
            let handle = async move { broken.handle(message, topic, at, end, reporter).await };
            if self.is(Fault::SendsAfterDrop) {
                let task = tokio::spawn(handle);
                return async { task.await.unwrap() }.boxed();
            }
            handle.boxed()
        });
        let mut outcomes = join_all(handled).await;
        if self.is(Fault::InnocentsBlamed) {
            let blame =
                outcomes.iter().find(|outcome| matches!(outcome, Err(error) if error.code == "too-large"));
            if let Some(blame) = blame.cloned() {
                outcomes.fill(blame);
            }
        }
        if self.is(Fault::ReportsAtTheEnd) || self.is(Fault::InnocentsBlamed) {
            outcomes.into_iter().enumerate().for_each(|(index, outcome)| reporter.report(index, outcome));
        }
    }

    async fn close(&self) {
        self.0.closed.store(true, Relaxed);
    }
}
