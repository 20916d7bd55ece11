//! A listener that demands TLS and a password: `scripts/services.sh up kafka` has one. Needs the feature
//! `ssl`.
#![cfg(feature = "ssl")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use std::time::Duration;

use common::{TIMEOUT, config, message, publish_one, publisher};
use outbox_conformance::testing;
use outbox_core::{
    Publisher as _,
    publisher::{PublishErrorKind, PublishErrorScope},
};
use outbox_kafka::KafkaConfigBuilder;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use uuid::Uuid;

/// What the variable says, or nothing where no broker is meant to be there.
fn variable(name: &str) -> Option<String> {
    testing::address("Apache Kafka with TLS", "kafka", name)
}

/// The listener that demands TLS, with this password.
fn encrypted(password: &str) -> Option<KafkaConfigBuilder> {
    let brokers = variable("OUTBOX_TEST_KAFKA_SASL_BROKERS")?;
    let certificates = variable("OUTBOX_TEST_KAFKA_CERTIFICATES")?;
    Some(
        config(&brokers)
            .property("security.protocol", "sasl_ssl")
            .property("ssl.ca.location", format!("{certificates}/ca.pem"))
            .property("sasl.mechanism", "PLAIN")
            .property("sasl.username", "outbox")
            .property("sasl.password", password),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_demands_tls_and_a_password_takes_the_message() {
    let Some(brokers) = variable("OUTBOX_TEST_KAFKA_BROKERS") else { return };
    let Some(config) = encrypted("outbox") else { return };
    let topic = format!("test.{}", Uuid::now_v7());
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let created = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(TIMEOUT))).await;
    assert!(created.unwrap().iter().all(Result::is_ok));
    let publisher = publisher(config);
    let findings = publisher.check(std::slice::from_ref(&topic)).await;
    assert!(findings.iter().all(|finding| finding.code == "single-copy"), "{findings:?}");
    assert_eq!(publish_one(&publisher, message(&topic, "a", "{}")).await, Ok(()));
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_a_finding_and_an_outage_and_is_told_to_nobody() {
    const WRONG: &str = "wrong-and-secret";
    let Some(config) = encrypted(WRONG) else { return };
    let publisher = publisher(config.delivery_timeout(Duration::from_secs(2)));
    let findings = publisher.check(&["test".to_owned()]).await;
    assert!(!findings.is_empty(), "nothing is found");
    let error = publish_one(&publisher, message("test", "a", "{}")).await.unwrap_err();
    assert_eq!((error.kind, error.scope), (PublishErrorKind::Unavailable, PublishErrorScope::Broker));
    assert!(!format!("{findings:?}{error:?}").contains(WRONG), "the password is told");
    publisher.close().await;
}
