//! The contract that all publishers share, against real servers of RabbitMQ 3 and 4:
//! `scripts/services.sh up rabbitmq rabbitmq4`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

#[path = "broker/common.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::Rabbit;
use lapin::{
    message::Delivery,
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use outbox_conformance::{Outage, Proxy, PublisherHarness, StoredMessage};
use outbox_core::Publisher;
use outbox_rabbitmq::RabbitMqPublisher;
use uuid::Uuid;

struct RabbitMqHarness<const NEWER: bool> {
    rabbit: Rabbit,
    proxy: Proxy,
    publisher: Arc<RabbitMqPublisher>,
}

#[async_trait]
impl<const NEWER: bool> PublisherHarness for RabbitMqHarness<NEWER> {
    async fn fresh() -> Option<Self> {
        let url = match NEWER {
            true => common::variable("OUTBOX_TEST_AMQP4_URL", "rabbitmq4")?,
            false => common::url()?,
        };
        let (login, place) = url.rsplit_once('@').unwrap();
        let (server, vhost) = place.split_once('/').unwrap();
        let proxy = Proxy::start(server).await.unwrap();
        let publisher = common::publisher(common::config(&format!("{login}@{}/{vhost}", proxy.address())));
        Some(Self { rabbit: Rabbit::connect(&url).await, proxy, publisher })
    }

    async fn cleanup(self) {
        self.publisher.close().await;
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    /// The name of a queue, since everything goes to the default exchange.
    async fn destination(&self) -> String {
        self.rabbit.queue(&[]).await
    }

    /// Takes all messages and gives them back, to where they were.
    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        let channel = &self.rabbit.channel;
        let mut messages = Vec::new();
        let mut last = 0;
        while let Some(message) =
            channel.basic_get(destination.into(), BasicGetOptions::default()).await.unwrap()
        {
            last = message.delivery.delivery_tag;
            messages.push(stored(message.delivery));
        }
        if last > 0 {
            channel.basic_nack(last, BasicNackOptions { multiple: true, requeue: true }).await.unwrap();
        }
        // An answer from the queue means that it has them again.
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(destination.into(), passive, FieldTable::default()).await.unwrap();
        messages
    }

    fn outage(&self) -> Option<&dyn Outage> {
        Some(&self.proxy)
    }

    async fn unroutable(&self) -> Option<String> {
        Some(format!("test.nowhere.{}", Uuid::now_v7()))
    }

    fn broken_name(&self) -> Option<String> {
        Some("x".repeat(256))
    }

    fn broken_header(&self) -> Option<(String, String)> {
        Some(("CC".to_owned(), "to where the broker would be told to send a copy".to_owned()))
    }

    /// With the user, since the password alone is the name of this project.
    fn secrets(&self) -> Vec<String> {
        vec!["outbox:outbox".to_owned(), "password: \"outbox\"".to_owned()]
    }
}

fn stored(message: Delivery) -> StoredMessage {
    let headers = message.properties.headers().clone().unwrap_or_default();
    let headers = headers.inner().iter().map(|(name, value)| match value {
        AMQPValue::LongString(text) => (name.to_string(), text.to_string()),
        other => panic!("header {name} is not text: {other:?}"),
    });
    let mut stored = StoredMessage::binary_mode("cloudEvents:", headers.collect::<Vec<_>>(), message.data);
    stored.content_type = message.properties.content_type().as_ref().map(ToString::to_string);
    stored
}

mod rabbitmq {
    outbox_conformance::publisher_suite!(super::RabbitMqHarness<false>);
}

mod rabbitmq_4 {
    outbox_conformance::publisher_suite!(super::RabbitMqHarness<true>);
}
