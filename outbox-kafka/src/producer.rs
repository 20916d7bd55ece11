//! librdkafka's side of a publish call: the producer with its threads ([`Live`]), its callbacks
//! ([`Context`]), and what a call shares with them ([`Call`]).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use outbox_core::publisher::{PublishError, Reporter};
use rdkafka::{
    ClientContext, Message as _,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::KafkaError,
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::Notify;

use crate::{
    KafkaConfig,
    error::{classify, publish_error},
};

/// How long to wait for librdkafka's threads to confirm a purge. They answer within microseconds unless one
/// is resolving a name, and that one is not connected, so it sends nothing before it has purged.
const PURGE_WAIT_MAX: Duration = Duration::from_millis(250);

/// A message as librdkafka takes it.
pub(crate) type Record<'a> = BaseRecord<'a, [u8], [u8], Box<Delivery>>;

/// One call of `publish`, shared with librdkafka's callbacks.
pub(crate) struct Call {
    pub(crate) reporter: Reporter,
    /// Messages that librdkafka has and has not answered for.
    pub(crate) flying: AtomicUsize,
    /// Nothing is flying any more.
    landed: Notify,
    /// Messages that were queued when the producer was purged for another call's sake.
    purged: Mutex<Vec<usize>>,
    /// Purged messages would not be sent again.
    pub(crate) given_up: AtomicBool,
}

/// What travels with a message through librdkafka.
pub(crate) struct Delivery {
    pub(crate) call: Arc<Call>,
    pub(crate) index: usize,
}

impl Call {
    pub(crate) fn new(reporter: Reporter) -> Self {
        Self {
            reporter,
            flying: AtomicUsize::new(0),
            landed: Notify::new(),
            purged: Mutex::default(),
            given_up: AtomicBool::new(false),
        }
    }

    pub(crate) fn land(&self) {
        if self.flying.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.landed.notify_one();
        }
    }

    pub(crate) async fn landed(&self) {
        while self.flying.load(Ordering::Acquire) > 0 {
            self.landed.notified().await;
        }
    }

    pub(crate) fn take_purged(&self) -> Vec<usize> {
        std::mem::take(&mut *self.purged.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A producer, and the thread that ends it: ending joins librdkafka's threads, which must not hold up a
/// runtime's.
pub(crate) struct Live {
    producer: ThreadedProducer<Context>,
    /// Declared after the producer, so that the keeper, woken by the end of this channel, has the last of its
    /// clones.
    keeper: mpsc::Sender<Purged>,
    ended: JoinHandle<()>,
}

/// Dropped by the keeper once the producer is purged.
type Purged = mpsc::Sender<()>;

impl Live {
    pub(crate) fn start(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let producer = ThreadedProducer::from_config_and_context(&config.producer(), Context::default())?;
        let (keeper, purges) = mpsc::channel::<Purged>();
        let kept = producer.clone();
        let keep = move || {
            for purged in purges {
                kept.purge(PurgeConfig::default().queue().inflight());
                drop(purged);
            }
        };
        let ended = thread::Builder::new()
            .name("outbox-kafka".to_owned())
            .spawn(keep)
            .map_err(|error| KafkaError::ClientCreation(format!("a thread cannot be started: {error}")))?;
        Ok(Self { producer, keeper, ended })
    }

    /// Queues a record; gives it back with the reason where librdkafka does not take it.
    #[expect(
        clippy::result_large_err,
        reason = "the record is given back whole, as librdkafka's binding does it"
    )]
    pub(crate) fn send<'a>(&self, record: Record<'a>) -> Result<(), (KafkaError, Record<'a>)> {
        self.producer.send(record)
    }

    /// Drops everything that is not acknowledged. Waits for librdkafka to confirm it, but not for long.
    pub(crate) fn purge(&self) {
        let (purged, confirmed) = mpsc::channel();
        if self.keeper.send(purged).is_ok() {
            // The channel's end is the confirmation: nothing is ever sent on it.
            let _ = confirmed.recv_timeout(PURGE_WAIT_MAX);
        }
    }

    /// Ends the producer and waits for its threads.
    pub(crate) fn end(self) {
        let Self { producer, keeper, ended } = self;
        drop(producer);
        drop(keeper);
        let _ = ended.join();
    }

    pub(crate) fn context(&self) -> &Context {
        self.producer.client().context()
    }

    /// Why this producer cannot go on, if so.
    pub(crate) fn fatal(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code:?}: {reason}"))
    }
}

/// What a producer's callbacks know.
#[derive(Default)]
pub(crate) struct Context {
    /// A broker has answered since all of them were last known to be down.
    answered: AtomicBool,
    /// The last error that concerned no message.
    heard: Mutex<Option<String>>,
}

impl Context {
    /// The last error that concerned no message, unless a broker has answered since.
    pub(crate) fn heard(&self) -> Option<String> {
        if self.answered.load(Ordering::Relaxed) {
            return None;
        }
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn broker_answered(&self) {
        // Read first: a write for each message would have every core pass the cache line around.
        if !self.answered.load(Ordering::Relaxed) {
            self.answered.store(true, Ordering::Relaxed);
        }
    }

    fn failure(&self, code: Code, topic: &str) -> PublishError {
        let heard = self.heard().map(|heard| format!("; last heard: {heard}")).unwrap_or_default();
        let detail = format!("the message to topic {topic:?} was not acknowledged: {code}{heard}");
        publish_error(classify(code, self.answered.load(Ordering::Relaxed)), code, detail)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(target: "librdkafka", facility, "{text}"),
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", "{error}: {reason}");
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            self.answered.store(false, Ordering::Relaxed);
        }
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let Delivery { call, index } = *delivery;
        match result {
            Ok(_) => {
                self.broker_answered();
                call.reporter.report(index, Ok(()));
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                // Codes above zero come from a broker, those below from librdkafka.
                if code as i32 > 0 {
                    self.broker_answered();
                }
                if code == Code::PurgeQueue && !call.given_up.load(Ordering::Acquire) {
                    call.purged.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                } else {
                    call.reporter.report(index, Err(self.failure(code, message.topic())));
                }
            }
        }
        call.land();
    }
}
