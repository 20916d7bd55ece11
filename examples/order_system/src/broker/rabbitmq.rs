//! RabbitMQ: an exchange for the order service, and a queue behind it for each service.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use lapin::{
    Acker, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use outbox::{
    Publisher,
    rabbitmq::{RabbitMqConfig, RabbitMqPublisher},
};

use super::message::{Message, Subscription};
use crate::error::Error;

/// How many messages a service has at a time. After a kill, those that were not acknowledged return to where
/// they were in the queue, so more than one do not break the order.
const PREFETCH: u16 = 16;

pub(super) async fn create(url: &str, topic: &str, services: &[&str]) -> Result<(), Error> {
    let (connection, channel) = channel(url).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(topic.into(), ExchangeKind::Fanout, durable, FieldTable::default()).await?;
    for service in services {
        let queue = queue(topic, service);
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        // Of several instances of a service one reads at a time, which keeps the order; the others stand by.
        let mut arguments = FieldTable::default();
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        channel.queue_declare(queue.as_str().into(), durable, arguments).await?;
        let options = QueueBindOptions::default();
        let (queue, exchange) = (queue.as_str().into(), topic.into());
        channel.queue_bind(queue, exchange, "".into(), options, FieldTable::default()).await?;
    }
    Ok(connection.close(200, "done".into()).await?)
}

pub(super) async fn remove(url: &str, topic: &str, services: &[&str]) -> Result<(), Error> {
    let (connection, channel) = channel(url).await?;
    for service in services {
        channel.queue_delete(queue(topic, service).as_str().into(), QueueDeleteOptions::default()).await?;
    }
    channel.exchange_delete(topic.into(), ExchangeDeleteOptions::default()).await?;
    Ok(connection.close(200, "done".into()).await?)
}

fn queue(topic: &str, service: &str) -> String {
    format!("{topic}.{service}")
}

/// A channel, which ends with its connection.
async fn channel(url: &str) -> Result<(Connection, Channel), Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

pub(super) fn publisher(url: &str, topic: &str) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(RabbitMqPublisher::new(RabbitMqConfig::builder(url).exchange(topic).build()?)))
}

pub(super) struct RabbitMq {
    consumer: Consumer,
    last: Option<Acker>,
    _connection: Connection,
}

impl RabbitMq {
    pub(super) async fn subscribe(url: &str, topic: &str, service: &str) -> Result<Self, Error> {
        let (connection, channel) = channel(url).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let queue = queue(topic, service);
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(queue.as_str().into(), service.into(), options, arguments).await?;
        Ok(Self { consumer, last: None, _connection: connection })
    }
}

#[async_trait]
impl Subscription for RabbitMq {
    async fn next(&mut self) -> Result<Message, Error> {
        let delivery = self.consumer.next().await.ok_or("RabbitMQ has ended the subscription")??;
        self.last = Some(delivery.acker);
        let headers = delivery.properties.headers().iter().flat_map(|headers| headers.inner());
        let headers = headers.filter_map(|(name, value)| match value {
            AMQPValue::LongString(text) => Some((name.to_string(), text.as_bytes().to_vec())),
            _ => None,
        });
        Ok(Message { headers: headers.collect(), payload: delivery.data.to_vec() })
    }

    async fn acknowledge(&mut self) -> Result<(), Error> {
        if let Some(acker) = self.last.take() {
            acker.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }
}
