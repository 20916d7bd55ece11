//! A login by certificate alone, and what a user may not do.

use outbox_core::{
    Publisher,
    publisher::{PublishErrorKind::Unavailable, PublishErrorScope as Scope, Stored},
};

use crate::{
    common::{Rabbit, TIMEOUT, brief, config, message, publish, publish_one, publisher, url},
    own::Own,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_a_login_and_an_exchange_that_a_user_may_not_write_to_fails_alone() {
    let Some(server) = url().and_then(|_| Own::start()) else { return };
    let rabbit = Rabbit::connect(&server.url()).await;
    let queue = rabbit.queue(&[]).await;
    let certificates = server.certificates();
    let with_certificate = |url: &str| {
        config(url)
            .ca_file(certificates.join("ca.pem"))
            .client_certificate(certificates.join("client.pem"), certificates.join("client.key"))
            .exchange_from_topic()
    };
    let well = format!("/{queue}");
    let by_certificate = publisher(with_certificate(&(server.tls_url() + "?auth_mechanism=external")));
    assert_eq!(publish_one(&by_certificate, message(&well, "1", "{}")).await, Ok(()));
    // Without the mechanism it is a login by name and password, which were not given.
    let findings = publisher(with_certificate(&server.tls_url())).check(&[]).await;
    assert_eq!(findings[0].code, "login-refused", "{findings:?}");

    server.tool(&["add_user", "limited", "limited"]);
    server.tool(&["set_permissions", "limited", "^$", "^amq\\.default$", ".*"]);
    let limited = server.url().replace("outbox:outbox@", "limited:limited@");
    let limited = publisher(config(&limited).exchange_from_topic());
    let topics = ["amq.topic/key", &well, "amq.topic/other", &well];
    let messages = topics.map(|topic| message(topic, topic, "{}"));
    let results = publish(&limited, messages.into(), TIMEOUT).await;
    for (topic, result) in topics.into_iter().zip(results) {
        if topic == well {
            assert_eq!(result.unwrap(), Ok(()));
        } else {
            let refused = ("ACCESS_REFUSED".to_owned(), Unavailable, Scope::Destination, Stored::Unknown);
            assert_eq!(brief(result.unwrap()), refused);
        }
    }
    assert_eq!(rabbit.take(&queue).await.len(), 3);
}
