//! Against a real Apache Kafka: `scripts/services.sh up kafka`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use common::{TIMEOUT, config, message, publish, publish_one, publisher};
use outbox_core::{
    Message,
    PublishErrorKind::{Permanent, Unavailable},
    PublishErrorScope as Scope, Publisher, Severity, Stored,
};
use outbox_kafka::KafkaKey;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, OwnedMessage},
};
use uuid::Uuid;

const BROKERS_VARIABLE: &str = "OUTBOX_TEST_KAFKA_BROKERS";

/// The broker's address, or nothing where none is meant to be there.
fn brokers() -> Option<String> {
    let brokers = std::env::var(BROKERS_VARIABLE).ok();
    if brokers.is_none() {
        let text = format!(
            "Apache Kafka is not there: {BROKERS_VARIABLE} is not set; run `scripts/services.sh up kafka` and \
             `eval \"$(scripts/services.sh env)\"`"
        );
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{text}");
        eprintln!("{text}");
    }
    brokers
}

/// A topic of this test alone.
async fn topic(brokers: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
    let name = format!("test.{}", Uuid::now_v7());
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let created = admin.create_topics([&topic], &options).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    name
}

/// The first `count` messages of a topic, in the order of their offsets within a partition.
async fn read(brokers: &str, topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let reading = move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", topic.as_str())
            .set("receive.message.max.bytes", "100000000")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        for partition in 0..partitions {
            from.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&from).unwrap();
        (0..count).map(|_| consumer.poll(TIMEOUT).expect("a message").unwrap().detach()).collect()
    };
    tokio::task::spawn_blocking(reading).await.unwrap()
}

fn headers(message: &OwnedMessage) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = message.headers().unwrap();
    headers.iter().map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect()
}

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
    assert_eq!(read[1].payload(), Some(&b""[..]), "an empty payload is no tombstone");
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
async fn a_message_that_the_topic_finds_too_large_is_refused_and_alone_it_is_permanent() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 1, &[("max.message.bytes", "5000")]).await;
    let publisher = publisher(config(&brokers));
    let result = publish_one(&publisher, message(&topic, "1", vec![b'x'; 6000])).await.unwrap_err();
    assert_eq!((&*result.code, result.kind, result.stored), ("MessageSizeTooLarge", Permanent, Stored::No));
    assert_eq!(result.scope, Scope::Batch);
    assert_eq!(publish_one(&publisher, message(&topic, "2", "{}")).await, Ok(()));
    assert_eq!(read(&brokers, &topic, 1, 1).await[0].key(), Some(&b"2"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payload_that_an_event_may_have_is_taken_by_default() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 1, &[]).await;
    let publisher = publisher(config(&brokers));
    let mut large = message(&topic, &"k".repeat(255), vec![0xff; outbox_core::PAYLOAD_BYTES_MAX_DEFAULT]);
    large.event.headers.insert("x".to_owned(), "v".repeat(outbox_core::HEADERS_BYTES_MAX - 1));
    assert_eq!(publish_one(&publisher, large).await, Ok(()));
    let read = read(&brokers, &topic, 1, 1).await;
    assert_eq!(read[0].payload().map(<[u8]>::len), Some(outbox_core::PAYLOAD_BYTES_MAX_DEFAULT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_run_beside_each_other() {
    let Some(brokers) = brokers() else { return };
    let topic = topic(&brokers, 3, &[]).await;
    let publisher = publisher(config(&brokers));
    let calls = (0..20).map(|call| {
        let publisher = Arc::clone(&publisher);
        let messages: Vec<Message> =
            (0..100).map(|i| message(&topic, &format!("{call}-{i}"), "{}")).collect();
        tokio::spawn(async move { publish(&publisher, messages, TIMEOUT).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(call.await.unwrap().iter().all(|result| result == &Some(Ok(()))));
    }
    let mut keys: Vec<_> =
        read(&brokers, &topic, 3, 2000).await.iter().map(|m| m.key().unwrap().to_vec()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_what_is_wrong_and_creates_nothing() {
    let Some(brokers) = brokers() else { return };
    let publisher = publisher(config(&brokers));
    assert!(publisher.check(&[]).await.is_empty());

    let missing = format!("test.{}", Uuid::now_v7());
    for _ in 0..2 {
        let findings = publisher.check(&[missing.clone(), "no topic".to_owned()]).await;
        let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["unknown-topic", "invalid-topic"], "{findings:?}");
        assert!(findings[0].problem.contains(&missing));
    }

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
