//! What would keep messages from their topics, found out before the first one is sent.

use std::{collections::HashMap, time::Duration};

use outbox_core::Finding;
use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::Client,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult},
    metadata::MetadataTopic,
    types::{RDKafkaErrorCode as Code, RDKafkaType},
};

use crate::KafkaConfig;

/// How long a broker may take to answer one question. Longer than a connection attempt may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Looks at the cluster and the topics. `heard` is the producer's last error, which often says why a cluster
/// cannot be reached.
pub(crate) async fn check(config: &KafkaConfig, topics: &[String], heard: Option<String>) -> Vec<Finding> {
    let (asked, names) = (config.clone(), topics.to_vec());
    let looked = tokio::task::spawn_blocking(move || look(&asked, &names)).await;
    let Ok(Ok((mut findings, present))) = looked else {
        let problem = match looked {
            Ok(Err(error)) => error.to_string(),
            _ => "the check was interrupted".to_owned(),
        };
        let heard = heard.map(|heard| format!(" ({heard})")).unwrap_or_default();
        return vec![Finding::error(
            "broker-unreachable",
            format!("kafka does not answer: {problem}{heard}"),
            "check the broker addresses, the network, and the security.protocol, sasl and ssl properties",
        )];
    };
    findings.extend(topic_settings(config, &present).await);
    findings
}

struct Present {
    name: String,
    in_sync_min: usize,
    replicas_min: usize,
}

/// Asks for each topic, as a client of the consumer kind: the question of a producer would create the topic.
fn look(config: &KafkaConfig, topics: &[String]) -> KafkaResult<(Vec<Finding>, Vec<Present>)> {
    let mut connection = config.connection();
    connection.set("allow.auto.create.topics", "false");
    let native = connection.create_native_config()?;
    let client = Client::new(&connection, native, RDKafkaType::RD_KAFKA_CONSUMER, Quiet)?;
    let mut findings = Vec::new();
    let mut present = Vec::new();
    if topics.is_empty() {
        client.fetch_cluster_id(ANSWER_WAIT_MAX).ok_or(KafkaError::MetadataFetch(Code::OperationTimedOut))?;
    }
    for name in topics {
        if let Some(problem) = name_problem(name) {
            findings.push(Finding::error("invalid-topic", problem, "choose another name"));
            continue;
        }
        let metadata = client.fetch_metadata(Some(name), ANSWER_WAIT_MAX)?;
        for topic in metadata.topics() {
            match topic.error().map(Code::from) {
                None => present.push(Present::new(topic)),
                Some(code) => findings.push(topic_finding(name, code, config.creates_topics())),
            }
        }
    }
    Ok((findings, present))
}

impl Present {
    fn new(topic: &MetadataTopic) -> Self {
        let least = |count: fn(&rdkafka::metadata::MetadataPartition) -> usize| {
            topic.partitions().iter().map(count).min().unwrap_or(0)
        };
        Self {
            name: topic.name().to_owned(),
            in_sync_min: least(|partition| partition.isr().len()),
            replicas_min: least(|partition| partition.replicas().len()),
        }
    }
}

/// Kafka's own rule for topic names (`org.apache.kafka.common.internals.Topic`), which not every broker
/// states.
pub(crate) fn name_problem(name: &str) -> Option<String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let wrong =
        name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(legal);
    wrong.then(|| {
        format!(
            "{name:?} is not a valid Kafka topic name: use 1 to 249 letters, digits, \".\", \"_\" or \"-\""
        )
    })
}

fn topic_finding(name: &str, code: Code, created_by_broker: bool) -> Finding {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic if created_by_broker => Finding::warning(
            "unknown-topic",
            format!("kafka has no topic {name:?}"),
            "create it (kafka-topics.sh --create), or see that the brokers may: they do so for the first message, with \
             their own defaults",
        ),
        Code::UnknownTopicOrPartition | Code::UnknownTopic => Finding::error(
            "unknown-topic",
            format!("kafka has no topic {name:?}"),
            "create it (kafka-topics.sh --create), or correct the name: its messages wait until then",
        ),
        Code::TopicAuthorizationFailed => Finding::error(
            "topic-denied",
            format!("kafka refuses access to topic {name:?}"),
            "grant WRITE and DESCRIBE on it to the publisher's user",
        ),
        code => Finding::error(
            "topic-unavailable",
            format!("kafka cannot serve topic {name:?}: {code}"),
            "see the brokers' logs",
        ),
    }
}

/// Looks at settings that only some users may see. Those that cannot be seen are not a finding.
async fn topic_settings(config: &KafkaConfig, present: &[Present]) -> Vec<Finding> {
    let Ok(admin) = AdminClient::from_config_and_context(&config.connection(), Quiet) else {
        return Vec::new();
    };
    let resources: Vec<_> = present.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_WAIT_MAX));
    let described = if resources.is_empty() {
        Vec::new()
    } else {
        admin.describe_configs(&resources, &options).await.unwrap_or_default()
    };
    let mut findings = Vec::new();
    for (topic, described) in present.iter().zip(described) {
        let Ok(described) = described else { continue };
        let numbers: HashMap<&str, usize> = described
            .entries
            .iter()
            .filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?.parse().ok()?)))
            .collect();
        findings.extend(settings_findings(config, topic, &numbers));
    }
    // Ends librdkafka's threads, which blocks.
    drop(tokio::task::spawn_blocking(move || drop(admin)));
    findings
}

fn settings_findings(config: &KafkaConfig, topic: &Present, numbers: &HashMap<&str, usize>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = &topic.name;
    if let Some(&required) = numbers.get("min.insync.replicas") {
        // A topic with fewer replicas than that asks for no more than it has; brokers before 4.0 refuse
        // instead.
        if topic.in_sync_min < required.min(topic.replicas_min) {
            findings.push(Finding::error(
                "not-enough-replicas",
                format!(
                    "topic {name:?} has a partition with {} in-sync replicas and needs {required} to accept messages",
                    topic.in_sync_min
                ),
                "bring the missing brokers back, or add replicas",
            ));
        }
        if required < 2 || topic.replicas_min < 2 {
            findings.push(Finding::warning(
                "single-copy",
                format!(
                    "an acknowledged message of topic {name:?} may be on one broker only (min.insync.replicas is \
                     {required}, replicas {})",
                    topic.replicas_min
                ),
                "use three replicas and min.insync.replicas=2 where a lost disk must lose no message",
            ));
        }
    }
    let (limit, batch) = (numbers.get("max.message.bytes"), config.batch_bytes());
    if let (Some(&limit), Some(batch)) = (limit, batch)
        && limit < batch
    {
        findings.push(Finding::warning(
            "batch-too-large",
            format!("topic {name:?} takes {limit} bytes at once (max.message.bytes), and batch.size is {batch}"),
            "lower batch.size to that, or raise max.message.bytes, or batches of small messages are refused whole",
        ));
    }
    findings
}

/// A context that keeps its errors to itself: they come back as results.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(target: "librdkafka", facility, "{text}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(topic: &Present, numbers: &[(&'static str, usize)]) -> Vec<&'static str> {
        let config = KafkaConfig::builder("a:1").build().unwrap();
        let numbers = numbers.iter().copied().collect();
        settings_findings(&config, topic, &numbers).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn settings_that_break_or_weaken_something_are_named() {
        let topic = |in_sync_min, replicas_min| Present { name: "t".to_owned(), in_sync_min, replicas_min };
        let sound = [("min.insync.replicas", 2), ("max.message.bytes", 1_048_588)];
        assert!(codes(&topic(3, 3), &sound).is_empty());
        assert_eq!(codes(&topic(1, 3), &sound), ["not-enough-replicas"]);
        assert_eq!(codes(&topic(3, 3), &[("min.insync.replicas", 1)]), ["single-copy"]);
        assert_eq!(codes(&topic(1, 1), &sound), ["single-copy"]);
        assert_eq!(codes(&topic(3, 3), &[("max.message.bytes", 100_000)]), ["batch-too-large"]);
        assert!(codes(&topic(1, 1), &[]).is_empty(), "a setting that cannot be seen is not a finding");
    }

    #[test]
    fn names_that_no_topic_can_have_are_known_without_asking() {
        for name in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(250)] {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
        for name in ["orders", "Shop.orders_v1-x", &"x".repeat(249)] {
            assert!(name_problem(name).is_none(), "{name:?}");
        }
    }
}
