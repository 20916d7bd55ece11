//! RabbitMQ: a durable queue for each scenario, behind the default exchange.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use outbox::{
    Publisher,
    rabbitmq::{RabbitMqConfig, RabbitMqPublisher},
};

use super::broker::{Broker, BrokerAt};
use crate::{checker::Delivery, servers};

pub(crate) struct RabbitMq {
    url: String,
}

impl RabbitMq {
    pub(crate) fn find() -> Option<Self> {
        Some(Self { url: servers::address("rabbitmq", "OUTBOX_TEST_AMQP_URL")? })
    }

    /// A channel, which ends with its connection.
    async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

#[async_trait]
impl Broker for RabbitMq {
    fn broker_at(&self) -> BrokerAt {
        BrokerAt::RabbitMq { url: self.url.clone() }
    }

    fn server(&self) -> (&'static str, String) {
        ("rabbitmq", self.url.clone())
    }

    async fn create(&self, topic: &str) {
        let (_connection, channel) = self.channel().await;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(topic.into(), options, FieldTable::default()).await.unwrap();
    }

    /// Takes the messages out of the queue: it is read once.
    async fn read(&self, topic: &str) -> Vec<Delivery> {
        let (_connection, channel) = self.channel().await;
        let mut deliveries = Vec::new();
        let get = || channel.basic_get(topic.into(), BasicGetOptions { no_ack: true });
        while let Some(message) = get().await.unwrap() {
            let headers = message.delivery.properties.headers().clone().unwrap();
            deliveries.push(Delivery::from_headers(headers.inner().iter().map(|(name, value)| {
                let AMQPValue::LongString(value) = value else { panic!("{name} is not text: {value:?}") };
                (name.to_string(), value.as_bytes().to_vec())
            })));
        }
        deliveries
    }

    async fn remove(&self, topic: &str) {
        let (_connection, channel) = self.channel().await;
        channel.queue_delete(topic.into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

pub(super) fn open(url: &str) -> Arc<dyn Publisher> {
    Arc::new(RabbitMqPublisher::new(RabbitMqConfig::builder(url).build().unwrap()))
}
