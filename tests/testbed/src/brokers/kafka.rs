//! Apache Kafka: a topic for each scenario, made, and read from the beginning to the end.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Publisher,
    kafka::{KafkaConfig, KafkaPublisher},
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};

use super::broker::{Broker, BrokerAt};
use crate::{PATIENCE, checker::Delivery, servers};

const PARTITIONS: i32 = 3;

pub struct Kafka {
    brokers: String,
}

impl Kafka {
    pub fn find() -> Option<Self> {
        Some(Self { brokers: servers::address("kafka", "OUTBOX_TEST_KAFKA_BROKERS")? })
    }
}

#[async_trait]
impl Broker for Kafka {
    fn broker_at(&self) -> BrokerAt {
        BrokerAt::Kafka { brokers: self.brokers.clone() }
    }

    fn server(&self) -> (&'static str, String) {
        ("kafka", self.brokers.clone())
    }

    async fn create(&self, topic: &str) {
        create(&self.brokers, topic, &[]).await;
    }

    async fn read(&self, topic: &str) -> Vec<Delivery> {
        let (brokers, topic) = (self.brokers.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || read(&brokers, &topic)).await.unwrap()
    }

    async fn remove(&self, topic: &str) {
        admin(&self.brokers).delete_topics(&[topic], &options()).await.unwrap();
    }
}

pub(super) fn open(brokers: &str, delivery_timeout: Duration) -> Arc<dyn Publisher> {
    let config = KafkaConfig::builder(brokers)
        .delivery_timeout(delivery_timeout)
        // The broker would make a topic that is missing; a production broker does not.
        .property("allow.auto.create.topics", "false")
        .build()
        .unwrap();
    Arc::new(KafkaPublisher::new(config).unwrap())
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// Makes a topic.
pub async fn create(brokers: &str, name: &str, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let created = admin(brokers).create_topics([&topic], &options()).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

/// Everything that is on the topic, in the order of its partitions.
fn read(brokers: &str, topic: &str) -> Vec<Delivery> {
    // No group: where to read is assigned, not negotiated. librdkafka wants a name for one all the same.
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", topic).create().unwrap();
    let mut from = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap();
        from.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
        left += high - low;
    }
    consumer.assign(&from).unwrap();
    // Without transactions and compaction, offsets have no gaps, and so they count records.
    let mut deliveries = Vec::new();
    for _ in 0..left {
        let record = consumer.poll(PATIENCE).expect("a record before the end of the topic").unwrap();
        let headers = record.headers().unwrap().iter();
        let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
        let delivery = Delivery::from_headers(headers);
        assert_eq!(record.key(), Some(delivery.aggregate.as_bytes()), "the key is the aggregate");
        deliveries.push(delivery);
    }
    deliveries
}
