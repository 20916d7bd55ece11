//! Against a real RabbitMQ: `scripts/services.sh up rabbitmq`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

mod common;
mod logins;
mod outages;
mod own;
mod tls;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use common::{Rabbit, TIMEOUT, brief, config, message, publish, publish_one, publisher, url};
use lapin::{
    options::ExchangeDeleteOptions,
    types::{AMQPValue, FieldTable},
};
use outbox_core::{
    Publisher,
    publisher::{
        PublishErrorKind::{Permanent, Transient, Unavailable},
        PublishErrorScope as Scope, Stored,
    },
};
use outbox_rabbitmq::{RabbitMqExchangeKind as ExchangeKind, RabbitMqQueueKind as QueueKind};
use uuid::Uuid;

fn texts(table: &FieldTable) -> BTreeMap<String, String> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).unwrap(),
        other => panic!("not a text: {other:?}"),
    };
    table.inner().iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_a_cloudevent_in_binary_mode() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let queue = rabbit.queue(&[]).await;
    let publisher = publisher(config(&url));
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let mut full = message(&queue, "47/11 ä", every_byte.clone());
    full.attempt = 2;
    full.event.version = 3;
    full.event.content_type = Some("application/octet-stream".to_owned());
    full.event.headers.insert("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned());
    full.event.headers.insert("X-Tenant".to_owned(), " größe\n".to_owned());
    full.event.created_at = DateTime::from_timestamp_micros(1_790_000_000_000_001).unwrap();
    let id = full.event.id.to_string();
    assert_eq!(publish(&publisher, vec![full], TIMEOUT).await, [Some(Ok(()))]);
    assert_eq!(publish_one(&publisher, message(&queue, "2", "")).await, Ok(()));

    let stored = rabbit.take(&queue).await;
    assert_eq!(stored[0].data, every_byte);
    let properties = &stored[0].properties;
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/octet-stream");
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
    assert_eq!(properties.delivery_mode(), &Some(2));
    let expected = [
        ("X-Tenant", " größe\n"),
        ("cloudEvents:attempt", "2"),
        ("cloudEvents:dataversion", "3"),
        ("cloudEvents:id", &id),
        ("cloudEvents:sequence", "0000000000000000042"),
        ("cloudEvents:source", "/test"),
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:subject", "order/47/11 ä"),
        ("cloudEvents:time", "2026-09-21T14:13:20.000001Z"),
        ("cloudEvents:type", "order.placed"),
        ("traceparent", "00-0af7-b7ad-01"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(texts(properties.headers().as_ref().unwrap()), expected);
    assert_eq!(stored[1].data, b"");
    publisher.close().await;
}

/// lapin hands a message that came back to whatever is confirmed next, in particular where several are
/// confirmed at once: here many calls share a channel, and every third message has no queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_that_comes_back_is_known_and_no_other_is_taken_for_it() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let queue = rabbit.transient_queue().await;
    let nowhere = format!("test.nowhere.{}", Uuid::now_v7());
    let publisher = publisher(config(&url));
    let calls = (0..20).map(|call| {
        let (publisher, queue, nowhere) = (Arc::clone(&publisher), queue.clone(), nowhere.clone());
        tokio::spawn(async move {
            let topic = |i: usize| if i.is_multiple_of(3) { &nowhere } else { &queue };
            let messages = (0..200).map(|i| message(topic(i), &format!("{call}-{i}"), "{}")).collect();
            publish(&publisher, messages, TIMEOUT).await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        for (i, result) in call.await.unwrap().into_iter().enumerate() {
            let result = result.unwrap();
            if i.is_multiple_of(3) {
                let expected = ("NO_ROUTE".to_owned(), Unavailable, Scope::Destination, Stored::No);
                assert_eq!(brief(result), expected);
            } else {
                assert_eq!(result, Ok(()));
            }
        }
    }
    assert_eq!(rabbit.take(&queue).await.len(), 20 * 133);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_message_has_done_is_its_own() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let queue = rabbit.queue(&[]).await;
    let publisher = publisher(config(&url).payload_bytes_max(100_000).exchange_from_topic());
    let well = format!("/{queue}");
    let with = |name: &str| {
        let mut message = message(&well, "h", "{}");
        message.event.headers.insert(name.to_owned(), "x".repeat(200_000));
        message
    };
    let nowhere = format!("test.nowhere.{}", Uuid::now_v7());
    let cases = [
        (message(&well, "1", vec![b'x'; 100_001]), "PayloadTooLarge", Permanent, Scope::Message),
        (message(&format!("{nowhere}/key"), "2", "{}"), "NOT_FOUND", Unavailable, Scope::Destination),
        (message(&format!("/{nowhere}"), "3", "{}"), "NO_ROUTE", Unavailable, Scope::Destination),
        (message(&format!("/{}", "x".repeat(256)), "4", "{}"), "InvalidTopic", Permanent, Scope::Message),
        (with("large"), "HeadersTooLarge", Permanent, Scope::Message),
        (with("CC"), "InvalidHeader", Permanent, Scope::Message),
        (with(&"n".repeat(256)), "InvalidHeader", Permanent, Scope::Message),
    ];
    let mut messages = Vec::new();
    for (message_, ..) in &cases {
        messages.push(message_.clone());
        messages.push(message(&well, "well", "{}"));
    }
    let mut results = publish(&publisher, messages, TIMEOUT).await.into_iter();
    for (_, code, kind, scope) in &cases {
        let refused = results.next().unwrap().unwrap();
        assert_eq!(brief(refused), ((*code).to_owned(), *kind, *scope, Stored::No));
        assert_eq!(results.next().unwrap(), Some(Ok(())), "beside {code}");
    }
    assert_eq!(rabbit.take(&queue).await.len(), cases.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_finds_too_large_is_known_when_it_is_alone() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let queue = rabbit.queue(&[]).await;
    let publisher = publisher(config(&url).payload_bytes_max(64 * 1024 * 1024));
    // The test's broker takes 16 MiB.
    let large = message(&queue, "large", vec![b'x'; 16 * 1024 * 1024 + 1]);
    let refused = ("PRECONDITION_FAILED".to_owned(), Permanent, Scope::Batch, Stored::Unknown);
    // Together with others, it is not known which one it was.
    let others = [message(&queue, "1", "{}"), message(&queue, "2", "{}")];
    let together = vec![others[0].clone(), large.clone(), others[1].clone()];
    let mut results = publish(&publisher, together, TIMEOUT).await;
    assert_eq!(brief(results.remove(1).unwrap()), refused);
    for (other, result) in others.into_iter().zip(results) {
        if let Err(error) = result.unwrap() {
            assert_eq!(brief(Err(error)), refused);
            assert_eq!(publish_one(&publisher, other).await, Ok(()));
        }
    }
    assert_eq!(brief(publish_one(&publisher, large).await), refused);
    assert_eq!(publish_one(&publisher, message(&queue, "3", "{}")).await, Ok(()));
    let stored = rabbit.take(&queue).await;
    assert!(stored.len() >= 3 && stored.iter().all(|message| message.data == b"{}"), "{}", stored.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full_refuses_until_there_is_room() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    for kind in ["classic", "quorum"] {
        let queue = rabbit
            .queue(&[
                ("x-queue-type", AMQPValue::LongString(kind.into())),
                ("x-max-length", AMQPValue::LongInt(1)),
                ("x-overflow", AMQPValue::LongString("reject-publish".into())),
            ])
            .await;
        let publisher = publisher(config(&url));
        // A quorum queue notices that it is full a little late.
        let mut refused = Ok(());
        for _ in 0..100 {
            refused = publish_one(&publisher, message(&queue, "1", "{}")).await;
            if refused.is_err() {
                break;
            }
        }
        assert_eq!(brief(refused), ("NACK".to_owned(), Transient, Scope::Message, Stored::Unknown), "{kind}");
        assert!(!rabbit.take(&queue).await.is_empty());
        let room = async { while publish_one(&publisher, message(&queue, "2", "{}")).await.is_err() {} };
        tokio::time::timeout(TIMEOUT, room).await.expect("room");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_declared_is_made_and_made_again_and_an_exchange_that_goes_takes_nobody_along() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let (exchange, classic, quorum) = (rabbit.name(), rabbit.name(), rabbit.name());
    let other = rabbit.queue(&[]).await;
    let publisher = publisher(
        config(&url)
            .exchange_from_topic()
            .declare_exchange(&exchange, ExchangeKind::Topic)
            .declare_queue(&classic, QueueKind::Classic)
            .declare_queue(&quorum, QueueKind::Quorum)
            .declare_binding(&classic, &exchange, "order.*")
            .declare_binding(&quorum, &exchange, "#"),
    );
    let topic = format!("{exchange}/order.placed");
    assert_eq!(publish_one(&publisher, message(&topic, "1", "{}")).await, Ok(()));
    assert_eq!(publish_one(&publisher, message(&format!("{exchange}/other"), "1", "{}")).await, Ok(()));
    assert_eq!((rabbit.take(&classic).await.len(), rabbit.take(&quorum).await.len()), (1, 2));

    let delete = ExchangeDeleteOptions::default();
    rabbit.channel.exchange_delete(exchange.as_str().into(), delete).await.unwrap();
    let messages = vec![message(&topic, "1", "{}"), message(&format!("/{other}"), "2", "{}")];
    let mut results = publish(&publisher, messages, TIMEOUT).await;
    assert_eq!(results.pop().unwrap(), Some(Ok(())), "its channel is another");
    let gone = results.pop().unwrap().unwrap();
    assert_eq!(brief(gone), ("NOT_FOUND".to_owned(), Unavailable, Scope::Destination, Stored::Unknown));
    assert_eq!(publish_one(&publisher, message(&topic, "1", "{}")).await, Ok(()), "it was made again");
    assert_eq!(rabbit.take(&classic).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_what_is_wrong_and_creates_nothing() {
    let Some(url) = url() else { return };
    let rabbit = Rabbit::connect(&url).await;
    let queue = rabbit.queue(&[]).await;
    let missing = format!("test.{}", Uuid::now_v7());
    let by_default = publisher(config(&url));
    assert!(by_default.check(&[]).await.is_empty());
    for _ in 0..2 {
        let topics = [queue.clone(), missing.clone(), "x".repeat(256)];
        let findings = by_default.check(&topics).await;
        let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["unknown-topic", "invalid-topic"], "{findings:?}");
        assert!(findings[0].problem.contains(&format!("queue {missing:?}")), "{findings:?}");
    }
    let findings = publisher(config(&url).exchange(&missing)).check(&["key".to_owned()]).await;
    assert!(findings[0].problem.contains(&format!("exchange {missing:?}")), "{findings:?}");
    assert!(publisher(config(&url).exchange("amq.topic")).check(&["key".to_owned()]).await.is_empty());
    let refused = publisher(config(&url).declare_exchange("amq.mine", ExchangeKind::Topic)).check(&[]).await;
    assert_eq!(refused[0].code, "not-declared", "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_is_a_finding_and_the_brokers_error_and_never_shown() {
    let Some(url) = url() else { return };
    for (wrong, code) in [
        (url.replace("outbox:outbox@", "outbox:hunter2@"), "ACCESS_REFUSED"),
        (url.replace("%2f", "hunter2"), "NOT_ALLOWED"),
    ] {
        let publisher = publisher(config(&wrong));
        let findings = publisher.check(&[]).await;
        assert_eq!(findings[0].code, "login-refused", "{findings:?}");
        let messages = vec![message("a", "1", "{}")];
        let error = publish(&publisher, messages, Duration::from_secs(1)).await.remove(0).unwrap();
        if code == "ACCESS_REFUSED" {
            let text = format!("{error:?} {findings:?} {publisher:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(brief(error), (code.to_owned(), Unavailable, Scope::Broker, Stored::No));
    }
}
