//! The publisher: [`RabbitMqPublisher`].
//!
//! A call of `publish` gives its messages to the channels of their exchanges, which report each confirm as it
//! comes, and waits. A call that ends early (dropped, out of time) ends the connection, because lapin cannot
//! take back a single message; the next call, and what is left of others, has a new one.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use outbox_core::{
    Finding, Publisher,
    publisher::{Message, PublishError, PublisherCapabilities, Reporter},
};
use tokio::time::Instant;

use crate::{
    RabbitMqConfig, check, declare,
    error::{Refusal, publish_error},
    line::{Call, Lines},
    producer::{Live, Producer},
    record::{self, Record},
    session::Session,
};

/// Sends messages to RabbitMQ: mandatory, persistent and confirmed, one outcome each as it is known.
///
/// See the [crate's documentation](crate) for what is sent and what is guaranteed. The connection is made in
/// the background at the first use, and made anew when it is lost.
pub struct RabbitMqPublisher {
    producer: Producer,
}

impl RabbitMqPublisher {
    /// A publisher with this configuration.
    pub fn new(config: RabbitMqConfig) -> Self {
        Self { producer: Producer::new(config) }
    }

    /// The configuration that this publisher was made with.
    pub fn config(&self) -> &RabbitMqConfig {
        self.producer.config()
    }
}

impl fmt::Debug for RabbitMqPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqPublisher").field("config", self.config()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for RabbitMqPublisher {
    fn capabilities(&self) -> PublisherCapabilities {
        let mut capabilities = PublisherCapabilities::default();
        capabilities.payload_bytes_max = Some(self.config().payload_bytes_max);
        capabilities
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        check::check(&self.producer, topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        // The last tenth, or 100 ms, is for ending the connection where something is left.
        let deadline = Instant::now() + timeout - (timeout / 10).min(Duration::from_millis(100));
        let call = Arc::new(Call::new(reporter, messages.len()));
        // What is wrong with a message by itself needs no broker to be known.
        let mut records: Vec<_> =
            (0..messages.len()).map(|index| self.record(&call, index, &messages[index])).collect();
        // What another call's end has taken along, or a channel that ended, is sent again.
        loop {
            let open = call.open();
            if open.is_empty() {
                return;
            }
            let (live, lines) = match self.usable(deadline).await {
                Ok(live) => live,
                Err(error) => return open.iter().for_each(|index| call.report(*index, Err(error.clone()))),
            };
            let session = &lines.session;
            let answers = Answers::before(session, deadline);
            let flight = Flight { producer: &self.producer, live, session, call: &call };
            let in_time = tokio::time::timeout_at(deadline, async {
                session.make_missing(self.config()).await;
                for index in open {
                    // The first time it is there already.
                    let record =
                        records[index].take().or_else(|| self.record(&call, index, &messages[index]));
                    if let Some(record) = record {
                        send(&lines, &call, index, record);
                    }
                }
                tokio::select! {
                    () = call.landed() => {}
                    never = answers.ask() => match never {},
                }
            });
            if in_time.await.is_err() {
                let refusal = if session.is_blocked() {
                    Refusal::ConnectionBlockedSince
                } else if answers.have_come() {
                    Refusal::TimedOut
                } else {
                    Refusal::NobodyAnswers
                };
                // First nothing more is sent, then it is reported.
                drop(flight);
                for index in call.open() {
                    let topic = &*messages[index].topic;
                    let detail =
                        format!("the message to {topic:?} was not confirmed within the publish timeout");
                    call.report(index, Err(publish_error(refusal, detail)));
                }
                return;
            }
        }
    }

    async fn close(&self) {
        self.producer.close().await;
    }
}

impl RabbitMqPublisher {
    /// A connection that takes messages.
    async fn usable(&self, deadline: Instant) -> Result<(Arc<Live>, Arc<Lines>), PublishError> {
        let (live, lines) = self.producer.live(deadline, false).await?;
        if lines.session.is_blocked() {
            let detail = "rabbitmq takes no messages: it is short of memory or disk".to_owned();
            return Err(publish_error(Refusal::ConnectionBlocked, detail));
        }
        Ok((live, lines))
    }

    /// The message as it is sent, or nothing after its outcome is reported.
    fn record(&self, call: &Call, index: usize, message: &Message) -> Option<Record> {
        match record::record(self.config(), message) {
            Ok(record) => Some(record),
            Err(error) => {
                call.report(index, Err(error));
                None
            }
        }
    }
}

fn send(lines: &Lines, call: &Arc<Call>, index: usize, record: Record) {
    let frame_bytes_max = lines.session.frame_bytes_max();
    if record.properties_bytes <= frame_bytes_max {
        return lines.send(call.job(index, record));
    }
    let detail = format!(
        "the headers have {} bytes with all that goes with them, more than fits a frame of {frame_bytes_max}",
        record.properties_bytes
    );
    call.report(index, Err(PublishError::permanent("HeadersTooLarge", detail)));
}

/// Whether the broker is well although a message is not confirmed: then it is the fault of that message's
/// queues.
struct Answers {
    session: Arc<Session>,
    /// Confirms before the call.
    confirmed: u64,
    /// When to ask, if nothing is left to be done before.
    halfway: Instant,
    asked: AtomicBool,
}

impl Answers {
    fn before(session: &Arc<Session>, deadline: Instant) -> Self {
        let now = Instant::now();
        Self {
            session: Arc::clone(session),
            confirmed: session.confirmed.load(Ordering::Relaxed),
            halfway: now + deadline.saturating_duration_since(now) / 2,
            asked: AtomicBool::new(false),
        }
    }

    /// Asks the broker halfway, since no other call may be sending something that would be confirmed. One
    /// that takes nothing would not answer either.
    async fn ask(&self) -> Infallible {
        tokio::time::sleep_until(self.halfway).await;
        if !self.session.is_blocked() {
            let answered = declare::answers(&self.session.connection).await.is_ok();
            self.asked.store(answered, Ordering::Relaxed);
        }
        std::future::pending().await
    }

    fn have_come(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.session.confirmed.load(Ordering::Relaxed) > self.confirmed
    }
}

/// A call's use of a connection. Dropped before everything has been answered, it leaves nothing to be sent.
struct Flight<'a> {
    producer: &'a Producer,
    live: Arc<Live>,
    session: &'a Session,
    call: &'a Arc<Call>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // A broker that is short of memory tells so on a connection once it has been sent something there,
        // which it stores when it is well again. So one that says so is kept, or each attempt would leave
        // another duplicate.
        let waits = self.session.is_blocked() && self.call.is_written();
        if self.call.is_flying() && !waits {
            self.producer.retire(&self.live);
        }
    }
}
