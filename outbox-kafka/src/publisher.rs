//! The publisher: [`KafkaPublisher`].
//!
//! A call of `publish` queues its messages with librdkafka and waits. librdkafka's delivery callback, on the
//! thread that polls for events, reports each outcome as it is known. A call that ends early (dropped, out of
//! time) purges the producer and takes it out of service, because librdkafka cannot take back a single
//! message.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use outbox_core::{
    ConfigError, Finding, Publisher,
    publisher::{
        Message, PublishError, PublishErrorKind, PublishErrorScope, PublisherCapabilities, Reporter, Stored,
    },
    settings::Problem,
};
use rdkafka::{error::KafkaError, producer::BaseRecord, types::RDKafkaErrorCode as Code};
use tokio::time::Instant;

use crate::{
    KafkaConfig,
    check::{self, name_problem},
    error::{publish_error, refused},
    producer::{Call, Delivery, Live},
    record,
};

/// How long to wait before a message is offered again to a full queue: a few requests' worth.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// Sends messages to Apache Kafka: idempotent, acknowledged by all in-sync replicas, one outcome each as it
/// is known.
///
/// See the [crate's documentation](crate) for what is sent and what is guaranteed. The connection is made in
/// the background; that a broker is there is only known after [`check`](Publisher::check) or the first
/// message.
pub struct KafkaPublisher {
    config: KafkaConfig,
    payload_bytes_max: Option<usize>,
    /// The producer in service; none after one was retired or closed, until the next call.
    current: Mutex<Option<Arc<Live>>>,
}

impl KafkaPublisher {
    /// A publisher with this configuration.
    ///
    /// # Errors
    /// What librdkafka finds wrong with the configuration as a whole, such as a certificate that cannot be
    /// read.
    pub fn new(config: KafkaConfig) -> Result<Self, ConfigError> {
        let live = Live::start(&config).map_err(|error| {
            let what = format!("cannot start a producer: {}", start_error(&error));
            Problem::new("librdkafka", what, "correct the properties that it names")
        })?;
        let payload_bytes_max = config.payload_bytes_max();
        Ok(Self { config, payload_bytes_max, current: Mutex::new(Some(Arc::new(live))) })
    }

    /// The configuration that this publisher was made with.
    pub fn config(&self) -> &KafkaConfig {
        &self.config
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The producer in service, made anew if the last one is at its end.
    fn live(&self) -> Result<Arc<Live>, PublishError> {
        let mut current = self.current();
        if let Some(live) = &*current {
            match live.fatal() {
                None => return Ok(Arc::clone(live)),
                Some(reason) => tracing::warn!(reason, "the kafka producer cannot go on and is replaced"),
            }
        }
        let live = Live::start(&self.config).map(Arc::new).map_err(|error| {
            PublishError::unavailable("ClientCreation", start_error(&error)).stored(Stored::No)
        })?;
        *current = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Refuses what no broker has to be asked about. A size is not left to librdkafka, so that the limit is
    /// the same for every message, nor a name, of which it says one thing at first and another later.
    fn check_message(&self, message: &Message) -> Result<(), PublishError> {
        let error = |code, detail| Err(publish_error(refused(code), code, detail));
        if let Some(problem) = name_problem(&message.topic) {
            let for_good = (PublishErrorKind::Permanent, PublishErrorScope::Message, Stored::No);
            return Err(publish_error(for_good, Code::InvalidTopic, problem));
        }
        let bytes = message.event.payload_len();
        match self.payload_bytes_max {
            Some(bytes_max) if bytes > bytes_max => error(
                Code::MessageSizeTooLarge,
                format!(
                    "the payload has {bytes} bytes, more than the {bytes_max} for which message.max.bytes has room"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// Takes a producer out of service and drops whatever it has not sent.
    fn retire(&self, live: &Arc<Live>) {
        self.current().take_if(|current| Arc::ptr_eq(current, live));
        live.purge();
    }
}

impl fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisher").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for KafkaPublisher {
    fn capabilities(&self) -> PublisherCapabilities {
        let mut capabilities = PublisherCapabilities::default();
        capabilities.payload_bytes_max = self.payload_bytes_max;
        capabilities.delivery_timeout = Some(self.config.delivery_timeout());
        capabilities
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        let heard = self.current().as_ref().and_then(|live| live.context().heard());
        check::check(&self.config, topics, heard).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        // The last tenth, or 100 ms, is for hearing what became of the messages once the producer was purged.
        let margin = (timeout / 10).min(Duration::from_millis(100));
        let (deadline, end) = (Instant::now() + timeout - margin, Instant::now() + timeout);
        if timeout < self.config.delivery_timeout + margin {
            tracing::warn!(
                ?timeout,
                delivery_timeout = ?self.config.delivery_timeout,
                "the publish timeout should be longer than kafka's delivery timeout"
            );
        }
        let call = Arc::new(Call::new(reporter));
        let mut unsent: Vec<usize> = (0..messages.len()).collect();
        while !unsent.is_empty() {
            let live = match self.live() {
                Ok(live) => live,
                Err(error) => {
                    return unsent.iter().for_each(|index| call.reporter.report(*index, Err(error.clone())));
                }
            };
            let flight = Flight { publisher: self, live, call: &call };
            let in_time = tokio::time::timeout_at(deadline, async {
                flight.send(&messages, &mut unsent).await;
                call.landed().await;
            });
            if in_time.await.is_err() {
                call.given_up.store(true, Ordering::Release);
                for index in unsent.drain(..) {
                    let detail =
                        "the publish timeout has passed before librdkafka's queue had room".to_owned();
                    call.reporter
                        .report(index, Err(publish_error(refused(Code::QueueFull), Code::QueueFull, detail)));
                }
                drop(flight);
                let _ = tokio::time::timeout_at(end, call.landed()).await;
                return;
            }
            // What another call's end has purged is sent by the next producer.
            unsent = call.take_purged();
        }
    }

    async fn close(&self) {
        let live = self.current().take();
        // Ends librdkafka's threads, which takes up to half a second if a broker does not answer.
        if let Some(live) = live.and_then(Arc::into_inner) {
            let _ = tokio::task::spawn_blocking(move || live.end()).await;
        }
    }
}

/// What librdkafka says when it does not start. Of a property it says the value, which may be secret.
fn start_error(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, name, _) => format!("property {name}: {description}"),
        error => error.to_string(),
    }
}

/// A call's use of a producer. Dropped before everything has landed, it leaves nothing queued.
struct Flight<'a> {
    publisher: &'a KafkaPublisher,
    live: Arc<Live>,
    call: &'a Arc<Call>,
}

impl Flight<'_> {
    /// Queues the messages whose indexes are in `unsent`, and takes those out. Waits while the queue is full.
    async fn send(&self, messages: &[Arc<Message>], unsent: &mut Vec<usize>) {
        unsent.reverse();
        let mut scratch = String::with_capacity(128);
        while let Some(index) = unsent.last().copied() {
            let message = &*messages[index];
            if let Err(error) = self.publisher.check_message(message) {
                self.call.reporter.report(index, Err(error));
                unsent.pop();
                continue;
            }
            let key = record::key(message, self.publisher.config.key);
            let delivery = Box::new(Delivery { call: Arc::clone(self.call), index });
            let mut record: BaseRecord<'_, [u8], [u8], _> =
                BaseRecord::with_opaque_to(&message.topic, delivery)
                    .key(key.as_bytes())
                    .headers(record::headers(message, &mut scratch));
            // A record without a value is what a compacted topic takes for a deletion.
            record.payload = message.event.payload.as_deref();
            self.call.flying.fetch_add(1, Ordering::Relaxed);
            while let Err((error, back)) = self.live.send(record) {
                let code = error.rdkafka_error_code().unwrap_or(Code::InvalidArgument);
                if code == Code::QueueFull {
                    record = back;
                    let refund = Refund(self.call);
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                    refund.keep();
                    continue;
                }
                let detail =
                    format!("librdkafka refused the message to topic {:?}: {error}", &*message.topic);
                self.call.reporter.report(index, Err(publish_error(refused(code), code, detail)));
                self.call.land();
                break;
            }
            unsent.pop();
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.call.flying.load(Ordering::Acquire) > 0 {
            self.call.given_up.store(true, Ordering::Release);
            self.publisher.retire(&self.live);
        }
    }
}

/// Counts a message that is not queued as landed, if the wait for room is dropped.
struct Refund<'a>(&'a Call);

impl Refund<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Refund<'_> {
    fn drop(&mut self) {
        self.0.land();
    }
}
