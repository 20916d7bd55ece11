//! What a publisher needs to know: [`KafkaConfig`].

use std::{collections::BTreeMap, fmt, time::Duration};

use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting},
};
use rdkafka::{ClientConfig, error::KafkaError};

/// The settings that a program which reads some can give: see [`KafkaAdapter`](crate::KafkaAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "key",
        Kind::Choice(&["aggregate_id", "aggregate"]),
        "What becomes the key of a record: \"aggregate_id\", or \"aggregate\" for type/id.",
    )
    .default("aggregate_id"),
    DELIVERY_TIMEOUT,
    LINGER,
    IN_FLIGHT_MAX,
    Setting::new(
        "*",
        Kind::Rest {
            // Their own names end like a variable that names a file with the value.
            file_names: &[
                "sasl.oauthbearer.assertion.private.key.file",
                "sasl.oauthbearer.assertion.jwt.template.file",
            ],
            examples: &[
                "\"security.protocol\" = \"sasl_ssl\"",
                "\"sasl.mechanism\" = \"SCRAM-SHA-512\"",
                "\"sasl.username\" = \"outbox\"",
                "\"compression.type\" = \"lz4\"",
            ],
        },
        "Everything else in this table is a property of librdkafka and is passed on, except those that the guarantees \
         stand on. The variable of sasl.password is OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD.",
    )
    .secret(),
];

const DELIVERY_TIMEOUT: Setting = Setting::new(
    "delivery_timeout",
    Kind::Duration { min: Duration::from_millis(100), max: Duration::from_secs(900) },
    "When librdkafka gives up a message that is not acknowledged. By default, and at most, a second and a half before \
     relay.publish_timeout, or half of that.",
)
.default("3s 500ms");

const LINGER: Setting = Setting::new(
    "linger",
    Kind::TIME_OR_ZERO,
    "How long a message may wait for others to share its request.",
)
.default("0s");

/// Five is the most that idempotence covers.
const IN_FLIGHT_MAX: Setting = Setting::new(
    "in_flight_max",
    Kind::Integer { min: 1, max: 5 },
    "Requests to one broker that are under way at a time.",
)
.default("1")
.unit("requests");

/// Properties that the guarantees stand on, each with what sets it or why it is as it is.
const REFUSED: [(&str, &str); 18] = [
    ("bootstrap.servers", "give the brokers to the builder"),
    ("metadata.broker.list", "give the brokers to the builder"),
    ("enable.idempotence", "it is always on, or a repetition could duplicate and reorder messages"),
    ("acks", "it is always `all`, or an acknowledged message could be lost"),
    ("request.required.acks", "it is always `all`, or an acknowledged message could be lost"),
    ("max.in.flight", "use in_flight_max"),
    ("max.in.flight.requests.per.connection", "use in_flight_max"),
    ("message.timeout.ms", "use delivery_timeout"),
    ("delivery.timeout.ms", "use delivery_timeout"),
    ("linger.ms", "use linger"),
    ("queue.buffering.max.ms", "use linger"),
    ("retries", "the delivery timeout is what ends repetitions"),
    ("message.send.max.retries", "the delivery timeout is what ends repetitions"),
    ("partitioner", "it is always the one of Kafka's Java producer"),
    ("transactional.id", "messages are sent outside transactions"),
    (
        "enable.gapless.guarantee",
        "one message of an aggregate is in flight at a time, so gaps reorder nothing",
    ),
    ("delivery.report.only.error", "every acknowledgement is needed"),
    ("log.queue", "logs go to `tracing`"),
];

/// Defaults that are not librdkafka's own, and that may be replaced.
const DEFAULTS: [(&str, &str); 13] = [
    ("client.id", "outbox"),
    // What Kafka's brokers accept by default, to the byte; librdkafka's own default is 48 kB less.
    ("message.max.bytes", "1048588"),
    // 16 KiB, the Java producer's default, costs the broker four times the CPU.
    ("batch.size", "1000000"),
    // 128 MiB instead of 1 GiB: the relay bounds what is in flight, this bounds what librdkafka keeps of it.
    ("queue.buffering.max.kbytes", "131072"),
    // A broker that has come back is found within a second instead of ten.
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
    // A topic that was created or granted meanwhile is noticed within ten seconds instead of five minutes.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // A mistyped topic is an error, and no new topic with the broker's defaults that is never read.
    // librdkafka asks for topics in the metadata request, and says there whether the broker may make them.
    (CREATES_TOPICS, "false"),
    ("socket.keepalive.enable", "true"),
    ("socket.nagle.disable", "true"),
    // A connection that is not made by then is tried again, instead of after 30 s.
    ("socket.connection.setup.timeout.ms", "5000"),
    ("retry.backoff.ms", "50"),
    ("retry.backoff.max.ms", "500"),
];

const CREATES_TOPICS: &str = "allow.auto.create.topics";

/// A second and a half less than a relay's default publish time-out: librdkafka looks for what has timed out
/// once a second, and a message that it has not given up by then has an unknown outcome.
const DELIVERY_TIMEOUT_DEFAULT: Duration = Duration::from_millis(3_500);
/// What a record may have beside its payload: the event's own headers, at most 16 KiB, and the key, the
/// attributes and the framing of each header, for which 4 KiB are plenty.
const ENVELOPE_BYTES: usize = outbox_core::store::HEADERS_BYTES_MAX + 4 * 1024;

/// What becomes the key of a record.
///
/// Either way all events of one aggregate have the same key, and so are in the same partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KafkaKey {
    /// The aggregate's id, so that the topic joins with others that are keyed by it. Where a *compacted*
    /// topic carries several aggregate types, take [`Aggregate`](Self::Aggregate), or equal ids would replace
    /// each other.
    #[default]
    AggregateId,
    /// `type/id`.
    Aggregate,
}

/// How to reach Kafka, and what to ask of it. Made by [`KafkaConfig::builder`].
#[derive(Clone)]
pub struct KafkaConfig {
    pub(crate) key: KafkaKey,
    pub(crate) delivery_timeout: Duration,
    brokers: String,
    linger: Duration,
    in_flight_max: u32,
    properties: BTreeMap<String, String>,
}

impl KafkaConfig {
    /// Starts a configuration for the cluster that is found through `brokers`: `host:port`, several with
    /// commas.
    pub fn builder(brokers: impl Into<String>) -> KafkaConfigBuilder {
        KafkaConfigBuilder(Self {
            key: KafkaKey::default(),
            delivery_timeout: DELIVERY_TIMEOUT_DEFAULT,
            brokers: brokers.into(),
            linger: Duration::ZERO,
            in_flight_max: 1,
            properties: BTreeMap::new(),
        })
    }

    /// The time after which a message that is not acknowledged counts as failed. The relay's publish timeout
    /// must be longer.
    pub fn delivery_timeout(&self) -> Duration {
        self.delivery_timeout
    }

    /// The largest payload that fits into a message whatever its key and its headers are, in bytes.
    pub(crate) fn payload_bytes_max(&self) -> Option<usize> {
        let message_bytes_max: usize = self.client().get("message.max.bytes")?.parse().ok()?;
        Some(message_bytes_max.saturating_sub(ENVELOPE_BYTES))
    }

    /// Whether brokers may make a topic that a message goes to.
    pub(crate) fn creates_topics(&self) -> bool {
        // As librdkafka reads it.
        let yes = |value: &str| ["true", "t", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes));
        self.client().get(CREATES_TOPICS).is_some_and(yes)
    }

    pub(crate) fn batch_bytes(&self) -> Option<usize> {
        self.client().get("batch.size")?.parse().ok()
    }

    /// The connection alone, for clients that do not produce.
    pub(crate) fn connection(&self) -> ClientConfig {
        let mut client = self.client();
        for (name, _) in DEFAULTS.iter().filter(|(name, _)| PRODUCER_ONLY.contains(name)) {
            client.remove(name);
        }
        client
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        // A topic that has just been created is not everywhere at once; one that is unknown for longer is
        // reported as unknown, which tells more than a message that timed out.
        let propagation_ms = (self.delivery_timeout / 2).as_millis().to_string();
        if !self.properties.contains_key("topic.metadata.propagation.max.ms") {
            client.set("topic.metadata.propagation.max.ms", propagation_ms);
        }
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("max.in.flight", self.in_flight_max.to_string())
            .set("message.timeout.ms", self.delivery_timeout.as_millis().to_string())
            .set("linger.ms", self.linger_ms())
            // The same partition for the same key as Kafka's Java producer, and so Connect, Streams and
            // Debezium.
            .set("partitioner", "murmur2_random");
        client
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in DEFAULTS {
            client.set(name, value);
        }
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client
    }

    fn linger_ms(&self) -> String {
        format!("{}", self.linger.as_secs_f64() * 1000.0)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let broken = |broker: &str| broker.trim().is_empty();
        if self.brokers.split(',').any(broken) {
            let what = format!("is {:?}", self.brokers);
            problems.push(Problem::new("brokers", what, "give host:port, several with commas"));
        }
        DELIVERY_TIMEOUT.check_duration(self.delivery_timeout, &mut problems);
        LINGER.check_duration(self.linger, &mut problems);
        IN_FLIGHT_MAX.check_integer(self.in_flight_max, &mut problems);
        if self.linger > self.delivery_timeout / 2 {
            let what = format!(
                "is {:?}, above half of delivery_timeout, which is {:?}",
                self.linger, self.delivery_timeout
            );
            let problem = Problem::new("linger", what, "lower it, or raise delivery_timeout");
            problems.push(problem.with_related(["delivery_timeout"]));
        }
        problems.extend(self.properties.iter().filter_map(|(name, value)| property_problem(name, value)));
        if self.payload_bytes_max() == Some(0) {
            problems.push(Problem::new(
                "message.max.bytes",
                "leaves no room for a payload",
                format!(
                    "give more than {ENVELOPE_BYTES}, which is what a message's key and headers may take"
                ),
            ));
        }
        ConfigError::check(problems)
    }
}

const PRODUCER_ONLY: [&str; 4] =
    ["batch.size", "queue.buffering.max.kbytes", "retry.backoff.ms", "retry.backoff.max.ms"];

fn property_problem(name: &str, value: &str) -> Option<Problem> {
    let problem = |what: &str, remedy: &str| Some(Problem::new(name.to_owned(), what, remedy));
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return problem("cannot be set", reason);
    }
    if name.contains('\0') || value.contains('\0') {
        // The name as it can be printed.
        let name = name.escape_debug().to_string();
        return Some(Problem::new(name, "holds a NUL character", "remove the character"));
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        // The value stays out of the text: it may be a password.
        Err(KafkaError::ClientConfig(_, description, _, _)) if !is_secret(name) => {
            problem(&format!("is refused by librdkafka: {description}"), "correct the property")
        }
        Err(_) => problem("is refused by librdkafka", "correct the property's value"),
    }
}

/// Whether the value of a property must not be shown. Rather too much than too little.
fn is_secret(name: &str) -> bool {
    let secret_room = ["sasl.", "ssl.", "https."].iter().any(|room| name.starts_with(room));
    let harmless = ["sasl.mechanism", "sasl.mechanisms", "ssl.endpoint.identification.algorithm"];
    (secret_room && !harmless.contains(&name))
        || ["password", "secret", "token", "jaas"].iter().any(|word| name.contains(word))
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value): (&String, &String)| {
            (name.clone(), if is_secret(name) { "<hidden>".to_owned() } else { value.clone() })
        };
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("linger", &self.linger)
            .field("in_flight_max", &self.in_flight_max)
            .field("key", &self.key)
            .field("properties", &self.properties.iter().map(shown).collect::<BTreeMap<_, _>>())
            .finish()
    }
}

/// Builds a [`KafkaConfig`]; [`build`](Self::build) validates it.
#[derive(Debug, Clone)]
#[must_use = "a configuration is complete only once it is built"]
pub struct KafkaConfigBuilder(KafkaConfig);

impl KafkaConfigBuilder {
    /// The time after which a message that is not acknowledged counts as failed, from 100 ms to 15 min; 3.5 s
    /// unless set. librdkafka repeats a request until then. Keep it below the relay's publish timeout by half
    /// a second or more: a call that is given up before costs its producer.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.0.delivery_timeout = timeout;
        self
    }

    /// How long a message may wait for others to share its request. Zero unless set, the best with few
    /// aggregates in flight (measured: at 10 aggregates six times the throughput of 1 ms); from 1000
    /// aggregates on 1 ms costs the broker and this process less.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.0.linger = linger;
        self
    }

    /// How many requests to one broker are under way at a time, from 1 to 5; 1 unless set. With one, messages
    /// gather while a request is under way, which is what makes larger batches without a linger.
    pub fn in_flight_max(mut self, requests: u32) -> Self {
        self.0.in_flight_max = requests;
        self
    }

    /// What becomes the key of a record.
    pub fn key(mut self, key: KafkaKey) -> Self {
        self.0.key = key;
        self
    }

    /// Any other property of librdkafka, such as `security.protocol`, `sasl.password` or `compression.type`.
    /// Those that the guarantees stand on are refused. With `allow.auto.create.topics=true` a topic that is
    /// missing is made by the broker, with its own defaults, if the broker allows that; else its messages
    /// wait until it is there.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.properties.insert(name.into(), value.into());
        self
    }

    /// The configuration, if all of it can work.
    ///
    /// # Errors
    /// Names everything that is wrong at once. Never holds a value that may be secret.
    pub fn build(self) -> Result<KafkaConfig, ConfigError> {
        self.0.check()?;
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let error = KafkaConfig::builder("a:1,")
            .delivery_timeout(Duration::from_millis(10))
            .linger(Duration::from_secs(1))
            .in_flight_max(6)
            .property("acks", "1")
            .property("no.such.property", "1")
            .property("compression.type", "rar")
            .build()
            .unwrap_err();
        let named: Vec<&str> = error.problems().iter().map(|problem| &*problem.setting).collect();
        let expected = [
            "brokers",
            "delivery_timeout",
            "in_flight_max",
            "linger",
            "acks",
            "compression.type",
            "no.such.property",
        ];
        assert_eq!(named, expected, "{error}");
    }

    #[test]
    fn every_property_the_guarantees_need_is_refused() {
        for (name, reason) in REFUSED {
            let error = KafkaConfig::builder("a:1").property(name, "1").build().unwrap_err();
            assert_eq!(error.problems(), [Problem::new(name, "cannot be set", reason)]);
        }
        // The names are librdkafka's: a misspelt one would refuse nothing.
        for (name, _) in REFUSED.iter().chain(&DEFAULTS) {
            let unknown = ClientConfig::new().set(*name, "x").create_native_config();
            assert!(!unknown.is_err_and(|e| e.to_string().contains("No such")), "{name}");
        }
    }

    #[test]
    fn what_the_guarantees_need_is_set() {
        let config = KafkaConfig::builder("a:1")
            .linger(Duration::from_micros(1500))
            .property("client.id", "me")
            .build()
            .unwrap();
        let producer = config.producer();
        for (name, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("max.in.flight", "1"),
            ("message.timeout.ms", "3500"),
            ("topic.metadata.propagation.max.ms", "1750"),
            ("linger.ms", "1.5"),
            ("partitioner", "murmur2_random"),
            ("allow.auto.create.topics", "false"),
            ("client.id", "me"),
        ] {
            assert_eq!(producer.get(name), Some(value), "{name}");
        }
        assert!(producer.create_native_config().is_ok());
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let builder = KafkaConfig::builder("a:1")
            .property("sasl.username", "hunter1")
            .property("sasl.password", "hunter2")
            .property("sasl.oauthbearer.config", "hunter3")
            .property("compression.type", "lz4");
        let text = format!("{builder:?}");
        assert!(!text.contains("hunter"), "{text}");
        assert!(text.contains("lz4") && text.contains("sasl.password"), "{text}");
        let bad = builder.property("ssl.key.password", "hunter4\0").property("sasl.mechanism", "hunter5\0");
        let error = bad.build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    }
}
