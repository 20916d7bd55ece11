//! The contract that all publishers share, against real NATS servers with JetStream, an older and a newer
//! one: `scripts/services.sh up nats nats2`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

#[path = "broker/common.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::sync::Arc;

use async_nats::jetstream::message::StreamMessage;
use async_trait::async_trait;
use common::Nats;
use outbox_conformance::{Outage, Oversized, Proxy, PublisherHarness, StoredMessage};
use outbox_core::Publisher;
use outbox_nats::NatsPublisher;
use uuid::Uuid;

struct NatsHarness<const NEWER: bool> {
    nats: Nats,
    proxy: Proxy,
    publisher: Arc<NatsPublisher>,
}

#[async_trait]
impl<const NEWER: bool> PublisherHarness for NatsHarness<NEWER> {
    async fn fresh() -> Option<Self> {
        let url = match NEWER {
            true => common::variable("OUTBOX_TEST_NATS2_URL", "nats2")?,
            false => common::url()?,
        };
        let (login, server) = url.rsplit_once('@').unwrap();
        let proxy = Proxy::start(server).await.unwrap();
        let publisher = common::publisher(common::config(&format!("{login}@{}", proxy.address())));
        // The server says what it takes when it is connected to.
        assert!(publisher.check(&[]).await.is_empty());
        Some(Self { nats: Nats::connect(&url).await, proxy, publisher })
    }

    async fn cleanup(self) {
        self.publisher.close().await;
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn destination(&self) -> String {
        self.nats.stream(|_| {}).await
    }

    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        self.nats.stored(destination).await.iter().map(stored).collect()
    }

    fn outage(&self) -> Option<&dyn Outage> {
        Some(&self.proxy)
    }

    async fn unroutable(&self) -> Option<String> {
        Some(format!("test.nowhere.{}", Uuid::now_v7()))
    }

    fn broken_name(&self) -> Option<String> {
        Some("no subject".to_owned())
    }

    async fn oversized(&self) -> Option<Oversized> {
        let destination = self.nats.stream(|stream| stream.max_message_size = 2_000).await;
        Some(Oversized { destination, payload_bytes: 3_000 })
    }

    fn broken_header(&self) -> Option<(String, String)> {
        Some(("padded".to_owned(), " white space that readers drop ".to_owned()))
    }

    /// With the user, since the password alone is the name of this project.
    fn secrets(&self) -> Vec<String> {
        vec!["outbox:outbox".to_owned(), "password: \"outbox\"".to_owned()]
    }
}

fn stored(message: &StreamMessage) -> StoredMessage {
    let headers = message.headers.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| (name.to_string(), value.as_str().to_owned()))
    });
    let mut stored = StoredMessage::binary_mode("ce-", headers, message.payload.clone());
    for value in stored.attributes.values_mut() {
        *value = percent_decoded(value);
    }
    stored.content_type = stored.attributes.remove("datacontenttype");
    stored.headers.remove("Nats-Msg-Id");
    stored
}

fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

mod nats {
    outbox_conformance::publisher_suite!(super::NatsHarness<false>);
}

mod nats_newest {
    outbox_conformance::publisher_suite!(super::NatsHarness<true>);
}
