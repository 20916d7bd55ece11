//! What the tests share: messages, and a publish call whose reports are collected.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey, Publisher,
    publisher::{Message, PublishError, Report, Reporter},
    store::StoredEvent,
};
use outbox_kafka::{KafkaConfig, KafkaConfigBuilder, KafkaPublisher};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Far above the delivery timeout of the tests, and far below a patience that would hide a hang.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn config(brokers: &str) -> KafkaConfigBuilder {
    KafkaConfig::builder(brokers).delivery_timeout(Duration::from_secs(15))
}

pub(crate) fn publisher(config: KafkaConfigBuilder) -> Arc<KafkaPublisher> {
    Arc::new(KafkaPublisher::new(config.build().unwrap()).unwrap())
}

pub(crate) fn message(topic: &str, aggregate_id: &str, payload: impl Into<bytes::Bytes>) -> Message {
    Message::new(
        Arc::from(topic),
        AggregateKey::new("order", aggregate_id),
        42,
        Arc::from("/test"),
        StoredEvent::new(
            Uuid::now_v7(),
            "order.placed".to_owned(),
            payload.into(),
            DateTime::<Utc>::UNIX_EPOCH,
        ),
    )
}

/// Publishes, and returns the first result of each message; `None` where there was no report.
pub(crate) async fn publish(
    publisher: &KafkaPublisher,
    messages: Vec<Message>,
    timeout: Duration,
) -> Vec<Option<Result<(), PublishError>>> {
    let mut results = Vec::new();
    results.resize_with(messages.len(), || None);
    let (reporter, mut reports) = reporter();
    publisher.publish(messages.into_iter().map(Arc::new).collect(), timeout, reporter).await;
    while let Ok(Report { index, result, .. }) = reports.try_recv() {
        let slot: &mut Option<_> = &mut results[index as usize];
        assert!(slot.is_none(), "message {index} was reported twice");
        *slot = Some(result);
    }
    results
}

pub(crate) fn reporter() -> (Reporter, mpsc::UnboundedReceiver<Report>) {
    let (sender, reports) = mpsc::unbounded_channel();
    (Reporter::new(1, sender), reports)
}

/// The one error of a call with one message.
pub(crate) async fn publish_one(publisher: &KafkaPublisher, message: Message) -> Result<(), PublishError> {
    publish(publisher, vec![message], TIMEOUT).await.remove(0).expect("a report")
}
