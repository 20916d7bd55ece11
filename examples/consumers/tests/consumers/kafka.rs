//! PostgreSQL to Kafka to PostgreSQL.

use std::{sync::Arc, time::Duration};

use outbox::kafka::{KafkaConfig, KafkaPublisher};
use rdkafka::{
    ClientConfig, Message as _,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{Consumer as _, StreamConsumer},
};

use crate::{PATIENCE, address, kills, shop::Shop, survival};

consumer_process!(kafka);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_is_invoiced_once_though_the_consumer_is_killed_again_and_again() {
    let (Some(postgres), Some(brokers)) = (postgres(), brokers()) else { return };
    let shop = Shop::with_orders(&postgres, kills::ORDERS).await;
    create_topic(&brokers, shop.topic()).await;
    shop.relay(publisher(&brokers)).await;
    kills::each_order_is_invoiced_once(&shop, "kafka::consumer_process", &brokers).await;
    delete_topic(&brokers, shop.topic()).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_the_whole_way() {
    let Some(brokers) = brokers() else { return };
    let topic = survival::topic();
    create_topic(&brokers, &topic).await;
    let messages = survival::publish(publisher(&brokers), &topic).await;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", &topic)
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[&topic]).unwrap();
    let mut received = Vec::new();
    while received.len() < messages.len() {
        let message = tokio::time::timeout(PATIENCE, consumer.recv()).await.unwrap().unwrap();
        let payload = message.payload().unwrap_or_default().to_vec();
        received.push((consumers::kafka::read(&message).unwrap(), payload));
    }
    survival::compare(&messages, received);
    delete_topic(&brokers, &topic).await;
}

fn postgres() -> Option<String> {
    address("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL")
}

fn brokers() -> Option<String> {
    address("Apache Kafka", "kafka", "OUTBOX_TEST_KAFKA_BROKERS")
}

fn publisher(brokers: &str) -> Arc<KafkaPublisher> {
    let config = KafkaConfig::builder(brokers).delivery_timeout(Duration::from_secs(4)).build().unwrap();
    Arc::new(KafkaPublisher::new(config).unwrap())
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

async fn create_topic(brokers: &str, name: &str) {
    let topic = NewTopic::new(name, 3, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for created in admin(brokers).create_topics([&topic], &options).await.unwrap() {
        created.unwrap();
    }
}

async fn delete_topic(brokers: &str, name: &str) {
    admin(brokers).delete_topics(&[name], &AdminOptions::new()).await.unwrap();
}
