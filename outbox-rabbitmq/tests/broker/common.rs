//! What the tests share: messages, a publish call whose reports are collected, and queues to read from.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::Delivery,
    options::{
        BasicGetOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use outbox_conformance::testing;
use outbox_core::{
    AggregateKey, Publisher,
    publisher::{Message, PublishError, Report, Reporter},
    store::StoredEvent,
};
use outbox_rabbitmq::{RabbitMqConfig, RabbitMqConfigBuilder, RabbitMqPublisher};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Far above what anything here takes, and far below a patience that would hide a hang.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The value of a variable, or a line that says which server is missing.
pub(crate) fn variable(name: &str, server: &str) -> Option<String> {
    testing::address("RabbitMQ", server, name)
}

/// The server's address, or nothing where none is meant to be there.
pub(crate) fn url() -> Option<String> {
    variable("OUTBOX_TEST_AMQP_URL", "rabbitmq")
}

pub(crate) fn config(url: &str) -> RabbitMqConfigBuilder {
    RabbitMqConfig::builder(url)
}

pub(crate) fn publisher(config: RabbitMqConfigBuilder) -> Arc<RabbitMqPublisher> {
    Arc::new(RabbitMqPublisher::new(config.build().unwrap()))
}

/// A connection beside the publisher's. What it has made, and what bears its names, is deleted
/// at its end.
pub(crate) struct Rabbit {
    url: String,
    // A channel ends with its connection.
    _connection: Connection,
    pub(crate) channel: Channel,
    made: Mutex<Vec<String>>,
}

impl Rabbit {
    pub(crate) async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { url: url.to_owned(), _connection: connection, channel, made: Mutex::default() }
    }

    /// A name that no other test has. What bears it, a queue or an exchange, is deleted at the end.
    pub(crate) fn name(&self) -> String {
        let name = format!("test.{}", Uuid::now_v7());
        self.made.lock().unwrap().push(name.clone());
        name
    }

    /// A queue of this test alone, durable.
    pub(crate) async fn queue(&self, arguments: &[(&str, AMQPValue)]) -> String {
        self.declare(arguments, QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }).await
    }

    /// A queue of this test alone, in memory, which confirms at once.
    pub(crate) async fn transient_queue(&self) -> String {
        self.declare(&[], QueueDeclareOptions::default()).await
    }

    async fn declare(&self, arguments: &[(&str, AMQPValue)], options: QueueDeclareOptions) -> String {
        let name = self.name();
        let mut table = FieldTable::default();
        for (key, value) in arguments {
            table.insert((*key).into(), value.clone());
        }
        self.channel.queue_declare(name.as_str().into(), options, table).await.unwrap();
        name
    }

    /// Takes everything that is in a queue, in its order.
    pub(crate) async fn take(&self, queue: &str) -> Vec<Delivery> {
        let mut messages = Vec::new();
        let get = || self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
        while let Some(message) = get().await.unwrap() {
            messages.push(message.delivery);
        }
        messages
    }
}

impl Drop for Rabbit {
    /// By a connection of its own, since a test may have failed anywhere. A server that is gone has nothing
    /// to delete.
    fn drop(&mut self) {
        let (url, made) = (std::mem::take(&mut self.url), std::mem::take(self.made.get_mut().unwrap()));
        let deleting = async move {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            for name in made {
                channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
                channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await?;
            }
            connection.close(200, "".into()).await
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let deleted = std::thread::spawn(move || runtime.block_on(deleting)).join().unwrap();
        if let Err(error) = deleted {
            eprintln!("what the test made is not deleted: {error}");
        }
    }
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
    publisher: &RabbitMqPublisher,
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
pub(crate) async fn publish_one(publisher: &RabbitMqPublisher, message: Message) -> Result<(), PublishError> {
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
