//! Kafka by URL and settings: [`KafkaAdapter`].

use std::{sync::Arc, time::Duration};

use outbox_core::{
    ConfigError, Finding, Publisher, RelayConfig,
    settings::{Adapter, ConfiguredPublisher, Problem, PublisherAdapter, URL, Values},
};

use crate::{KafkaConfig, KafkaKey, KafkaPublisher, config::SETTINGS};

/// Configures a [`KafkaPublisher`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct KafkaAdapter;

const ADAPTER: Adapter = Adapter::new(
    "kafka",
    "Kafka",
    &[SCHEME],
    "kafka://host:port,host:port",
    "Kafka: idempotent, acknowledged by all in-sync replicas.",
)
.settings(SETTINGS)
.log("librdkafka=error");

const SCHEME: &str = "kafka://";

/// How much earlier than the relay the producer gives a message up. librdkafka looks for messages whose time
/// is over once a second, and the relay ends a call that is not over by then: it would take a broker that is
/// away for a message that failed, spend an attempt, and replace the producer.
const DELIVERY_MARGIN: Duration = Duration::from_millis(1500);

impl PublisherAdapter for KafkaAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError> {
        let brokers = url.strip_prefix(SCHEME).unwrap_or(url);
        let mut problems = Vec::from_iter(more_than_brokers(brokers));
        let delivery_timeout_max = delivery_timeout_max(relay.publish_timeout);
        let delivery_timeout = values.duration("delivery_timeout").unwrap_or(delivery_timeout_max);
        if delivery_timeout > delivery_timeout_max {
            let what = format!(
                "is {delivery_timeout:?}, above {delivery_timeout_max:?}, which \
                 relay.publish_timeout, {:?}, leaves for it",
                relay.publish_timeout
            );
            problems.push(Problem::new(
                "delivery_timeout",
                what,
                "leave it out, or raise relay.publish_timeout",
            ));
        }
        let key = match values.text("key") {
            Some("aggregate") => KafkaKey::Aggregate,
            _ => KafkaKey::AggregateId,
        };
        let mut builder = KafkaConfig::builder(brokers).key(key).delivery_timeout(delivery_timeout);
        if let Some(linger) = values.duration("linger") {
            builder = builder.linger(linger);
        }
        if let Some(requests) = values.integer("in_flight_max") {
            builder = builder.in_flight_max(requests);
        }
        for (name, value) in values.rest() {
            builder = builder.property(name, value);
        }
        let built = builder.build().map_err(|error| error.renamed(&[("brokers", URL)]));
        let config = ConfigError::join(problems, built)?;
        Ok(Arc::new(Configured { config, brokers: brokers.to_owned() }))
    }
}

/// librdkafka takes whatever it does not understand of an address for a part of a host's name.
fn more_than_brokers(brokers: &str) -> Option<Problem> {
    if brokers.contains('@') {
        let remedy = "give sasl.username and sasl.password in [publisher.kafka], or by \
                      OUTBOX_PUBLISHER_KAFKA_SASL_USERNAME and OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD";
        return Some(Problem::new(URL, "has a user, which the addresses of brokers have not", remedy));
    }
    brokers.contains(['/', '?']).then(|| {
        let remedy = "give \"kafka://host:port,host:port\"; the topic is relay.topic, and properties stand in \
                      [publisher.kafka]";
        Problem::new(URL, "has more than the addresses of brokers", remedy)
    })
}

fn delivery_timeout_max(publish_timeout: Duration) -> Duration {
    publish_timeout.saturating_sub(DELIVERY_MARGIN).max(publish_timeout / 2)
}

#[derive(Debug)]
struct Configured {
    config: KafkaConfig,
    brokers: String,
}

impl ConfiguredPublisher for Configured {
    fn shown(&self) -> String {
        format!("{SCHEME}{}", self.brokers)
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        match KafkaPublisher::new(self.config.clone()) {
            Ok(publisher) => Ok(Arc::new(publisher)),
            Err(error) => {
                let finding = |problem: &Problem| {
                    Finding::error("kafka", format!("{} {}", problem.setting, problem.what), &*problem.remedy)
                };
                Err(error.problems().iter().map(finding).collect())
            }
        }
    }
}
