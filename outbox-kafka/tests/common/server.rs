//! A real Apache Kafka: where it is, topics of one test alone, and what is in them.
#![allow(dead_code, reason = "a module that several test programs share")]

use std::time::Duration;

use outbox_conformance::testing;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers as _, Message as _, OwnedMessage},
};
use uuid::Uuid;

/// How long the broker may take to answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

const BROKERS_VARIABLE: &str = "OUTBOX_TEST_KAFKA_BROKERS";

/// The broker's address, or nothing where none is meant to be there.
pub(crate) fn brokers() -> Option<String> {
    testing::address("Apache Kafka", "kafka", BROKERS_VARIABLE)
}

/// A topic of this test alone.
pub(crate) async fn topic(brokers: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
    let name = format!("test.{}", Uuid::now_v7());
    create(brokers, &name, partitions, settings).await;
    name
}

pub(crate) async fn create(brokers: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let created = admin(brokers).create_topics([&topic], &options).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

pub(crate) async fn delete(brokers: &str, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let deleted = admin(brokers).delete_topics(&names, &AdminOptions::new()).await.unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

/// The first `count` messages of a topic, in the order of their offsets within a partition.
pub(crate) async fn read(brokers: &str, topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let reading = move || {
        let consumer = consumer(&brokers, &topic, partitions);
        (0..count).map(|_| consumer.poll(TIMEOUT).expect("a message").unwrap().detach()).collect()
    };
    tokio::task::spawn_blocking(reading).await.unwrap()
}

/// All messages that are in a topic of one partition now.
pub(crate) async fn read_all(brokers: &str, topic: &str) -> Vec<OwnedMessage> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let reading = move || {
        let consumer = consumer(&brokers, &topic, 1);
        let (low, high) = consumer.fetch_watermarks(&topic, 0, TIMEOUT).unwrap();
        (low..high).map(|_| consumer.poll(TIMEOUT).expect("a message").unwrap().detach()).collect()
    };
    tokio::task::spawn_blocking(reading).await.unwrap()
}

fn consumer(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("receive.message.max.bytes", "100000000")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&from).unwrap();
    consumer
}

pub(crate) fn headers(message: &OwnedMessage) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = message.headers().unwrap();
    headers.iter().map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect()
}
