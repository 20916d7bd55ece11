//! Against a real NATS with JetStream: `scripts/services.sh up nats`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;
mod logins;
mod outages;
mod own;
mod tls;

use std::time::Duration;

use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use bytes::Bytes;
use chrono::DateTime;
use common::{Nats, TIMEOUT, brief, config, message, publish, publish_one, publisher, url};
use outbox_core::{
    Publisher, Severity,
    publisher::{
        PublishErrorKind::{Permanent, Unavailable},
        PublishErrorScope as Scope, Stored,
    },
};
use outbox_nats::NatsStream;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_a_cloudevent_in_binary_mode() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let subject = nats.stream(|_| {}).await;
    let publisher = publisher(config(&url));
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let mut full = message(&subject, "47/11 ä", every_byte.clone());
    full.attempt = 2;
    full.event.version = 3;
    full.event.content_type = Some("application/octet-stream".to_owned());
    full.event.headers.insert("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned());
    full.event.headers.insert("X-Tenant".to_owned(), "größe".to_owned());
    full.event.created_at = DateTime::from_timestamp_micros(1_790_000_000_000_001).unwrap();
    let id = full.event.id.to_string();
    let message_id = format!("{id} {} {subject}", full.source);
    assert_eq!(publish(&publisher, vec![full], TIMEOUT).await, [Some(Ok(()))]);
    assert_eq!(publish_one(&publisher, message(&subject, "2", "")).await, Ok(()));

    let stored = nats.stored(&subject).await;
    assert_eq!(&*stored[0].subject, subject);
    assert_eq!(stored[0].payload, every_byte);
    let mut headers: Vec<_> = stored[0]
        .headers
        .iter()
        .map(|(name, values)| {
            (name.to_string(), values.iter().map(|value| value.as_str()).collect::<Vec<_>>().join("|"))
        })
        .collect();
    headers.sort();
    let expected = [
        ("Nats-Msg-Id", message_id.as_str()),
        ("X-Tenant", "größe"),
        ("ce-attempt", "2"),
        ("ce-datacontenttype", "application/octet-stream"),
        ("ce-dataversion", "3"),
        ("ce-id", &id),
        ("ce-sequence", "0000000000000000042"),
        ("ce-source", "/test"),
        ("ce-specversion", "1.0"),
        ("ce-subject", "order/47/11%20%C3%A4"),
        ("ce-time", "2026-09-21T14:13:20.000001Z"),
        ("ce-type", "order.placed"),
        ("traceparent", "00-0af7-b7ad-01"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(stored[1].payload, "");
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_sent_again_is_stored_once_and_counts_as_sent() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let subject = nats.stream(|_| {}).await;
    let publisher = publisher(config(&url));
    let once = message(&subject, "1", "{}");
    for _ in 0..3 {
        assert_eq!(publish_one(&publisher, once.clone()).await, Ok(()));
    }
    assert_eq!(nats.stored(&subject).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_message_has_done_is_its_own() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let subject = nats.stream(|stream| stream.max_message_size = 2000).await;
    let publisher = publisher(config(&url));
    let nowhere = format!("test.nowhere.{}", Uuid::now_v7());
    let with = |name: &str, value: &str| {
        let mut message = message(&subject, "h", "{}");
        message.event.headers.insert(name.to_owned(), value.to_owned());
        message
    };
    let cases = [
        (message(&subject, "2", vec![b'x'; 2001]), "JetStream10054", Permanent, Scope::Message),
        (message(&subject, "3", vec![b'x'; 9_000_000]), "MaxPayloadExceeded", Permanent, Scope::Message),
        (message(&nowhere, "4", "{}"), "StreamNotFound", Unavailable, Scope::Destination),
        (message("a b", "5", "{}"), "InvalidSubject", Permanent, Scope::Message),
        (message("$JS.API.INFO", "6", "{}"), "InvalidSubject", Permanent, Scope::Message),
        (with("x", "two\nlines"), "InvalidHeader", Permanent, Scope::Message),
        (with("x", " white"), "InvalidHeader", Permanent, Scope::Message),
        (with("nats-rollup", "all"), "InvalidHeader", Permanent, Scope::Message),
    ];
    let mut messages = Vec::new();
    for (message_, ..) in &cases {
        messages.push(message_.clone());
        messages.push(message(&subject, "well", "{}"));
    }
    let mut results = publish(&publisher, messages, TIMEOUT).await.into_iter();
    for (_, code, kind, scope) in &cases {
        let refused = results.next().unwrap().unwrap();
        assert_eq!(brief(refused), ((*code).to_owned(), *kind, *scope, Stored::No));
        assert_eq!(results.next().unwrap(), Some(Ok(())), "beside {code}");
    }
    assert_eq!(nats.stored(&subject).await.len(), cases.len());
    // What a server takes by default, less 32 KiB for the headers.
    assert_eq!(publisher.capabilities().payload_bytes_max, Some((1 << 20) - (32 << 10)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_full_refuses_until_there_is_room() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let subject = nats
        .stream(|stream| {
            stream.max_messages = 1;
            stream.discard = DiscardPolicy::New;
        })
        .await;
    let publisher = publisher(config(&url));
    assert_eq!(publish_one(&publisher, message(&subject, "1", "{}")).await, Ok(()));
    let refused = publish_one(&publisher, message(&subject, "2", "{}")).await;
    assert_eq!(brief(refused), ("JetStream10077".to_owned(), Unavailable, Scope::Destination, Stored::No));
    let name = nats.jetstream.stream_by_subject(&*subject).await.unwrap();
    nats.jetstream.get_stream(name).await.unwrap().purge().await.unwrap();
    assert_eq!(publish_one(&publisher, message(&subject, "2", "{}")).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_instead_of_a_stream_is_not_believed() {
    use futures::StreamExt as _;
    let Some(url) = url() else { return };
    let client = Nats::connect(&url).await.jetstream.client();
    let subject = format!("test.service.{}", Uuid::now_v7());
    let mut requests = client.subscribe(subject.clone()).await.unwrap();
    client.flush().await.unwrap();
    let service = tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        client.publish(request.reply.unwrap(), "{\"ok\":true}".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    let result = publish_one(&publisher(config(&url)), message(&subject, "1", "{}")).await;
    assert_eq!(
        brief(result),
        ("NoStreamAnswered".to_owned(), Unavailable, Scope::Destination, Stored::Unknown)
    );
    service.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_without_a_stream_to_which_somebody_listens_is_unavailable_and_nothing_else() {
    let Some(url) = url() else { return };
    let client = Nats::connect(&url).await.jetstream.client();
    let subject = format!("test.listener.{}", Uuid::now_v7());
    let _silent = client.subscribe(subject.clone()).await.unwrap();
    client.flush().await.unwrap();
    let messages = vec![message(&subject, "1", "{}")];
    let result = publish(&publisher(config(&url)), messages, Duration::from_secs(1)).await.remove(0).unwrap();
    assert_eq!(brief(result), ("TimedOut".to_owned(), Unavailable, Scope::Destination, Stored::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configured_stream_is_created_and_created_again_and_one_that_is_there_is_left_alone() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let name = nats.name();
    let subject = format!("created.{name}.x");
    let wanted = NatsStream::new(name.clone(), [format!("created.{name}.>")]);
    let publisher = publisher(config(&url).stream(wanted));
    assert_eq!(publish_one(&publisher, message(&subject, "1", "{}")).await, Ok(()));
    let created = nats.jetstream.get_stream(&name).await.unwrap();
    assert_eq!(created.cached_info().config.storage, StorageType::File);

    nats.jetstream.delete_stream(&name).await.unwrap();
    let refused = publish_one(&publisher, message(&subject, "1", "{}")).await;
    assert_eq!(refused.unwrap_err().code, "StreamNotFound");
    assert_eq!(publish_one(&publisher, message(&subject, "1", "{}")).await, Ok(()));

    let mut config = created.cached_info().config.clone();
    config.max_messages = 7;
    nats.jetstream.update_stream(config).await.unwrap();
    assert!(publisher.check(&[subject]).await.iter().all(|f| f.severity == Severity::Warning));
    assert_eq!(nats.jetstream.get_stream(&name).await.unwrap().cached_info().config.max_messages, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_what_is_wrong_and_creates_nothing() {
    let Some(url) = url() else { return };
    let publisher_ = publisher(config(&url));
    assert!(publisher_.check(&[]).await.is_empty());
    let missing = format!("test.{}", Uuid::now_v7());
    for _ in 0..2 {
        let findings = publisher_.check(&[missing.clone(), "no topic".to_owned()]).await;
        let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["unknown-topic", "invalid-topic"], "{findings:?}");
        assert!(findings[0].problem.contains(&missing));
    }
    let nats = Nats::connect(&url).await;
    let subject = nats.stream(|stream| stream.storage = StorageType::Memory).await;
    let codes: Vec<_> =
        publisher_.check(std::slice::from_ref(&subject)).await.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["volatile-stream", "single-copy"]);
    // Subjects that another stream has already.
    let wanted = NatsStream::new(Uuid::now_v7().simple().to_string(), [subject]);
    let codes: Vec<_> =
        publisher(config(&url).stream(wanted)).check(&[]).await.iter().map(|f| f.code).collect();
    assert_eq!(codes, ["stream-not-created"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_is_a_finding_and_the_brokers_error_and_never_shown() {
    let Some(url) = url() else { return };
    let wrong = url.replace("outbox:outbox@", "outbox:hunter2@");
    let publisher = publisher(config(&wrong));
    let findings = publisher.check(&[]).await;
    assert_eq!(findings[0].code, "login-refused", "{findings:?}");
    let error =
        publish(&publisher, vec![message("a", "1", "{}")], Duration::from_secs(1)).await.remove(0).unwrap();
    let text = format!("{error:?} {findings:?} {publisher:?}");
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(brief(error), ("AuthorizationViolation".to_owned(), Unavailable, Scope::Broker, Stored::No));
}

/// An event of another source with the same id, the same event at another subject, and a replay of it are
/// other messages; the same once more is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_very_same_message_is_a_duplicate() {
    let Some(url) = url() else { return };
    let nats = Nats::connect(&url).await;
    let subject = nats.stream(|_| {}).await;
    let publisher = publisher(config(&url));
    let first = message(&subject, "1", "{}");
    let mut other_source = first.clone();
    other_source.source = "/another shop".into();
    let mut replayed = first.clone();
    replayed.event.headers.insert("outbox-replay".to_owned(), Uuid::now_v7().to_string());
    let mut again = replayed.clone();
    again.event.headers.insert("outbox-replay".to_owned(), Uuid::now_v7().to_string());
    for message in [&first, &first, &other_source, &replayed, &replayed, &again] {
        assert_eq!(publish_one(&publisher, message.clone()).await, Ok(()));
    }
    assert_eq!(nats.stored(&subject).await.len(), 4);
}
