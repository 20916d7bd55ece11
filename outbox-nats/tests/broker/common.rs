//! What the tests share: messages, and a publish call whose reports are collected.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::{self, message::StreamMessage, stream::Config as StreamConfig};
use chrono::{DateTime, Utc};
use outbox_conformance::testing;
use outbox_core::{
    AggregateKey, Publisher,
    publisher::{Message, PublishError, Report, Reporter},
    store::StoredEvent,
};
use outbox_nats::{NatsConfig, NatsConfigBuilder, NatsPublisher};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Far above what anything here takes, and far below a patience that would hide a hang.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The value of a variable, or a line that says which server is missing.
pub(crate) fn variable(name: &str, server: &str) -> Option<String> {
    testing::address("NATS", server, name)
}

/// The server's address, or nothing where none is meant to be there.
pub(crate) fn url() -> Option<String> {
    variable("OUTBOX_TEST_NATS_URL", "nats")
}

pub(crate) fn publisher(config: NatsConfigBuilder) -> Arc<NatsPublisher> {
    Arc::new(NatsPublisher::new(config.build().unwrap()))
}

/// A connection beside the publisher's. The streams that it has made, and those that bear its names, are
/// deleted at its end.
pub(crate) struct Nats {
    url: String,
    pub(crate) jetstream: jetstream::Context,
    made: Mutex<Vec<String>>,
}

impl Nats {
    pub(crate) async fn connect(url: &str) -> Self {
        Self { url: url.to_owned(), jetstream: jetstream(url).await.unwrap(), made: Mutex::default() }
    }

    /// A name that no other test has, for a stream.
    pub(crate) fn name(&self) -> String {
        let name = Uuid::now_v7().simple().to_string();
        self.made.lock().unwrap().push(name.clone());
        name
    }

    /// A stream of this test alone: its subject.
    pub(crate) async fn stream(&self, change: impl FnOnce(&mut StreamConfig)) -> String {
        let name = self.name();
        let subject = format!("test.{name}");
        let mut config = StreamConfig { name, subjects: vec![subject.clone()], ..StreamConfig::default() };
        change(&mut config);
        self.jetstream.create_stream(config).await.unwrap();
        subject
    }

    /// Everything that the stream of a subject has stored, in order.
    pub(crate) async fn stored(&self, subject: &str) -> Vec<StreamMessage> {
        let name = self.jetstream.stream_by_subject(subject).await.unwrap();
        let stream = self.jetstream.get_stream(name).await.unwrap();
        let state = &stream.cached_info().state;
        let mut messages = Vec::new();
        // A stream that has never had a message begins at 0.
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            messages.push(stream.get_raw_message(sequence).await.unwrap());
        }
        messages
    }
}

impl Drop for Nats {
    /// By a connection of its own, since a test may have failed anywhere. A server that is gone has nothing
    /// to delete, and a name may not have been used.
    fn drop(&mut self) {
        let (url, made) = (std::mem::take(&mut self.url), std::mem::take(self.made.get_mut().unwrap()));
        let deleting = async move {
            let Ok(jetstream) = jetstream(&url).await else { return };
            for name in made {
                let _ = jetstream.delete_stream(name).await;
            }
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        std::thread::spawn(move || runtime.block_on(deleting)).join().unwrap();
    }
}

async fn jetstream(url: &str) -> Result<jetstream::Context, async_nats::ConnectError> {
    let url: async_nats::ServerAddr = url.parse().unwrap();
    let options = async_nats::ConnectOptions::new()
        .user_and_password(url.username().unwrap().to_owned(), url.password().unwrap().to_owned());
    Ok(jetstream::new(options.connect(url).await?))
}

pub(crate) fn message(topic: &str, aggregate_id: &str, payload: impl Into<bytes::Bytes>) -> Message {
    Message::new(
        Arc::from(topic),
        AggregateKey::new("order", aggregate_id),
        42,
        Arc::from("/test"),
        StoredEvent::new(
            Uuid::now_v7(),
            "order.placed".to_owned(),
            payload.into(),
            DateTime::<Utc>::UNIX_EPOCH,
        ),
    )
}

/// Publishes, and returns the first result of each message; `None` where there was no report.
pub(crate) async fn publish(
    publisher: &NatsPublisher,
    messages: Vec<Message>,
    timeout: Duration,
) -> Vec<Option<Result<(), PublishError>>> {
    let mut results = Vec::new();
    results.resize_with(messages.len(), || None);
    let (sender, mut reports) = mpsc::unbounded_channel();
    let messages = messages.into_iter().map(Arc::new).collect();
    publisher.publish(messages, timeout, Reporter::new(1, sender)).await;
    while let Ok(Report { index, result, .. }) = reports.try_recv() {
        let slot: &mut Option<_> = &mut results[index as usize];
        assert!(slot.is_none(), "message {index} was reported twice");
        *slot = Some(result);
    }
    results
}

/// The one result of a call with one message.
pub(crate) async fn publish_one(publisher: &NatsPublisher, message: Message) -> Result<(), PublishError> {
    publish(publisher, vec![message], TIMEOUT).await.remove(0).expect("a report")
}

/// What the tests compare of an error.
pub(crate) fn brief(
    result: Result<(), PublishError>,
) -> (
    String,
    outbox_core::publisher::PublishErrorKind,
    outbox_core::publisher::PublishErrorScope,
    outbox_core::publisher::Stored,
) {
    let error = result.unwrap_err();
    (error.code.to_string(), error.kind, error.scope, error.stored)
}

pub(crate) fn config(url: &str) -> NatsConfigBuilder {
    NatsConfig::builder(url)
}
