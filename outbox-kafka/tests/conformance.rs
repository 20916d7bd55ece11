//! The contract that all publishers share, against a real Apache Kafka: `scripts/services.sh up kafka`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

#[path = "common/server.rs"]
mod server;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use outbox_conformance::{Outage, Oversized, Proxy, PublisherHarness, StoredMessage};
use outbox_core::{Publisher, cloudevents::TOMBSTONE};
use outbox_kafka::{KafkaConfig, KafkaPublisher};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    message::OwnedMessage,
};
use server::TIMEOUT;
use uuid::Uuid;

const SECRET: &str = "hunter2";

struct KafkaHarness {
    brokers: String,
    proxy: Proxy,
    publisher: Arc<KafkaPublisher>,
    topics: Mutex<Vec<String>>,
}

impl KafkaHarness {
    async fn create(&self, name: String, settings: &[(&str, &str)]) -> String {
        server::create(&self.brokers, &name, 1, settings).await;
        self.topics.lock().unwrap().push(name.clone());
        name
    }
}

#[async_trait]
impl PublisherHarness for KafkaHarness {
    async fn fresh() -> Option<Self> {
        let brokers = server::brokers()?;
        let proxy = proxy(&brokers).await;
        let config = KafkaConfig::builder(proxy.address().to_string())
            .delivery_timeout(Duration::from_secs(3))
            .property("broker.address.family", "v4")
            .property("sasl.password", SECRET)
            .build()
            .unwrap();
        let publisher = Arc::new(KafkaPublisher::new(config).unwrap());
        Some(Self { brokers, proxy, publisher, topics: Mutex::default() })
    }

    async fn cleanup(self) {
        self.publisher.close().await;
        server::delete(&self.brokers, &self.topics.into_inner().unwrap()).await;
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn destination(&self) -> String {
        self.create(format!("test.{}", Uuid::now_v7()), &[]).await
    }

    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        server::read_all(&self.brokers, destination).await.iter().map(stored).collect()
    }

    fn outage(&self) -> Option<&dyn Outage> {
        Some(&self.proxy)
    }

    /// Brokers that create topics by themselves refuse a name that differs from another's in dots and
    /// underscores only.
    async fn unroutable(&self) -> Option<String> {
        let id = Uuid::now_v7();
        self.create(format!("test_{id}"), &[]).await;
        Some(format!("test.{id}"))
    }

    fn broken_name(&self) -> Option<String> {
        Some("no topic".to_owned())
    }

    async fn oversized(&self) -> Option<Oversized> {
        let destination =
            self.create(format!("test.{}", Uuid::now_v7()), &[("max.message.bytes", "5000")]).await;
        Some(Oversized { destination, payload_bytes: 6000 })
    }

    fn secrets(&self) -> Vec<String> {
        vec![SECRET.to_owned()]
    }
}

/// A proxy before the broker. The broker tells its clients where it is, so its port is replaced in what it
/// answers: the host as text, then the port as four bytes.
async fn proxy(brokers: &str) -> Proxy {
    let asked = brokers.to_owned();
    let advertised = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", asked).create().unwrap();
        let metadata = client.fetch_metadata(None, TIMEOUT).unwrap();
        let brokers = metadata.brokers().iter().map(|broker| (broker.host().to_owned(), broker.port()));
        brokers.collect::<Vec<_>>()
    });
    let advertised = advertised.await.unwrap();
    let [(host, port)] = &advertised[..] else {
        panic!("the outages of these tests need a cluster of one broker, not {advertised:?}");
    };
    let on_wire = |port: i32| [host.as_bytes(), &port.to_be_bytes()].concat();
    let proxy = Proxy::start(format!("{host}:{port}")).await.unwrap();
    proxy.rewrite_answers(on_wire(*port), on_wire(proxy.address().port().into()));
    proxy
}

fn stored(message: &OwnedMessage) -> StoredMessage {
    let payload = message.payload().unwrap_or_default().to_vec();
    let mut stored = StoredMessage::binary_mode("ce_", server::headers(message), payload);
    let marked = stored.attributes.contains_key(TOMBSTONE);
    assert_eq!(
        message.payload().is_none(),
        marked,
        "a record without a value is a tombstone, and no other is"
    );
    stored.key = message.key().map(|key| String::from_utf8(key.to_vec()).unwrap());
    stored
}

outbox_conformance::publisher_suite!(KafkaHarness);
