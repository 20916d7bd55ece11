//! PostgreSQL to RabbitMQ to PostgreSQL.

use std::sync::Arc;

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueDeleteOptions},
};
use outbox::rabbitmq::{RabbitMqConfig, RabbitMqPublisher, RabbitMqQueueKind};

use crate::{address, kills, shop::Shop, survival};

consumer_process!(rabbitmq);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_is_invoiced_once_though_the_consumer_is_killed_again_and_again() {
    let (Some(postgres), Some(url)) = (postgres(), url()) else { return };
    let shop = Shop::with_orders(&postgres, kills::ORDERS).await;
    shop.relay(publisher(&url, shop.topic())).await;
    kills::each_order_is_invoiced_once(&shop, "rabbitmq::consumer_process", &url).await;
    let (_connection, channel) = channel(&url).await;
    delete_queue(&channel, shop.topic()).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_the_whole_way() {
    let Some(url) = url() else { return };
    let queue = survival::topic();
    let messages = survival::publish(publisher(&url, &queue), &queue).await;
    let (_connection, channel) = channel(&url).await;
    let mut received = Vec::new();
    let get = || channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true });
    while let Some(message) = get().await.unwrap() {
        received.push((consumers::rabbitmq::read(&message).unwrap(), message.delivery.data));
    }
    survival::compare(&messages, received);
    delete_queue(&channel, &queue).await;
}

fn postgres() -> Option<String> {
    address("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL")
}

fn url() -> Option<String> {
    address("RabbitMQ", "rabbitmq", "OUTBOX_TEST_AMQP_URL")
}

/// With a queue that it declares.
fn publisher(url: &str, queue: &str) -> Arc<RabbitMqPublisher> {
    let config =
        RabbitMqConfig::builder(url).declare_queue(queue, RabbitMqQueueKind::Quorum).build().unwrap();
    Arc::new(RabbitMqPublisher::new(config))
}

/// A channel, and the connection with which it ends.
async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn delete_queue(channel: &Channel, name: &str) {
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
}
