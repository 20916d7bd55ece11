//! `[publisher]`: where the messages go.

use std::{path::PathBuf, time::Duration};

use super::{
    Needs, nats, rabbitmq,
    reader::Reader,
    store::{path_of, scheme_problem},
};

pub(super) const URL: &str = "publisher.url";

const URL_REMEDY: &str = "give \"kafka://host:port,host:port\", \"amqp://user:password@host:port/vhost\", \
                          \"nats://host:port,host:port\", \"stdout:\" or \"file:path\"";

/// The publisher, by kind.
#[derive(Debug, Clone)]
pub(crate) enum PublisherConfig {
    #[cfg(feature = "kafka")]
    Kafka {
        config: outbox_kafka::KafkaConfig,
        /// The brokers, which hold no secret.
        brokers: String,
    },
    #[cfg(feature = "rabbitmq")]
    RabbitMq {
        config: Box<outbox_rabbitmq::RabbitMqConfig>,
        /// The URL without its password and its parameters.
        shown: String,
    },
    #[cfg(feature = "nats")]
    Nats {
        config: Box<outbox_nats::NatsConfig>,
        /// The servers without their passwords.
        shown: String,
    },
    /// JSON lines to the standard output.
    Stdout,
    /// JSON lines to a file; `sync` before a message counts as sent.
    File { path: PathBuf, sync: bool },
}

/// `[publisher.kafka]`, before it is known whether Kafka is meant.
#[cfg_attr(
    not(feature = "kafka"),
    allow(dead_code, reason = "it is read all the same, so that it is checked")
)]
struct KafkaSettings {
    delivery_timeout: Option<Duration>,
    linger: Option<Duration>,
    in_flight_max: Option<u32>,
    key: KafkaKey,
    properties: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Copy)]
enum KafkaKey {
    AggregateId,
    Aggregate,
}

/// Properties of librdkafka whose own names end like a variable that names a file with the value.
const FILE_PROPERTIES: [&str; 2] =
    ["sasl.oauthbearer.assertion.private.key.file", "sasl.oauthbearer.assertion.jwt.template.file"];

pub(super) fn read(reader: &mut Reader, publish_timeout: Duration, needs: Needs) -> Option<PublisherConfig> {
    let url = reader.text(URL);
    let mut sync = true;
    reader.boolean("publisher.file.sync", &mut sync);
    let kafka = read_kafka(reader);
    let rabbitmq = rabbitmq::read(reader);
    let nats = nats::read(reader);
    let Some(url) = url else {
        if needs == Needs::StoreAndPublisher {
            reader.missing(URL, URL_REMEDY);
        }
        return None;
    };
    if let Some(brokers) = url.strip_prefix("kafka://") {
        return to_kafka(reader, brokers, kafka, publish_timeout);
    }
    if url.starts_with("amqp://") || url.starts_with("amqps://") {
        return rabbitmq::to_rabbitmq(reader, &url, &rabbitmq);
    }
    if url.starts_with("nats://") || url.starts_with("tls://") {
        return nats::to_nats(reader, &url, &nats);
    }
    if url == "stdout:" {
        return Some(PublisherConfig::Stdout);
    }
    match url.strip_prefix("file:").map(path_of) {
        Some(path) if !path.as_os_str().is_empty() => Some(PublisherConfig::File { path, sync }),
        Some(_) => {
            reader.problem(URL, "names no file", "give \"file:path\"");
            None
        }
        None => {
            reader.problem(URL, &scheme_problem(&url), URL_REMEDY);
            None
        }
    }
}

fn read_kafka(reader: &mut Reader) -> KafkaSettings {
    let mut kafka = KafkaSettings {
        delivery_timeout: None,
        linger: None,
        in_flight_max: None,
        key: KafkaKey::AggregateId,
        properties: Default::default(),
    };
    let time = |text: &str| humantime::parse_duration(text).ok().map(Some);
    let duration = super::reader::DURATION;
    reader.read("publisher.kafka.delivery_timeout", duration, &mut kafka.delivery_timeout, time);
    reader.read("publisher.kafka.linger", duration, &mut kafka.linger, time);
    let accepted = "a whole number from 1 to 5";
    reader.read_integer("publisher.kafka.in_flight_max", accepted, &mut kafka.in_flight_max, |text| {
        super::reader::parse_integer(text)?.try_into().ok().map(Some)
    });
    let words = [("aggregate_id", KafkaKey::AggregateId), ("aggregate", KafkaKey::Aggregate)];
    reader.word("publisher.kafka.key", &words, &mut kafka.key);
    kafka.properties = reader.rest_of("publisher.kafka", &FILE_PROPERTIES);
    kafka
}

/// How much earlier than the relay the producer gives a message up. librdkafka looks for messages whose time is over
/// once a second, and the relay ends a call that is not over by then: it would take a broker that is away for a message
/// that failed, spend an attempt, and replace the producer.
#[cfg(feature = "kafka")]
const DELIVERY_MARGIN: Duration = Duration::from_millis(1500);

#[cfg(feature = "kafka")]
fn delivery_timeout_max(publish_timeout: Duration) -> Duration {
    publish_timeout.saturating_sub(DELIVERY_MARGIN).max(publish_timeout / 2)
}

#[cfg(feature = "kafka")]
fn to_kafka(
    reader: &mut Reader,
    brokers: &str,
    settings: KafkaSettings,
    publish_timeout: Duration,
) -> Option<PublisherConfig> {
    use outbox_kafka::KafkaConfig;

    if brokers.contains('@') {
        let remedy = "give sasl.username and sasl.password in [publisher.kafka], or by \
                      OUTBOX_PUBLISHER_KAFKA_SASL_USERNAME and OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD";
        reader.problem(URL, "has a user, which the addresses of brokers have not", remedy);
        return None;
    }
    if brokers.contains(['/', '?']) {
        let remedy = "give \"kafka://host:port,host:port\"; the topic is relay.topic, and properties stand in \
                      [publisher.kafka]";
        reader.problem(URL, "has more than the addresses of brokers", remedy);
        return None;
    }
    let delivery_timeout_max = delivery_timeout_max(publish_timeout);
    let delivery_timeout = settings.delivery_timeout.unwrap_or(delivery_timeout_max);
    if delivery_timeout > delivery_timeout_max {
        let what = format!(
            "is above {delivery_timeout_max:?}, which relay.publish_timeout, {publish_timeout:?}, leaves for it"
        );
        reader.problem(
            "publisher.kafka.delivery_timeout",
            &what,
            "leave it out, or raise relay.publish_timeout",
        );
    }
    let key = match settings.key {
        KafkaKey::AggregateId => outbox_kafka::KafkaKey::AggregateId,
        KafkaKey::Aggregate => outbox_kafka::KafkaKey::Aggregate,
    };
    let mut builder = KafkaConfig::builder(brokers).key(key).delivery_timeout(delivery_timeout);
    if let Some(linger) = settings.linger {
        builder = builder.linger(linger);
    }
    if let Some(requests) = settings.in_flight_max {
        builder = builder.in_flight_max(requests);
    }
    for (name, value) in settings.properties {
        builder = builder.property(name, value);
    }
    match builder.build() {
        Ok(config) => Some(PublisherConfig::Kafka { config, brokers: brokers.to_owned() }),
        Err(error) => {
            error.problems().iter().for_each(|problem| report(reader, problem));
            None
        }
    }
}

/// What the adapter says of one of its settings, which it names first.
#[cfg(feature = "kafka")]
fn report(reader: &mut Reader, problem: &str) {
    use outbox_core::Finding;

    use super::{reader::variable, store::refused};

    let keys = [
        ("brokers", URL),
        ("delivery_timeout", "publisher.kafka.delivery_timeout"),
        ("linger", "publisher.kafka.linger"),
        ("in_flight_max", "publisher.kafka.in_flight_max"),
    ];
    let key = keys.iter().find(|(option, _)| problem.starts_with(option));
    match (key, problem.strip_prefix("property ")) {
        (Some((_, key)), _) => refused(reader, key, problem),
        (None, Some(property)) => {
            let name = property.split_whitespace().next().unwrap_or_default();
            let key = format!("publisher.kafka.{name}");
            let (what, remedy) = problem.split_once(": ").unwrap_or((problem, "correct it"));
            let problem = format!("{key}{} is refused: {what}", reader.origin(&key));
            let remedy = format!("{remedy}; change it in the file or by {}", variable(&key));
            reader.finding(Finding::error("kafka-property", problem, remedy));
        }
        (None, None) => refused(reader, URL, problem),
    }
}

#[cfg(not(feature = "kafka"))]
fn to_kafka(reader: &mut Reader, _: &str, _: KafkaSettings, _: Duration) -> Option<PublisherConfig> {
    super::store::not_compiled_in(reader, URL, "Kafka", "kafka");
    None
}
