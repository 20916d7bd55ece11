//! What is this publisher's own: the signature, and what each answer comes to.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::http::StatusCode;
use common::{Behaviour, Receiver, SECRET};
use outbox::{
    AggregateKey, Event, EventFilter, OutboxAdmin, Publisher, Relay, RelayConfig,
    memory::MemoryStore,
    publisher::{
        Message, PublishError,
        PublishErrorKind::{Permanent, Transient, Unavailable},
        PublishErrorScope as Scope, Reporter, Stored,
    },
    relay::TokioClock,
    store::{FailureCause, Status, StoredEvent},
};
use tokio::sync::mpsc;
use uuid::Uuid;
use webhook::{SigningKey, WebhookConfig, WebhookPublisher};

fn publisher(base_url: String, secret: &str) -> WebhookPublisher {
    let config = WebhookConfig::builder(base_url).secret(secret).delivery_timeout(Duration::from_millis(500));
    WebhookPublisher::new(config.build().unwrap()).unwrap()
}

fn message(topic: &str) -> Message {
    Message::new(
        Arc::from(topic),
        AggregateKey::new("order", "4711"),
        42,
        Arc::from("/shop"),
        StoredEvent::new(
            Uuid::now_v7(),
            "order.placed".to_owned(),
            "{}".into(),
            chrono::DateTime::UNIX_EPOCH,
        ),
    )
}

async fn publish(publisher: &WebhookPublisher, message: Message) -> Result<(), PublishError> {
    let (sender, mut reports) = mpsc::unbounded_channel();
    publisher.publish(vec![Arc::new(message)], Duration::from_secs(10), Reporter::new(1, sender)).await;
    reports.try_recv().unwrap().result
}

#[tokio::test]
async fn a_request_is_signed_and_another_secret_is_refused() {
    let receiver = Receiver::start().await;
    receiver.endpoint("orders", Behaviour::Takes);
    let base_url = format!("http://{}/in", receiver.address);
    let message = message("orders");
    assert_eq!(publish(&publisher(base_url.clone(), SECRET), message.clone()).await, Ok(()));
    let taken = receiver.taken("orders").remove(0);
    let text = |name: &str| taken.headers[name].to_str().unwrap().to_owned();
    assert_eq!(text("webhook-id"), message.event.id.to_string());
    let expected = SigningKey::new(SECRET).unwrap().sign(
        &text("webhook-id"),
        text("webhook-timestamp").parse().unwrap(),
        b"{}",
    );
    assert_eq!(text("webhook-signature"), expected);
    assert_eq!(
        (text("ce-type"), text("content-type")),
        ("order.placed".to_owned(), "application/json".to_owned())
    );

    let stranger = publisher(base_url, "whsec_NfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let error = publish(&stranger, message).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.kind, error.scope), ("http-401", Unavailable, Scope::Destination));
    assert_eq!(receiver.taken("orders").len(), 1);
}

#[tokio::test]
async fn an_answer_decides_what_becomes_of_the_message() {
    let receiver = Receiver::start().await;
    let publisher = publisher(format!("http://{}/in/", receiver.address), SECRET);
    for (status, kind, scope, stored) in [
        (StatusCode::FOUND, Unavailable, Scope::Destination, Stored::No),
        (StatusCode::BAD_REQUEST, Permanent, Scope::Message, Stored::No),
        (StatusCode::UNPROCESSABLE_ENTITY, Permanent, Scope::Message, Stored::No),
        (StatusCode::GONE, Unavailable, Scope::Destination, Stored::No),
        (StatusCode::CONFLICT, Transient, Scope::Message, Stored::Unknown),
        (StatusCode::TOO_MANY_REQUESTS, Unavailable, Scope::Destination, Stored::No),
        (StatusCode::INTERNAL_SERVER_ERROR, Transient, Scope::Message, Stored::Unknown),
        (StatusCode::SERVICE_UNAVAILABLE, Unavailable, Scope::Destination, Stored::Unknown),
    ] {
        receiver.endpoint("orders", Behaviour::Answers(status, Some("120")));
        let error = publish(&publisher, message("orders")).await.unwrap_err();
        assert_eq!((error.kind, error.scope, error.stored), (kind, scope, stored), "{status}");
        assert_eq!(error.code, format!("http-{}", status.as_u16()));
        assert!(error.detail.contains("120"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_unknown() {
    let receiver = Receiver::start().await;
    receiver.endpoint("orders", Behaviour::Hangs);
    let publisher = publisher(format!("http://{}/in", receiver.address), SECRET);
    let error = publish(&publisher, message("orders")).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.kind, error.scope), ("timeout", Unavailable, Scope::Broker));
    assert_eq!(error.stored, Stored::Unknown);
}

/// The server speaks no TLS, so the handshake fails; that there is one shows that rustls has a provider.
#[tokio::test]
async fn https_is_tried_with_tls() {
    let receiver = Receiver::start().await;
    receiver.endpoint("orders", Behaviour::Takes);
    let publisher = publisher(format!("https://{}/in", receiver.address), SECRET);
    let error = publish(&publisher, message("orders")).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.kind, error.scope), ("no-connection", Unavailable, Scope::Broker));
    assert!(
        error.detail.contains("InvalidContentType") || error.detail.contains("corrupt message"),
        "{error}"
    );
    let findings = publisher.check(&["orders".to_owned()]).await;
    assert_eq!(findings[0].code, "receiver-unreachable");
}

#[tokio::test]
async fn check_tells_what_is_missing_from_what_is_forbidden() {
    let receiver = Receiver::start().await;
    let publisher = publisher(format!("http://{}/in", receiver.address), SECRET);
    receiver.endpoint("orders", Behaviour::Takes);
    let topics = ["orders", "missing", "a//b"].map(str::to_owned);
    let codes: Vec<_> = publisher.check(&topics).await.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["endpoint-missing", "bad-topic"]);
}

#[tokio::test]
async fn a_relay_sends_everything_in_order_and_gives_up_what_is_refused_for_good() {
    let receiver = Receiver::start().await;
    receiver.endpoint("orders", Behaviour::Takes);
    receiver.endpoint("strict", Behaviour::Answers(StatusCode::UNPROCESSABLE_ENTITY, None));
    let store = MemoryStore::new(Arc::new(TokioClock::default()));
    let mut transaction = store.begin();
    for number in 0..40 {
        let topic = if number == 17 { "strict" } else { "orders" };
        let event = Event::builder("order", (number % 4).to_string(), number.to_string()).topic(topic);
        transaction.enqueue(&event.build().unwrap()).unwrap();
    }
    transaction.commit();

    let publisher = publisher(format!("http://{}/in", receiver.address), SECRET);
    let relay = Relay::new(store.clone(), publisher, RelayConfig::default()).unwrap();
    let mut handle = relay.handle();
    let running = tokio::spawn(relay.run());
    tokio::time::timeout(Duration::from_secs(60), handle.caught_up()).await.unwrap().unwrap();
    handle.shutdown();
    running.await.unwrap();

    let taken = receiver.taken("orders");
    let of = |aggregate: i32| -> Vec<i32> {
        let subject = format!("order/{aggregate}");
        let of_aggregate = taken.iter().filter(|taken| taken.headers["ce-subject"] == subject.as_str());
        of_aggregate.map(|taken| taken.headers["ce-type"].to_str().unwrap().parse().unwrap()).collect()
    };
    for aggregate in 0..4 {
        let expected: Vec<_> = (0..40).filter(|number| number % 4 == aggregate && *number != 17).collect();
        assert_eq!(of(aggregate), expected);
    }
    let failed = store.list(&EventFilter::status(Status::Failed), 10).await.unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].cause, Some(FailureCause::Permanent));
}
