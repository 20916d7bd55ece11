//! Against a real Apache Kafka: `scripts/services.sh up kafka`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use common::{TIMEOUT, config, message, publish, publish_one, publisher};
use outbox_core::{
    Publisher, Severity,
    publisher::{PublishErrorKind::Unavailable, PublishErrorScope as Scope, Stored},
};
use outbox_kafka::KafkaKey;
use rdkafka::Message as _;
use server::{brokers, headers, read, topic};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_a_cloudevent_in_binary_mode() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 1, &[]).await;
    let publisher = publisher(config(&brokers));
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let mut full = message(&topic, "47/11 ä", every_byte.clone());
    full.attempt = 2;
    full.event.version = 3;
    full.event.content_type = Some("application/octet-stream".to_owned());
    full.event.headers.insert("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned());
    full.event.headers.insert("X-Tenant".to_owned(), "größe".to_owned());
    full.event.created_at = DateTime::from_timestamp_micros(1_790_000_000_000_001).unwrap();
    let id = full.event.id.to_string();
    assert_eq!(publish(&publisher, vec![full], TIMEOUT).await, [Some(Ok(()))]);
    assert_eq!(publish_one(&publisher, message(&topic, "2", "")).await, Ok(()));

    let read = read(&brokers, &topic, 1, 2).await;
    assert_eq!(read[0].key(), Some("47/11 ä".as_bytes()));
    assert_eq!(read[0].payload(), Some(&every_byte[..]));
    let expected = [
        ("content-type", "application/octet-stream"),
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/test"),
        ("ce_type", "order.placed"),
        ("ce_time", "2026-09-21T14:13:20.000001Z"),
        ("ce_subject", "order/47/11 ä"),
        ("ce_sequence", "0000000000000000042"),
        ("ce_attempt", "2"),
        ("ce_dataversion", "3"),
        ("X-Tenant", "größe"),
        ("traceparent", "00-0af7-b7ad-01"),
    ];
    assert_eq!(headers(&read[0]), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(read[1].payload(), Some(&b""[..]), "an empty payload is not a tombstone");
    assert_eq!(headers(&read[1])[0].1, "application/json");
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_is_in_one_partition_in_order_and_the_key_is_a_choice() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 3, &[]).await;
    let publisher = publisher(config(&brokers).key(KafkaKey::Aggregate).linger(Duration::from_millis(1)));
    for round in 0..5 {
        let messages = (0..40).map(|i| message(&topic, &i.to_string(), round.to_string())).collect();
        let results = publish(&publisher, messages, TIMEOUT).await;
        assert!(results.iter().all(|result| result == &Some(Ok(()))));
    }
    let read = read(&brokers, &topic, 3, 200).await;
    let mut partitions = std::collections::BTreeSet::new();
    for i in 0..40 {
        let key = format!("order/{i}");
        let of_key: Vec<_> = read.iter().filter(|message| message.key() == Some(key.as_bytes())).collect();
        let payloads: Vec<_> = of_key.iter().filter_map(|message| message.payload()).collect();
        assert_eq!(payloads, [b"0", b"1", b"2", b"3", b"4"], "{key}");
        assert!(of_key.iter().all(|message| message.partition() == of_key[0].partition()), "{key}");
        partitions.insert(of_key[0].partition());
    }
    assert_eq!(partitions.len(), 3, "aggregates are spread");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payload_that_an_event_may_have_is_taken_by_default() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 1, &[]).await;
    let publisher = publisher(config(&brokers));
    let mut large =
        message(&topic, &"k".repeat(255), vec![0xff; outbox_core::store::PAYLOAD_BYTES_MAX_DEFAULT]);
    large.event.headers.insert("x".to_owned(), "v".repeat(outbox_core::store::HEADERS_BYTES_MAX - 1));
    assert_eq!(publish_one(&publisher, large).await, Ok(()));
    let read = read(&brokers, &topic, 1, 1).await;
    assert_eq!(read[0].payload().map(<[u8]>::len), Some(outbox_core::store::PAYLOAD_BYTES_MAX_DEFAULT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_has_a_word_for_everything_that_is_wrong() {
    let Some(brokers) = brokers() else { return };
    let publisher = publisher(config(&brokers));
    assert!(publisher.check(&[]).await.is_empty());

    let findings = publisher.check(&["test.missing".to_owned(), "no topic".to_owned()]).await;
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["unknown-topic", "invalid-topic"], "{findings:?}");

    let small = topic(&brokers, 1, &[("max.message.bytes", "5000")]).await;
    let findings = publisher.check(&[small]).await;
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["single-copy", "batch-too-large"], "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_missing_is_made_by_the_broker_only_where_that_is_asked_for() {
    let Some(brokers) = brokers() else { return };
    let missing = format!("test.{}", Uuid::now_v7());
    let plain = publisher(config(&brokers));
    for _ in 0..2 {
        let result = publish_one(&plain, message(&missing, "1", "{}")).await.unwrap_err();
        assert_eq!((result.kind, result.scope, result.stored), (Unavailable, Scope::Destination, Stored::No));
        let findings = plain.check(std::slice::from_ref(&missing)).await;
        assert_eq!((findings[0].code, findings[0].severity), ("unknown-topic", Severity::Error));
    }
    let asked = publisher(config(&brokers).property("allow.auto.create.topics", "true"));
    let findings = asked.check(std::slice::from_ref(&missing)).await;
    assert_eq!((findings[0].code, findings[0].severity), ("unknown-topic", Severity::Warning));
    assert_eq!(publish_one(&asked, message(&missing, "1", "{}")).await, Ok(()));
    assert_eq!(read(&brokers, &missing, 1, 1).await[0].key(), Some(&b"1"[..]));
}
