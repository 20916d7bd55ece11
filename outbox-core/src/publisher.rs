//! The contract of a broker: [`Publisher`].

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{
    AggregateKey, Finding,
    store::{Sequence, StoredEvent},
    with::with,
};

/// What a broker is given: an event with its destination.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Message {
    /// The destination: a topic, an exchange with a routing key, a subject.
    pub topic: Arc<str>,
    /// The aggregate: the partition key of brokers that have one.
    pub key: AggregateKey,
    /// The event's position in its store.
    pub sequence: Sequence,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The CloudEvents `source`: where the event comes from, the same for all events of a relay.
    pub source: Arc<str>,
    /// The event.
    pub event: StoredEvent,
}

impl Message {
    /// The first attempt of an event.
    pub fn new(
        topic: impl Into<Arc<str>>,
        key: AggregateKey,
        sequence: Sequence,
        source: impl Into<Arc<str>>,
        event: StoredEvent,
    ) -> Self {
        Self { topic: topic.into(), key, sequence, attempt: 1, source: source.into(), event }
    }
}

with!(Message { with_attempt attempt: u32, with_topic topic: Arc<str>, with_event event: StoredEvent });

/// What a caller should do about a [`PublishError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishErrorKind {
    /// May work next time: hold the aggregate, spend an attempt.
    Transient,
    /// Will never work for this message.
    Permanent,
    /// Nothing within the scope works at the moment: pause it, spend no attempt.
    Unavailable,
}

/// How far a [`PublishError`] reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishErrorScope {
    /// This message.
    Message,
    /// Any one of the messages that travelled together; which one is not known.
    Batch,
    /// Every message of the same topic.
    Destination,
    /// Every message.
    Broker,
}

/// Whether the broker may have stored the message all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// Certainly not.
    No,
    /// Not known. Never success.
    Unknown,
}

/// A message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishError {
    /// What to do about it.
    pub kind: PublishErrorKind,
    /// How far it reaches.
    pub scope: PublishErrorScope,
    /// Whether the message may be there all the same.
    pub stored: Stored,
    /// The broker's or driver's own name of the error, such as `MessageSizeTooLarge`.
    pub code: Cow<'static, str>,
    /// What happened, for people. Never holds a credential.
    pub detail: String,
}

impl PublishError {
    /// An error of any kind.
    pub fn new(
        kind: PublishErrorKind,
        scope: PublishErrorScope,
        stored: Stored,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, scope, stored, code: code.into(), detail: detail.into() }
    }

    /// An error of one message that may go away.
    pub fn transient(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            kind: PublishErrorKind::Transient,
            scope: PublishErrorScope::Message,
            stored: Stored::Unknown,
            code: code.into(),
            detail: detail.into(),
        }
    }

    /// An error of one message that stays; the broker did not store it.
    pub fn permanent(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { kind: PublishErrorKind::Permanent, stored: Stored::No, ..Self::transient(code, detail) }
    }

    /// The broker cannot be reached.
    pub fn unavailable(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            kind: PublishErrorKind::Unavailable,
            scope: PublishErrorScope::Broker,
            ..Self::transient(code, detail)
        }
    }

    /// The same with another scope.
    #[must_use]
    pub fn scope(mut self, scope: PublishErrorScope) -> Self {
        self.scope = scope;
        self
    }

    /// The same with another answer to whether it was stored.
    #[must_use]
    pub fn stored(mut self, stored: Stored) -> Self {
        self.stored = stored;
        self
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for PublishError {}

/// The outcome of one message of a publish call.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// Which call.
    pub call: u64,
    /// Which of the call's messages, from 0.
    pub index: u32,
    /// Acknowledged, or why not.
    pub result: Result<(), PublishError>,
}

/// Takes the outcomes of one publish call, each as it becomes known. Cheap to clone, callable from any
/// thread.
#[derive(Debug, Clone)]
pub struct Reporter {
    call: u64,
    reports: mpsc::UnboundedSender<Report>,
}

impl Reporter {
    /// A reporter whose outcomes arrive on `reports` under the number `call`.
    pub fn new(call: u64, reports: mpsc::UnboundedSender<Report>) -> Self {
        Self { call, reports }
    }

    /// Reports message number `index` of the call, from 0. Only the first report of a message counts. A
    /// caller that has gone away is not an error.
    pub fn report(&self, index: usize, result: Result<(), PublishError>) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let _ = self.reports.send(Report { call: self.call, index, result });
    }
}

/// What a publisher can do. Declared, and disproved by the conformance suite where it is untrue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherCapabilities {
    /// The largest payload it takes, in bytes, where it knows: larger ones fail alone before they are sent.
    pub payload_bytes_max: Option<usize>,
    /// A later message of an aggregate can be stored although an earlier one of it failed. True of every
    /// broker known to us, which is why a relay keeps one message in flight per aggregate.
    pub overtaking: bool,
    /// How long the publisher itself goes on trying. A relay whose publish time-out is not longer is refused,
    /// since every slow message would have an unknown outcome.
    pub delivery_timeout: Option<Duration>,
}

impl Default for PublisherCapabilities {
    fn default() -> Self {
        Self { payload_bytes_max: None, overtaking: true, delivery_timeout: None }
    }
}

/// What a relay asks of a broker.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// What this publisher can do.
    fn capabilities(&self) -> PublisherCapabilities {
        PublisherCapabilities::default()
    }

    /// Looks for whatever would keep messages from these topics (those that are known beforehand) and names
    /// all of it at once. A broker that cannot be reached is a finding, even if no topic is known.
    async fn check(&self, topics: &[String]) -> Vec<Finding>;

    /// Sends the messages and reports one outcome for each, as it becomes known: successors wait for it.
    ///
    /// Success is the broker's positive acknowledgement of that very message. `timeout` is the time that the
    /// relay waits; what is not reported by then counts as unknown. After this returns, is dropped, or has
    /// timed out, nothing of it may still be sent. Calls run concurrently, with messages of different
    /// aggregates.
    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter);

    /// Lets go of the connection. Called once, after the last publish has returned.
    async fn close(&self) {}
}

macro_rules! forward_publisher {
    ($pointer:ident) => {
        // A method that is added to the trait, with a default or not, must be forwarded.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: Publisher + ?Sized> Publisher for $pointer<T> {
            fn capabilities(&self) -> PublisherCapabilities {
                (**self).capabilities()
            }

            async fn check(&self, topics: &[String]) -> Vec<Finding> {
                (**self).check(topics).await
            }

            async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
                (**self).publish(messages, timeout, reporter).await;
            }

            async fn close(&self) {
                (**self).close().await;
            }
        }
    };
}

forward_publisher!(Arc);
forward_publisher!(Box);

/// One publisher for several relays: forwards everything but [`close`](Publisher::close), which each relay
/// calls at its end. The code that made the publisher closes it after the last of them.
#[derive(Clone)]
pub struct SharedPublisher(Arc<dyn Publisher>);

impl SharedPublisher {
    /// Shares `publisher`, as it is or in an `Arc`.
    pub fn new(publisher: impl Publisher) -> Self {
        Self(Arc::new(publisher))
    }
}

impl fmt::Debug for SharedPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedPublisher")
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Publisher for SharedPublisher {
    fn capabilities(&self) -> PublisherCapabilities {
        self.0.capabilities()
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        self.0.check(topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        self.0.publish(messages, timeout, reporter).await;
    }

    async fn close(&self) {}
}
