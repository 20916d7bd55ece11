//! The contract that all publishers share.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod common;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use common::{Behaviour, Receiver, SECRET, SMALL_BYTES_MAX, Taken};
use outbox::Publisher;
use outbox_conformance::{Outage, Oversized, Proxy, PublisherHarness, StoredMessage};
use percent_encoding::percent_decode_str;
use uuid::Uuid;
use webhook::{WebhookConfig, WebhookPublisher};

struct WebhookHarness {
    receiver: Receiver,
    proxy: Proxy,
    publisher: Arc<WebhookPublisher>,
}

#[async_trait]
impl PublisherHarness for WebhookHarness {
    async fn fresh() -> Option<Self> {
        let receiver = Receiver::start().await;
        let proxy = Proxy::start(receiver.address.clone()).await.unwrap();
        let config = WebhookConfig::builder(format!("http://{}/in", proxy.address()))
            .secret(SECRET)
            .delivery_timeout(Duration::from_secs(3))
            .build()
            .unwrap();
        let publisher = Arc::new(WebhookPublisher::new(config).unwrap());
        Some(Self { receiver, proxy, publisher })
    }

    async fn cleanup(self) {}

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn destination(&self) -> String {
        let topic = format!("shop/{}", Uuid::now_v7());
        self.receiver.endpoint(&topic, Behaviour::Takes);
        topic
    }

    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        self.receiver.taken(destination).iter().map(stored).collect()
    }

    fn outage(&self) -> Option<&dyn Outage> {
        Some(&self.proxy)
    }

    async fn unroutable(&self) -> Option<String> {
        Some(format!("missing-{}", Uuid::now_v7()))
    }

    fn broken_name(&self) -> Option<String> {
        Some("shop/../orders".to_owned())
    }

    async fn oversized(&self) -> Option<Oversized> {
        let destination = format!("small-{}", Uuid::now_v7());
        self.receiver.endpoint(&destination, Behaviour::TakesSmall);
        Some(Oversized { destination, payload_bytes: SMALL_BYTES_MAX + 1 })
    }

    fn broken_header(&self) -> Option<(String, String)> {
        Some(("Content-Length".to_owned(), "5".to_owned()))
    }

    fn header_names_keep_their_case(&self) -> bool {
        false
    }

    fn secrets(&self) -> Vec<String> {
        vec![SECRET.to_owned(), SECRET.trim_start_matches("whsec_").to_owned()]
    }
}

fn stored(taken: &Taken) -> StoredMessage {
    let decoded = taken.headers.iter().map(|(name, value)| {
        let text = value.to_str().unwrap();
        // The content type is a header of HTTP itself, and not encoded.
        let text = match name.as_str() {
            "content-type" => text.to_owned(),
            _ => percent_decode_str(text).decode_utf8().unwrap().into_owned(),
        };
        (name.as_str().to_owned(), text)
    });
    StoredMessage::binary_mode("ce-", decoded, taken.payload.clone())
}

outbox_conformance::publisher_suite!(WebhookHarness);
