//! The relay: publishes what the order service has committed. It is the engine as a process of its own; the
//! `outbox` program, with the same settings in a file, would do as well.

use std::{future::Future, sync::Arc, time::Duration};

use outbox::{
    Relay, RelayConfig, RelayHandle, Severity,
    postgres::{PostgresConfig, PostgresStore},
};

use crate::{broker::Broker, error::Error};

/// The CloudEvents `source` of every event.
const SOURCE: &str = "/order-service";

/// Publishes until `ended`, and lets what is in flight finish.
pub(crate) async fn run(
    database_url: &str,
    broker: &Broker,
    ended: impl Future<Output = ()>,
) -> Result<(), Error> {
    let store = PostgresStore::connect_lazy(&PostgresConfig::builder().url(database_url).build()?).await?;
    let relay = Relay::new(store, broker.publisher()?, config(broker)?)?;
    // Whatever would break a promise is named here, with its remedy: a missing topic, an old schema, a read
    // replica.
    let findings = relay.check().await;
    findings.iter().for_each(|finding| println!("{finding}"));
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err("the relay cannot work: see above".into());
    }
    let narrator = tokio::spawn(narrate(relay.handle()));
    relay.run_until(ended).await;
    Ok(narrator.await?)
}

fn config(broker: &Broker) -> Result<RelayConfig, Error> {
    Ok(RelayConfig::default()
        .with_topic(broker.topic.parse()?)
        .with_source(Arc::from(SOURCE))
        // A relay that is killed keeps its orders back for this long, then another takes over. The default is
        // 15 s; the reader of this example is less patient.
        .with_lease_ttl(Duration::from_secs(4))
        .with_beat_interval(Duration::from_millis(500))
        .with_publish_timeout(Duration::from_secs(2))
        .with_lease_margin(Duration::from_millis(500))
        // The most that a kill can duplicate.
        .with_in_flight_max(64))
}

/// Tells what changes, until the relay has ended.
async fn narrate(mut handle: RelayHandle) {
    let (mut partitions, mut sent) = (0, 0);
    loop {
        let changed = |status: &outbox::RelayStatus| status.partitions != partitions || status.sent != sent;
        let Ok(status) = handle.wait_for(changed).await else {
            return println!("ended with nothing in flight");
        };
        if status.partitions != partitions {
            println!("owns {} of 64 partitions", status.partitions);
        }
        if status.sent != sent {
            println!("{} events sent", status.sent);
        }
        (partitions, sent) = (status.partitions, status.sent);
    }
}
