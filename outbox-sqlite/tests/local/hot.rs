//! A relay on a file in which one aggregate has a long backlog.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::FuturesUnordered};
use outbox_core::{
    Finding, Publisher, Relay, RelayConfig,
    publisher::{Message, Reporter},
};
use outbox_sqlite::SqliteOutbox;
use tokio::sync::watch;

use crate::common::{TestDatabase, event};

const HOT: usize = 50_000;
const OTHERS: usize = 500;

/// Acknowledges nothing of the hot aggregate before every event of the others has come.
struct OthersFirst {
    delivered: Mutex<Vec<Arc<Message>>>,
    others: watch::Sender<usize>,
}

impl OthersFirst {
    async fn send(&self, message: &Arc<Message>) {
        let is_hot = message.key.aggregate_id() == "hot";
        if is_hot {
            let all = self.others.subscribe().wait_for(|others| *others == OTHERS).await.is_ok();
            assert!(all, "the sender lives as long as this does");
        }
        self.delivered.lock().unwrap().push(Arc::clone(message));
        if !is_hot {
            self.others.send_modify(|others| *others += 1);
        }
    }
}

#[async_trait]
impl Publisher for OthersFirst {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, _timeout: Duration, reporter: Reporter) {
        let mut sends: FuturesUnordered<_> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| async move {
                self.send(message).await;
                index
            })
            .collect();
        while let Some(index) = sends.next().await {
            reporter.report(index, Ok(()));
        }
    }
}

/// Were the buffer filled with the hot aggregate, nothing would be acknowledged at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_delivered_before_a_hot_aggregate_is_through() {
    let database = TestDatabase::new();
    let mut connection = database.connect();
    let transaction = connection.transaction().unwrap();
    let outbox = SqliteOutbox::new(&database.config);
    let hot = vec!["hot".to_owned(); HOT];
    let others = (0..OTHERS).map(|n| format!("other {}", n % 100));
    for id in hot.into_iter().chain(others) {
        outbox.enqueue(&transaction, &event(&id)).unwrap();
    }
    transaction.commit().unwrap();

    let publisher = Arc::new(OthersFirst { delivered: Mutex::default(), others: watch::channel(0).0 });
    let config = RelayConfig::default()
        .with_buffer_events_max(256)
        .with_in_flight_max(128)
        .with_fetch_events_max(128)
        // A test machine may be slow, and an outcome that is unknown would be tried again.
        .with_publish_timeout(Duration::from_secs(120))
        .with_lease_ttl(Duration::from_secs(300));
    let relay = Relay::new(database.store(), publisher.clone(), config).unwrap();
    let mut handle = relay.handle();
    let running = tokio::spawn(relay.run());
    let caught_up = tokio::time::timeout(Duration::from_secs(180), handle.caught_up()).await;
    let status = caught_up.unwrap_or_else(|_| panic!("not through: {:?}", handle.status())).unwrap();
    handle.shutdown();
    running.await.unwrap();

    assert_eq!((status.sent, status.retried), ((HOT + OTHERS) as u64, 0));
    let delivered = publisher.delivered.lock().unwrap();
    assert_eq!(delivered.len(), HOT + OTHERS, "each once");
    let mut last = std::collections::HashMap::new();
    for message in delivered.iter() {
        let before = last.insert(&message.key, message.sequence).unwrap_or(0);
        assert!(before < message.sequence, "{} of {} after {before}", message.sequence, message.key);
    }
}
