//! A server that crashes and comes back.

use std::{sync::Arc, time::Duration};

use outbox_core::{
    Publisher,
    publisher::{PublishErrorKind::Unavailable, PublishErrorScope as Scope, Reporter, Stored},
};
use tokio::sync::mpsc;

use crate::{
    common::{Nats, TIMEOUT, brief, config, message, publish, publish_one, publisher, url},
    own::Own,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_is_unavailable_and_what_it_acknowledged_is_there_when_it_is_back() {
    let Some(server) = url().and_then(|_| Own::start()) else { return };
    let nats = Nats::connect(&server.url()).await;
    let subject = nats.stream(|_| {}).await;
    let publisher = publisher(config(&server.url()));
    let first = message(&subject, "1", "{}");
    let mut acknowledged = vec![first.event.id.to_string()];
    assert_eq!(publish_one(&publisher, first).await, Ok(()));

    // In the middle of a call: whatever it says is true.
    let (sender, mut reports) = mpsc::unbounded_channel();
    let messages: Vec<_> = (0..2000).map(|i| Arc::new(message(&subject, &i.to_string(), "{}"))).collect();
    let call = tokio::spawn({
        let (publisher, messages) = (Arc::clone(&publisher), messages.clone());
        async move { publisher.publish(messages, TIMEOUT, Reporter::new(1, sender)).await }
    });
    let mut reported = 0;
    let mut take = |report: outbox_core::publisher::Report| {
        reported += 1;
        match report.result {
            Ok(()) => acknowledged.push(messages[report.index as usize].event.id.to_string()),
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

    let gone = publish(&publisher, vec![message(&subject, "2", "{}")], Duration::from_secs(1)).await;
    let (_, kind, scope, stored_) = brief(gone.into_iter().next().unwrap().unwrap());
    assert_eq!((kind, scope, stored_), (Unavailable, Scope::Broker, Stored::No));
    assert_eq!(publisher.check(&[]).await[0].code, "broker-unreachable");

    // A call that waits for a connection goes on when there is one.
    let waiting = message(&subject, "3", "{}");
    let id = waiting.event.id.to_string();
    let call = tokio::spawn({
        let publisher = Arc::clone(&publisher);
        async move { publish_one(&publisher, waiting).await }
    });
    server.up();
    // The server answers before it has loaded its streams.
    if let Err(error) = call.await.unwrap() {
        assert_eq!(error.code, "StreamNotFound");
        let again = async { while publish_one(&publisher, message(&subject, "4", "{}")).await.is_err() {} };
        tokio::time::timeout(TIMEOUT, again).await.expect("the stream is back");
    } else {
        acknowledged.push(id);
    }
    let ids: Vec<_> = Nats::connect(&server.url())
        .await
        .stored(&subject)
        .await
        .iter()
        .map(|message| message.headers.get("ce-id").unwrap().to_string())
        .collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
    let once: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(once.len(), ids.len(), "the stream drops duplicates");
}
