//! Against a real NATS that demands TLS and a client's certificate: `scripts/services.sh up natstls`.

use std::path::PathBuf;

use outbox_core::Publisher;
use outbox_nats::NatsStream;
use uuid::Uuid;

use crate::common::{config, message, publish_one, publisher, variable};

/// The server's address, and the folder with the certificates.
fn server() -> Option<(String, PathBuf)> {
    let url = variable("OUTBOX_TEST_NATS_TLS_URL", "natstls")?;
    Some((url, variable("OUTBOX_TEST_NATS_TLS_CERTIFICATES", "natstls")?.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_to_a_server_that_demands_a_certificate() {
    let Some((url, certificates)) = server() else { return };
    let name = Uuid::now_v7().simple().to_string();
    let publisher = publisher(
        config(&url)
            .ca_file(certificates.join("ca.pem"))
            .client_certificate(certificates.join("client.pem"), certificates.join("client.key"))
            .stream(NatsStream::new(name.clone(), [name.clone()])),
    );
    assert_eq!(publish_one(&publisher, message(&name, "1", "{}")).await, Ok(()));
    let findings = publisher.check(std::slice::from_ref(&name)).await;
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["single-copy"]);
    let options = async_nats::ConnectOptions::with_user_and_password("outbox".into(), "outbox".into())
        .add_root_certificates(certificates.join("ca.pem"))
        .add_client_certificate(certificates.join("client.pem"), certificates.join("client.key"));
    let beside = async_nats::jetstream::new(options.connect(url).await.unwrap());
    beside.delete_stream(name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_trust_or_without_a_certificate_there_is_no_connection() {
    let Some((url, certificates)) = server() else { return };
    for (config, why) in [
        (config(&url), "no authority to trust"),
        (config(&url.replace("tls://", "nats://")), "TLS is demanded by the server"),
        (config(&url).ca_file(certificates.join("ca.pem")), "no certificate of one's own"),
    ] {
        let findings = publisher(config).check(&[]).await;
        assert_eq!(findings[0].code, "broker-unreachable", "{why}: {findings:?}");
        assert!(findings[0].remedy.contains("ca_file"), "{why}: {findings:?}");
    }
}
