//! Faults, injected by librdkafka's own mock cluster: no server is needed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{TIMEOUT, config, message, publish, publish_one, publisher, reporter};
use outbox_core::{
    Publisher,
    publisher::{
        PublishError,
        PublishErrorKind::{Permanent, Transient, Unavailable},
        PublishErrorScope as Scope, Report, Stored,
    },
};
use outbox_kafka::KafkaPublisher;
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error},
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const TOPIC: &str = "orders";

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    cluster
}

fn brief(
    result: Result<(), PublishError>,
) -> (String, outbox_core::publisher::PublishErrorKind, Scope, Stored) {
    let error = result.unwrap_err();
    (error.code.to_string(), error.kind, error.scope, error.stored)
}

/// Publishes until it succeeds.
async fn succeeds(publisher: &KafkaPublisher, topic: &str) {
    let success = async {
        while publish_one(publisher, message(topic, "1", "{}")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, success).await.expect("the topic takes messages in the end");
}

/// Counts what the cluster stored, by reading the topic to its end.
async fn stored(cluster: &Cluster) -> usize {
    use rdkafka::{
        ClientConfig, Offset, TopicPartitionList,
        consumer::{BaseConsumer, Consumer},
    };
    let brokers = cluster.bootstrap_servers();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "count")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let mut count = 0;
        loop {
            match consumer.poll(TIMEOUT).expect("the end of the partition") {
                Ok(_) => count += 1,
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return count,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_refuses_names_what_it_refused() {
    let cluster = cluster();
    let publisher =
        publisher(config(&cluster.bootstrap_servers()).property("topic.metadata.refresh.interval.ms", "100"));
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    for (refusal, code, kind, scope) in [
        (Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "MessageSizeTooLarge", Permanent, Scope::Batch),
        (Error::RD_KAFKA_RESP_ERR_INVALID_RECORD, "InvalidRecord", Permanent, Scope::Batch),
        (
            Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            "TopicAuthorizationFailed",
            Unavailable,
            Scope::Destination,
        ),
        (
            Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
            "ClusterAuthorizationFailed",
            Unavailable,
            Scope::Broker,
        ),
    ] {
        cluster.request_errors(Api::Produce, &[refusal]);
        let result = publish_one(&publisher, message(TOPIC, "1", "{}")).await;
        assert_eq!(brief(result), (code.to_owned(), kind, scope, Stored::No));
        // A topic that was refused stays refused until its metadata are read again.
        succeeds(&publisher, TOPIC).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_by_itself_is_repeated_by_librdkafka() {
    let cluster = cluster();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    cluster.request_errors(
        Api::Produce,
        &[
            Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            Error::RD_KAFKA_RESP_ERR__TRANSPORT,
        ],
    );
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    assert_eq!(stored(&cluster).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_topic_is_that_topics_and_is_found_once_it_is_there() {
    let cluster = cluster();
    cluster.topic_error("missing", Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let publisher =
        publisher(config(&cluster.bootstrap_servers()).property("topic.metadata.propagation.max.ms", "500"));
    let messages = vec![message("missing", "1", "{}"), message(TOPIC, "2", "{}")];
    let mut results = publish(&publisher, messages, TIMEOUT).await;
    assert_eq!(results.pop().unwrap(), Some(Ok(())));
    let (code, kind, scope, stored) = brief(results.pop().unwrap().unwrap());
    assert!(code.starts_with("UnknownTopic"), "{code}");
    assert_eq!((kind, scope, stored), (Unavailable, Scope::Destination, Stored::No));

    cluster.topic_error("missing", Error::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    succeeds(&publisher, "missing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_is_unavailable_and_comes_back_by_itself() {
    let cluster = cluster();
    let publisher = publisher(config(&cluster.bootstrap_servers()).delivery_timeout(Duration::from_secs(1)));
    // The first message waits for a connection and a producer id, which may take longer than this timeout.
    succeeds(&publisher, TOPIC).await;
    cluster.broker_down(1).unwrap();
    let result = publish_one(&publisher, message(TOPIC, "1", "{}")).await;
    assert!(result.as_ref().unwrap_err().detail.contains("last heard"), "{result:?}");
    assert_eq!(brief(result), ("MessageTimedOut".to_owned(), Unavailable, Scope::Broker, Stored::Unknown));
    let findings = tokio::spawn({
        let publisher = Arc::clone(&publisher);
        async move { publisher.check(&[TOPIC.to_owned()]).await }
    });
    assert_eq!(findings.await.unwrap()[0].code, "broker-unreachable");
    cluster.broker_up(1).unwrap();
    succeeds(&publisher, TOPIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_reported_while_others_are_still_unknown() {
    let cluster = MockCluster::new(2).unwrap();
    cluster.create_topic("near", 1, 1).unwrap();
    cluster.create_topic("far", 1, 1).unwrap();
    cluster.partition_leader("near", 0, Some(1)).unwrap();
    cluster.partition_leader("far", 0, Some(2)).unwrap();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    for topic in ["near", "far"] {
        assert_eq!(publish_one(&publisher, message(topic, "1", "{}")).await, Ok(()));
    }
    cluster.broker_down(2).unwrap();
    let (reporter, mut reports) = reporter();
    let call = tokio::spawn({
        let publisher = Arc::clone(&publisher);
        let messages = vec![Arc::new(message("far", "1", "{}")), Arc::new(message("near", "2", "{}"))];
        async move { publisher.publish(messages, TIMEOUT, reporter).await }
    });
    let Report { call: number, index, result, .. } = reports.recv().await.unwrap();
    assert_eq!((number, index, result), (1, 1, Ok(())));
    assert!(!call.is_finished(), "the other is not known yet");
    cluster.broker_up(2).unwrap();
    let last = reports.recv().await.unwrap();
    assert_eq!((last.index, last.result), (0, Ok(())));
    call.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_at_its_end_is_replaced() {
    let cluster = cluster();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    cluster.request_errors(Api::Produce, &[Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    let (code, kind, scope, _) = brief(publish_one(&publisher, message(TOPIC, "1", "{}")).await);
    assert_eq!((kind, scope), (Unavailable, Scope::Broker), "{code}");
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
}

/// Everything that a call which ended early must not do any more is to be stored; so wait for what comes
/// after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_leaves_nothing_queued() {
    let cluster = cluster();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    cluster.broker_down(1).unwrap();

    let (lone_reporter, mut lone_reports) = reporter();
    let innocent = tokio::spawn({
        let publisher = Arc::clone(&publisher);
        async move { publisher.publish(vec![Arc::new(message(TOPIC, "2", "{}"))], TIMEOUT, lone_reporter).await }
    });
    let (dropped_reporter, mut dropped_reports) = reporter();
    let messages = (0..100).map(|i| Arc::new(message(TOPIC, &i.to_string(), "{}"))).collect();
    // Polled once, the call has queued all of them; then it is dropped.
    tokio::select! {
        biased;
        () = publisher.publish(messages, TIMEOUT, dropped_reporter) => panic!("no broker is there"),
        () = std::future::ready(()) => {}
    }
    for _ in 0..100 {
        let report = tokio::time::timeout(TIMEOUT, dropped_reports.recv()).await.unwrap().unwrap();
        // Whether the outage was noticed by then decides which.
        assert!(matches!(report.result.unwrap_err().kind, Transient | Unavailable));
    }
    cluster.broker_up(1).unwrap();
    // The other call's message was purged with them, and is sent by the new producer.
    let report = tokio::time::timeout(TIMEOUT, lone_reports.recv()).await.unwrap().unwrap();
    assert_eq!(report.result, Ok(()));
    innocent.await.unwrap();
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    assert_eq!(stored(&cluster).await, 3, "the first, the innocent and the last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_runs_out_of_time_leaves_nothing_queued_and_reports_everything() {
    let cluster = cluster();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    cluster.broker_down(1).unwrap();
    let messages = (0..100).map(|i| message(TOPIC, &i.to_string(), "{}")).collect();
    let results = publish(&publisher, messages, Duration::from_millis(500)).await;
    for result in results {
        // Whether the outage was noticed by then decides which.
        assert!(matches!(result.unwrap().unwrap_err().kind, Transient | Unavailable));
    }
    cluster.broker_up(1).unwrap();
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    assert_eq!(stored(&cluster).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_waited_for() {
    let cluster = cluster();
    let publisher =
        publisher(config(&cluster.bootstrap_servers()).property("queue.buffering.max.messages", "10"));
    let messages = (0..200).map(|i| message(TOPIC, &i.to_string(), "{}")).collect();
    let results = publish(&publisher, messages, TIMEOUT).await;
    assert!(results.iter().all(|result| result == &Some(Ok(()))));

    cluster.broker_down(1).unwrap();
    let messages = (0..20).map(|i| message(TOPIC, &i.to_string(), "{}")).collect();
    let results = publish(&publisher, messages, Duration::from_millis(500)).await;
    let unsent = results.into_iter().map(|result| result.unwrap().unwrap_err());
    let unsent: Vec<_> = unsent.filter(|error| error.code == "QueueFull").collect();
    assert_eq!(unsent.len(), 10);
    assert!(unsent.iter().all(|error| error.stored == Stored::No && error.kind == Unavailable));
    cluster.broker_up(1).unwrap();
    assert_eq!(publish_one(&publisher, message(TOPIC, "1", "{}")).await, Ok(()));
    assert_eq!(stored(&cluster).await, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_is_in_the_partition_that_javas_producer_would_choose() {
    use rdkafka::{
        ClientConfig, Message as _, Offset, TopicPartitionList,
        consumer::{BaseConsumer, Consumer},
    };
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("wide", 16, 1).unwrap();
    let publisher = publisher(config(&cluster.bootstrap_servers()));
    let keys = ["4711", "a", "kafka", "giberish123456789"];
    let messages =
        keys.iter().flat_map(|key| [message("wide", key, "1"), message("wide", key, "2")]).collect();
    assert!(publish(&publisher, messages, TIMEOUT).await.iter().all(|result| result == &Some(Ok(()))));
    let brokers = cluster.bootstrap_servers();
    let found = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "read").create().unwrap();
        let mut from = TopicPartitionList::new();
        for partition in 0..16 {
            from.add_partition_offset("wide", partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&from).unwrap();
        let read = |_| {
            let message = consumer.poll(TIMEOUT).unwrap().unwrap();
            (String::from_utf8(message.key().unwrap().to_vec()).unwrap(), message.partition())
        };
        (0..8).map(read).collect::<Vec<_>>()
    });
    for (key, partition) in found.await.unwrap() {
        assert_eq!(partition, java_partition(key.as_bytes(), 16), "{key}");
    }
}

/// `Utils.toPositive(Utils.murmur2(key)) % partitions` of Kafka's Java client: MurmurHash2 with its seed.
fn java_partition(key: &[u8], partitions: u32) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    ((hash & 0x7fff_ffff) % partitions) as i32
}
