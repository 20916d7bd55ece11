//! PostgreSQL to NATS JetStream to PostgreSQL.

use std::sync::Arc;

use async_nats::jetstream::consumer::pull;
use futures::StreamExt as _;
use outbox::nats::{NatsConfig, NatsPublisher, NatsStream};

use crate::{PATIENCE, address, kills, shop::Shop, survival};

consumer_process!(nats);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_is_invoiced_once_though_the_consumer_is_killed_again_and_again() {
    let (Some(postgres), Some(url)) = (postgres(), url()) else { return };
    let shop = Shop::with_orders(&postgres, kills::ORDERS).await;
    shop.relay(publisher(&url, shop.topic())).await;
    kills::each_order_is_invoiced_once(&shop, "nats::consumer_process", &url).await;
    consumers::nats::connect(&url).await.unwrap().delete_stream(shop.topic()).await.unwrap();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_the_whole_way() {
    let Some(url) = url() else { return };
    let subject = survival::topic();
    let messages = survival::publish(publisher(&url, &subject), &subject).await;
    let jetstream = consumers::nats::connect(&url).await.unwrap();
    let stream = jetstream.get_stream(&subject).await.unwrap();
    let consumer = stream.create_consumer(pull::Config::default()).await.unwrap();
    let mut arriving = consumer.messages().await.unwrap();
    let mut received = Vec::new();
    while received.len() < messages.len() {
        let message = tokio::time::timeout(PATIENCE, arriving.next()).await.unwrap().unwrap().unwrap();
        message.ack().await.unwrap();
        let event = consumers::nats::read(message.headers.as_ref()).unwrap();
        received.push((event, message.payload.to_vec()));
    }
    survival::compare(&messages, received);
    jetstream.delete_stream(&subject).await.unwrap();
}

fn postgres() -> Option<String> {
    address("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL")
}

fn url() -> Option<String> {
    address("NATS", "nats", "OUTBOX_TEST_NATS_URL")
}

/// With a stream that it creates, named like its subject.
fn publisher(url: &str, subject: &str) -> Arc<NatsPublisher> {
    let config = NatsConfig::builder(url).stream(NatsStream::new(subject, [subject])).build().unwrap();
    Arc::new(NatsPublisher::new(config))
}
