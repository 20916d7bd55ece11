//! Apache Kafka: a topic keyed by order, and a consumer group for each service.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Publisher,
    kafka::{KafkaConfig, KafkaPublisher},
};
use rdkafka::{
    ClientConfig, Message as _,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{Consumer as _, StreamConsumer},
    message::Headers as _,
};

use super::message::{Message, Subscription};
use crate::error::Error;

/// How long Kafka may take to make a topic.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn create(brokers: &str, topic: &str) -> Result<(), Error> {
    // Events of one order have one key and so are in one partition: that keeps them in order.
    let new = NewTopic::new(topic, 3, TopicReplication::Fixed(1));
    for created in admin(brokers)?.create_topics([&new], &options()).await? {
        created.map_err(|(topic, code)| format!("cannot make topic {topic}: {code}"))?;
    }
    Ok(())
}

pub(super) async fn remove(brokers: &str, topic: &str) -> Result<(), Error> {
    for deleted in admin(brokers)?.delete_topics(&[topic], &options()).await? {
        deleted.map_err(|(topic, code)| format!("cannot delete topic {topic}: {code}"))?;
    }
    Ok(())
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>, Error> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}

pub(super) fn publisher(brokers: &str) -> Result<Arc<dyn Publisher>, Error> {
    // Below the relay's publish timeout, so that every message ends with a known outcome if that is possible.
    let config = KafkaConfig::builder(brokers).delivery_timeout(Duration::from_millis(1_500)).build()?;
    Ok(Arc::new(KafkaPublisher::new(config)?))
}

pub(super) struct Kafka {
    consumer: StreamConsumer,
    /// Topic, partition and offset of the last message.
    last: Option<(String, i32, i64)>,
}

impl Kafka {
    pub(super) fn subscribe(brokers: &str, topic: &str, service: &str) -> Result<Self, Error> {
        let group = format!("{topic}.{service}");
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", &group)
            // A process that is started again takes the place of the one that was killed, at once. Each of
            // several instances would have its own.
            .set("group.instance.id", format!("{group}-1"))
            .set("auto.offset.reset", "earliest")
            // Offsets are stored by `acknowledge`. What is stored, Kafka is told from time to time: telling
            // it after each message would be dear, and what it does not know when the process dies comes
            // again, and is seen.
            .set("enable.auto.offset.store", "false")
            .create()?;
        consumer.subscribe(&[topic])?;
        Ok(Self { consumer, last: None })
    }
}

#[async_trait]
impl Subscription for Kafka {
    async fn next(&mut self) -> Result<Message, Error> {
        let record = self.consumer.recv().await?;
        self.last = Some((record.topic().to_owned(), record.partition(), record.offset()));
        let headers = record.headers().into_iter().flat_map(|headers| headers.iter());
        let headers =
            headers.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()));
        Ok(Message { headers: headers.collect(), payload: record.payload().unwrap_or_default().to_vec() })
    }

    async fn acknowledge(&mut self) -> Result<(), Error> {
        if let Some((topic, partition, offset)) = self.last.take() {
            self.consumer.store_offset(&topic, partition, offset)?;
        }
        Ok(())
    }
}
