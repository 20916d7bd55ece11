//! The harness of the publisher in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use outbox_conformance::{Oversized, PublisherHarness, StoredMessage};
use outbox_core::{
    Publisher, cloudevents,
    memory::MemoryPublisher,
    publisher::{Message, PublishError},
};

pub struct MemoryPublisherHarness {
    memory: MemoryPublisher,
    destinations: AtomicU32,
}

/// The destination that takes small messages only.
const SMALL: &str = "small";
const SMALL_BYTES_MAX: usize = 1000;

#[async_trait]
impl PublisherHarness for MemoryPublisherHarness {
    async fn fresh() -> Option<Self> {
        let memory = MemoryPublisher::new();
        let too_large =
            |message: &Message| &*message.topic == SMALL && message.event.payload_len() > SMALL_BYTES_MAX;
        memory.fail_next_where(too_large, PublishError::permanent("too-large", "refused"), u32::MAX);
        Some(Self { memory, destinations: AtomicU32::new(0) })
    }

    async fn cleanup(self) {}

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.memory.clone())
    }

    async fn destination(&self) -> String {
        format!("d{}", self.destinations.fetch_add(1, Ordering::Relaxed))
    }

    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        let delivered = self.memory.delivered();
        delivered
            .iter()
            .filter(|message| &*message.topic == destination)
            .map(|message| stored(message))
            .collect()
    }

    async fn oversized(&self) -> Option<Oversized> {
        Some(Oversized { destination: SMALL.to_owned(), payload_bytes: SMALL_BYTES_MAX + 1 })
    }
}

/// What a broker would have of a message.
pub fn stored(message: &Message) -> StoredMessage {
    let mut stored = StoredMessage {
        content_type: Some(cloudevents::content_type(message).to_owned()),
        headers: message.event.headers.clone(),
        key: Some(message.key.to_string()),
        payload: message.event.payload.clone().unwrap_or_default(),
        ..StoredMessage::default()
    };
    cloudevents::attributes(message, &mut String::new(), |name, value| {
        stored.attributes.insert(name.to_owned(), value.to_owned());
    });
    stored
}
