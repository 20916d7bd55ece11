//! The harness of a broken publisher.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use outbox_conformance::{Outage, Oversized, PublisherHarness, StoredMessage};
use outbox_core::Publisher;

use crate::{
    broker::{Broker, SMALL, SMALL_BYTES_MAX},
    faults::Fault,
    publisher::{BROKEN_HEADER, BROKEN_NAME, Broken, SECRET},
};

pub(crate) struct BrokenHarness {
    broker: Broker,
    publisher: Arc<Broken>,
    names: AtomicU32,
}

impl BrokenHarness {
    pub(crate) fn new(fault: Fault) -> Self {
        let broker = Broker::new();
        let publisher = Arc::new(Broken::new(broker.clone(), fault));
        Self { broker, publisher, names: AtomicU32::new(0) }
    }

    fn number(&self) -> u32 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }
}

#[async_trait]
impl PublisherHarness for BrokenHarness {
    async fn fresh() -> Option<Self> {
        Some(Self::new(Fault::None))
    }

    async fn cleanup(self) {}

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn destination(&self) -> String {
        let name = format!("d{}", self.number());
        self.broker.create(&name);
        name
    }

    async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        self.broker.stored(destination)
    }

    fn outage(&self) -> Option<&dyn Outage> {
        Some(&self.broker)
    }

    async fn unroutable(&self) -> Option<String> {
        Some(format!("missing-{}", self.number()))
    }

    fn broken_name(&self) -> Option<String> {
        Some(BROKEN_NAME.to_owned())
    }

    async fn oversized(&self) -> Option<Oversized> {
        Some(Oversized { destination: SMALL.to_owned(), payload_bytes: SMALL_BYTES_MAX + 1 })
    }

    fn broken_header(&self) -> Option<(String, String)> {
        Some((BROKEN_HEADER.to_owned(), "value".to_owned()))
    }

    fn secrets(&self) -> Vec<String> {
        vec![SECRET.to_owned()]
    }
}
