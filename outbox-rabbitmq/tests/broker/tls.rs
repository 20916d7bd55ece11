//! Against a port of RabbitMQ that demands TLS and a client's certificate.

use std::path::PathBuf;

use outbox_core::Publisher;
use outbox_rabbitmq::RabbitMqQueueKind;

use crate::common::{Rabbit, config, message, publish_one, publisher, url, variable};

/// The port's address, and the folder with the certificates.
fn server() -> Option<(String, PathBuf)> {
    let url = variable("OUTBOX_TEST_AMQPS_URL", "rabbitmq")?;
    Some((url, variable("OUTBOX_TEST_AMQPS_CERTIFICATES", "rabbitmq")?.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_to_a_server_that_demands_a_certificate() {
    let Some((tls, certificates)) = server() else { return };
    let Some(plain) = url() else { return };
    let rabbit = Rabbit::connect(&plain).await;
    let queue = rabbit.name();
    let publisher = publisher(
        config(&tls)
            .ca_file(certificates.join("ca.pem"))
            .client_certificate(certificates.join("client.pem"), certificates.join("client.key"))
            .declare_queue(&queue, RabbitMqQueueKind::Classic),
    );
    assert_eq!(publish_one(&publisher, message(&queue, "1", "{}")).await, Ok(()));
    assert!(publisher.check(&[queue]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_trust_or_without_a_certificate_there_is_no_connection() {
    let Some((url, certificates)) = server() else { return };
    for (config, why) in [
        (config(&url), "no authority to trust"),
        (config(&url.replace("amqps://", "amqp://")), "TLS is demanded by the server"),
        (config(&url).ca_file(certificates.join("ca.pem")), "no certificate of one's own"),
    ] {
        let findings = publisher(config).check(&[]).await;
        assert_eq!(findings[0].code, "broker-unreachable", "{why}: {findings:?}");
        assert!(findings[0].remedy.contains("ca_file"), "{why}: {findings:?}");
    }
}
