//! The publisher: [`NatsPublisher`].
//!
//! A call of `publish` gives its messages to the client, and reports each acknowledgement as it comes. A call
//! that ends early (dropped, out of time) ends the connection, because the client cannot take back a single
//! message; the next call, and what is left of others, has a new one.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{
    self, Context,
    context::{PublishError as AckError, PublishErrorKind},
};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::FuturesUnordered};
use outbox_core::{
    Finding, Publisher,
    publisher::{Message, PublishError, PublisherCapabilities, Reporter},
};
use tokio::time::Instant;

use crate::{
    NatsConfig, check,
    error::{Refusal, publish_error},
    producer::{Live, Producer, ensure_stream},
    record,
};

/// Sends messages to NATS JetStream: each acknowledged by its stream, one outcome each as it is known.
///
/// See the [crate's documentation](crate) for what is sent and what is guaranteed. The connection is made in
/// the background at the first use, and made anew when it is lost.
pub struct NatsPublisher {
    producer: Producer,
    /// The stream to create was missing when last seen.
    stream_missing: AtomicBool,
}

impl NatsPublisher {
    /// A publisher with this configuration.
    pub fn new(config: NatsConfig) -> Self {
        Self { producer: Producer::new(config), stream_missing: AtomicBool::new(false) }
    }

    /// The configuration that this publisher was made with.
    pub fn config(&self) -> &NatsConfig {
        self.producer.config()
    }

    /// What is known of a message without the server.
    fn check_message(&self, message: &Message) -> Result<(), PublishError> {
        if let Some(problem) = record::subject_problem(&message.topic) {
            return Err(PublishError::permanent("InvalidSubject", problem));
        }
        let bytes = message.event.payload_len();
        if let Some(bytes_max) = self.producer.payload_bytes_max().filter(|max| bytes > *max) {
            let refusal = Refusal::Publish(PublishErrorKind::MaxPayloadExceeded);
            let detail = format!(
                "the payload has {bytes} bytes, more than the server takes with headers: {bytes_max}"
            );
            return Err(publish_error(refusal, detail));
        }
        Ok(())
    }

    /// Creates the configured stream again, if messages have found it missing.
    async fn stream(&self, context: &Context) {
        if let Some(stream) = &self.config().stream
            && self.stream_missing.swap(false, Ordering::Relaxed)
        {
            ensure_stream(context, stream).await;
        }
    }
}

impl fmt::Debug for NatsPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsPublisher").field("config", self.config()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for NatsPublisher {
    fn capabilities(&self) -> PublisherCapabilities {
        let mut capabilities = PublisherCapabilities::default();
        capabilities.payload_bytes_max = self.producer.payload_bytes_max();
        capabilities
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        check::check(&self.producer, topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        // The last tenth, or 100 ms, is for ending the connection where something is left.
        let deadline = Instant::now() + timeout - (timeout / 10).min(Duration::from_millis(100));
        let mut unsent = BTreeSet::new();
        for (index, message) in messages.iter().enumerate() {
            match self.check_message(message) {
                Ok(()) => _ = unsent.insert(index),
                Err(error) => reporter.report(index, Err(error)),
            }
        }
        while !unsent.is_empty() {
            let (live, context) = match self.producer.live(deadline, false).await {
                Ok(live) => live,
                Err(error) => {
                    return unsent.iter().for_each(|index| reporter.report(*index, Err(error.clone())));
                }
            };
            let answers = Answers::before(&live, deadline);
            let mut flight = Flight { publisher: self, live, flying: unsent, lost: BTreeSet::new() };
            let in_time = tokio::time::timeout_at(deadline, async {
                self.stream(&context).await;
                tokio::select! {
                    () = flight.send(&context, &messages, &reporter) => {}
                    never = answers.ask(&context) => match never {},
                }
            });
            if in_time.await.is_err() {
                let answered = answers.have_come();
                let left = std::mem::take(&mut flight.lost);
                // First nothing more is sent, then it is reported.
                for index in flight.end().into_iter().chain(left) {
                    reporter.report(index, Err(timed_out(&messages[index].topic, answered, &flight.live)));
                }
                return;
            }
            // What another call's end has taken along is sent on the next connection.
            unsent = std::mem::take(&mut flight.lost);
        }
    }

    async fn close(&self) {
        self.producer.close().await;
    }
}

/// Whether the server is well although a message is not acknowledged: then it is the fault of that message's
/// stream.
struct Answers {
    live: Arc<Live>,
    /// Acknowledgements before the call.
    acknowledged: u64,
    /// When to ask, if nothing is left to be done before.
    halfway: Instant,
    asked: AtomicBool,
}

impl Answers {
    fn before(live: &Arc<Live>, deadline: Instant) -> Self {
        let now = Instant::now();
        Self {
            live: Arc::clone(live),
            acknowledged: live.acknowledged.load(Ordering::Relaxed),
            halfway: now + deadline.saturating_duration_since(now) / 2,
            asked: AtomicBool::new(false),
        }
    }

    /// Asks the server halfway, since no other call may be sending something that would be acknowledged.
    async fn ask(&self, context: &Context) -> Infallible {
        tokio::time::sleep_until(self.halfway).await;
        let answered = self.live.answers(context).await;
        self.asked.store(answered, Ordering::Relaxed);
        std::future::pending().await
    }

    fn have_come(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
            || self.live.acknowledged.load(Ordering::Relaxed) > self.acknowledged
    }
}

/// A call's use of a connection. Dropped before everything has been answered, it leaves nothing to be sent.
struct Flight<'a> {
    publisher: &'a NatsPublisher,
    live: Arc<Live>,
    /// Messages without an outcome.
    flying: BTreeSet<usize>,
    /// Messages of which another call's end has taken the connection away.
    lost: BTreeSet<usize>,
}

impl Flight<'_> {
    /// Sends what is flying, and reports each outcome.
    async fn send(&mut self, context: &Context, messages: &[Arc<Message>], reporter: &Reporter) {
        let mut denials = self.live.denials();
        let mut answers: FuturesUnordered<_> =
            self.flying.iter().map(|index| answer(context, *index, &messages[*index])).collect();
        while !self.flying.is_empty() {
            tokio::select! {
                Some((index, answer)) = answers.next() => {
                    if self.flying.remove(&index) {
                        self.answered(index, answer, messages, reporter);
                    }
                }
                Ok(subject) = denials.recv() => self.denied(&subject, messages, reporter),
                else => return,
            }
        }
    }

    fn answered(
        &mut self,
        index: usize,
        answer: Result<(), Answer>,
        messages: &[Arc<Message>],
        reporter: &Reporter,
    ) {
        match answer {
            Ok(()) => {
                self.live.acknowledged.fetch_add(1, Ordering::Relaxed);
                reporter.report(index, Ok(()));
            }
            Err(Answer::Refused(error)) => {
                if error.code == "StreamNotFound" {
                    self.publisher.stream_missing.store(true, Ordering::Relaxed);
                }
                reporter.report(index, Err(error));
            }
            Err(Answer::Lost(_)) if self.live.is_retired() => {
                self.lost.insert(index);
            }
            Err(Answer::Lost(refusal)) => {
                let topic = &*messages[index].topic;
                let detail = format!(
                    "the nats connection was lost before the message to {topic:?} was acknowledged{}",
                    heard(&self.live)
                );
                reporter.report(index, Err(publish_error(refusal, detail)));
            }
        }
    }

    /// Reports what is flying to a subject that this user may not send to: the server drops it and answers
    /// nothing.
    fn denied(&mut self, subject: &str, messages: &[Arc<Message>], reporter: &Reporter) {
        let there = |index: &usize| &*messages[*index].topic == subject;
        for index in self.flying.extract_if(.., there) {
            let detail = format!("the nats user may not send to {subject:?}");
            reporter.report(index, Err(publish_error(Refusal::PermissionsViolation, detail)));
        }
    }

    /// Ends the connection. What was flying has no outcome.
    fn end(&mut self) -> BTreeSet<usize> {
        if !self.flying.is_empty() {
            self.publisher.producer.retire(&self.live);
        }
        std::mem::take(&mut self.flying)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why a message was not acknowledged.
enum Answer {
    Refused(PublishError),
    /// The connection has ended.
    Lost(Refusal),
}

async fn answer(context: &Context, index: usize, message: &Message) -> (usize, Result<(), Answer>) {
    (index, acknowledged(context, message).await)
}

async fn acknowledged(context: &Context, message: &Message) -> Result<(), Answer> {
    let publish = record::message(message).map_err(Answer::Refused)?;
    let answer = match context.send_publish(message.topic.to_string(), publish).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
            return Err(Answer::Refused(refused(&message.topic, &error)));
        }
        // All else is that the client is gone.
        Err(_) => return Err(Answer::Lost(Refusal::ConnectionLostBefore)),
    };
    match answer.await {
        // A duplicate is this very message: the stream has had it from an attempt whose answer was lost.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == PublishErrorKind::BrokenPipe => {
            Err(Answer::Lost(Refusal::ConnectionLost))
        }
        Err(error) => Err(Answer::Refused(refused(&message.topic, &error))),
    }
}

fn refused(topic: &str, error: &AckError) -> PublishError {
    use std::error::Error as _;
    let refusal = match error.kind() {
        PublishErrorKind::Other => {
            match error.source().map(|source| source.downcast_ref::<jetstream::Error>()) {
                Some(Some(answer)) => Refusal::JetStream(answer.error_code()),
                _ => Refusal::NoStreamAnswered,
            }
        }
        kind => Refusal::Publish(kind),
    };
    publish_error(refusal, format!("the message to {topic:?} was refused: {error}"))
}

fn timed_out(topic: &str, answered: bool, live: &Live) -> PublishError {
    let refusal = if answered { Refusal::TimedOut } else { Refusal::NobodyAnswers };
    let detail =
        format!("the message to {topic:?} was not acknowledged within the publish timeout{}", heard(live));
    publish_error(refusal, detail)
}

fn heard(live: &Live) -> String {
    live.heard().map(|heard| format!("; last heard: {heard}")).unwrap_or_default()
}
