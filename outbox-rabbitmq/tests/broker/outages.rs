//! A broker that crashes and comes back, or takes nothing for a while.

use std::{sync::Arc, time::Duration};

use lapin::types::AMQPValue;
use outbox_core::{
    Publisher,
    publisher::{Message, PublishErrorKind::Unavailable, PublishErrorScope as Scope, Reporter, Stored},
};
use outbox_rabbitmq::RabbitMqPublisher;
use tokio::sync::mpsc;

use crate::{
    common::{Rabbit, TIMEOUT, brief, config, message, publish, publish_one, publisher, url},
    own::Own,
};

/// Publishes until it succeeds, each time for as long as a relay would: a broker that is just coming back may
/// leave one attempt without an answer.
async fn publish_at_last(publisher: &RabbitMqPublisher, message: &Message) {
    let publishing = async {
        loop {
            let messages = vec![message.clone()];
            match publish(publisher, messages, Duration::from_secs(3)).await.remove(0) {
                Some(Ok(())) => return,
                error => eprintln!("not yet: {error:?}"),
            }
        }
    };
    tokio::time::timeout(TIMEOUT, publishing).await.expect("the broker is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_crashes_is_unavailable_and_what_it_confirmed_is_there_when_it_is_back() {
    let Some(server) = url().and_then(|_| Own::start()) else { return };
    let rabbit = Rabbit::connect(&server.url()).await;
    // Not a quorum queue: one that was declared just before a kill is not always whole after it.
    let queue = rabbit.queue(&[]).await;
    let publisher = publisher(config(&server.url()));
    let first = message(&queue, "1", "{}");
    let mut confirmed = vec![first.event.id.to_string()];
    assert_eq!(publish_one(&publisher, first).await, Ok(()));

    // In the middle of a call: whatever it says is true.
    let (sender, mut reports) = mpsc::unbounded_channel();
    let messages: Vec<_> = (0..2000).map(|i| Arc::new(message(&queue, &i.to_string(), "{}"))).collect();
    let call = tokio::spawn({
        let (publisher, messages) = (Arc::clone(&publisher), messages.clone());
        async move { publisher.publish(messages, TIMEOUT, Reporter::new(1, sender)).await }
    });
    let mut reported = 0;
    let mut take = |report: outbox_core::publisher::Report| {
        reported += 1;
        match report.result {
            Ok(()) => confirmed.push(messages[report.index as usize].event.id.to_string()),
            Err(error) => assert_eq!((error.kind, error.scope), (Unavailable, Scope::Broker), "{error:?}"),
        }
    };
    take(reports.recv().await.unwrap());
    server.kill();
    call.await.unwrap();
    while let Ok(report) = reports.try_recv() {
        take(report);
    }
    assert_eq!(reported, 2000);

    let gone = publish(&publisher, vec![message(&queue, "2", "{}")], Duration::from_secs(1)).await;
    let (_, kind, scope, stored) = brief(gone.into_iter().next().unwrap().unwrap());
    assert_eq!((kind, scope, stored), (Unavailable, Scope::Broker, Stored::No));
    assert_eq!(publisher.check(&[]).await[0].code, "broker-unreachable");

    server.up();
    let waiting = message(&queue, "3", "{}");
    publish_at_last(&publisher, &waiting).await;
    confirmed.push(waiting.event.id.to_string());
    let stored = Rabbit::connect(&server.url()).await.take(&queue).await;
    let ids: Vec<_> =
        stored.iter().map(|message| message.properties.message_id().clone().unwrap().to_string()).collect();
    let lost: Vec<_> = confirmed.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "confirmed and not stored: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_an_alarm_is_unavailable_and_gets_nothing_of_it_later() {
    let Some(server) = url().and_then(|_| Own::start()) else { return };
    let rabbit = Rabbit::connect(&server.url()).await;
    let queue = rabbit.queue(&[]).await;
    let publisher = publisher(config(&server.url()));
    assert_eq!(publish_one(&publisher, message(&queue, "1", "{}")).await, Ok(()));

    server.tool(&["set_vm_memory_high_watermark", "0.0000001"]);
    let short = Duration::from_millis(500);
    let mut confirmed = 1;
    let blocked = async {
        loop {
            match publish(&publisher, vec![message(&queue, "1", "{}")], short).await.remove(0).unwrap() {
                Ok(()) => confirmed += 1,
                Err(error) => {
                    assert_eq!((error.kind, error.scope), (Unavailable, Scope::Broker), "{error:?}");
                    if error.code == "ConnectionBlocked" && error.stored == Stored::No {
                        break;
                    }
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, blocked).await.expect("the alarm");
    // While the connection says so, nothing is given to it at all.
    let refused = publish(&publisher, vec![message(&queue, "late", "{}")], short).await.remove(0).unwrap();
    let expected = ("ConnectionBlocked".to_owned(), Unavailable, Scope::Broker, Stored::No);
    assert_eq!(brief(refused), expected);
    assert_eq!(publisher.check(&[]).await[0].code, "broker-blocked");

    server.tool(&["set_vm_memory_high_watermark", "0.4"]);
    let last = message(&queue, "last", "{}");
    publish_at_last(&publisher, &last).await;
    let stored = rabbit.take(&queue).await;
    assert!(stored.len() > confirmed, "{} of {confirmed} and the last", stored.len());
    let subject = AMQPValue::LongString("order/late".into());
    let late = stored.iter().filter(|message| {
        message.properties.headers().as_ref().unwrap().inner().get("cloudEvents:subject") == Some(&subject)
    });
    assert_eq!(late.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_hangs_is_unavailable_and_nothing_else() {
    let Some(server) = url().and_then(|_| Own::start()) else { return };
    let rabbit = Rabbit::connect(&server.url()).await;
    let (hanging, well) = (rabbit.queue(&[]).await, rabbit.queue(&[]).await);
    let of_queue = |call: &str| {
        let find =
            format!("{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{hanging}\">>))");
        server.tool(&["eval", &format!("{find}, sys:{call}(amqqueue:get_pid(Q)).")]);
    };
    of_queue("suspend");
    let publisher = publisher(config(&server.url()));
    // Alone, so that no confirm of another message says that the broker is well.
    let second = Duration::from_secs(1);
    let result = publish(&publisher, vec![message(&hanging, "1", "{}")], second).await.remove(0).unwrap();
    assert_eq!(brief(result), ("TimedOut".to_owned(), Unavailable, Scope::Destination, Stored::Unknown));
    assert_eq!(publish_one(&publisher, message(&well, "2", "{}")).await, Ok(()));
    of_queue("resume");
    assert_eq!(publish_one(&publisher, message(&hanging, "1", "{}")).await, Ok(()));
}
