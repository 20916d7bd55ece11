//! What a publisher needs to know: [`RabbitMqConfig`].

use std::{
    fmt,
    path::{Path, PathBuf},
};

use lapin::uri::{AMQPScheme, AMQPUri};
use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, UrlRules, check_file},
};

use crate::declare::{Declaration, RabbitMqExchangeKind, RabbitMqQueueKind};

/// The settings that a program which reads some can give: see [`RabbitMqAdapter`](crate::RabbitMqAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "exchange",
        Kind::Text,
        "The exchange that everything goes to, with the topic as routing key. Without one it is the default exchange, \
         for which a topic is the name of a queue.",
    ),
    Setting::new("exchange_from_topic", Kind::Bool, "The topic is exchange/routing.key instead.")
        .default("false"),
    PAYLOAD_BYTES,
    Setting::new(
        "ca_file",
        Kind::Path,
        "For amqps://: the authorities to trust, instead of the system's, as certificates in PEM.",
    )
    .reloadable(),
    Setting::new("client_certificate", Kind::Path, "For amqps://: the relay's own certificate, in PEM.")
        .reloadable(),
    Setting::new("client_key", Kind::Path, "The key of client_certificate, in PEM.").reloadable(),
];

/// 16 MiB is what RabbitMQ accepts by default since version 4.0, and 512 MiB the most that it can be
/// configured to.
const PAYLOAD_BYTES: Setting = Setting::new(
    "payload_bytes_max",
    Kind::Integer { min: 1, max: 512 * 1024 * 1024 },
    "The largest payload. Set it to the max_message_size of the broker.",
)
.default("16777216")
.unit("bytes");

const PAYLOAD_BYTES_MAX_DEFAULT: usize = 16 * 1024 * 1024;

/// The longest name of an exchange, a queue or a routing key, in bytes: an AMQP short string.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// How to reach RabbitMQ, and what to ask of it. Made by [`RabbitMqConfig::builder`].
#[derive(Clone)]
pub struct RabbitMqConfig {
    pub(crate) uri: AMQPUri,
    pub(crate) payload_bytes_max: usize,
    pub(crate) declarations: Vec<Declaration>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) name: String,
    address: Address,
}

/// What a topic says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// The routing key; the exchange is always this one.
    RoutingKey { exchange: String },
    /// `exchange/routing key`.
    ExchangeAndRoutingKey,
}

impl RabbitMqConfig {
    /// Starts a configuration for the node at `url`, `amqp://user:password@host:port/vhost` or `amqps://…`
    /// with TLS. Special characters are percent-encoded; the default virtual host is `%2f`, and may be left
    /// out with its slash.
    ///
    /// The URL takes lapin's parameters, such as `?heartbeat=10` (seconds) and `?auth_mechanism=external`.
    pub fn builder(url: impl Into<String>) -> RabbitMqConfigBuilder {
        RabbitMqConfigBuilder {
            url: url.into(),
            config: Self {
                uri: AMQPUri::default(),
                payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
                declarations: Vec::new(),
                ca_file: None,
                client_certificate: None,
                name: "outbox".to_owned(),
                address: Address::RoutingKey { exchange: String::new() },
            },
        }
    }

    /// Exchange and routing key of a topic.
    pub(crate) fn address<'a>(&'a self, topic: &'a str) -> (&'a str, &'a str) {
        match &self.address {
            Address::RoutingKey { exchange } => (exchange, topic),
            Address::ExchangeAndRoutingKey => topic.split_once('/').unwrap_or((topic, "")),
        }
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        PAYLOAD_BYTES.check_integer(self.payload_bytes_max, problems);
        if let Address::RoutingKey { exchange } = &self.address {
            problems.extend(name_problem("exchange", exchange));
        }
        for declaration in &self.declarations {
            problems.extend(declaration.names().filter_map(|(what, name)| name_problem(what, name)));
        }
        let (certificate, key) =
            self.client_certificate.as_ref().map(|(one, other)| (&**one, &**other)).unzip();
        check_file("ca_file", self.ca_file.as_deref(), problems);
        check_file("client_certificate", certificate, problems);
        check_file("client_key", key, problems);
    }
}

fn name_problem(setting: &'static str, name: &str) -> Option<Problem> {
    (name.len() > NAME_BYTES_MAX).then(|| {
        let what = format!("has a name of {} bytes", name.len());
        Problem::new(setting, what, format!("give one of up to {NAME_BYTES_MAX}"))
    })
}

impl fmt::Debug for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, query } = &self.uri;
        f.debug_struct("RabbitMqConfig")
            .field("server", &format_args!("{scheme}://{}:{}", authority.host, authority.port))
            .field("user", &authority.userinfo.username)
            .field("vhost", vhost)
            .field("query", query)
            .field("address", &self.address)
            .field("payload_bytes_max", &self.payload_bytes_max)
            .field("declarations", &self.declarations)
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate.as_ref().map(|(path, _)| path))
            .field("name", &self.name)
            .finish()
    }
}

/// Builds a [`RabbitMqConfig`]; [`build`](Self::build) validates it.
#[derive(Clone)]
#[must_use = "a configuration is complete only once it is built"]
pub struct RabbitMqConfigBuilder {
    url: String,
    config: RabbitMqConfig,
}

const URL_FORM: &str = "amqp://user:password@host:port/vhost";

const URL_RULES: UrlRules = UrlRules::new(&["amqp", "amqps"], URL_FORM);

impl RabbitMqConfigBuilder {
    /// Sends everything to this exchange, with the topic as routing key. Without, that is the default
    /// exchange, for which a topic is the name of a queue.
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.config.address = Address::RoutingKey { exchange: name.into() };
        self
    }

    /// Takes the exchange from the topic as well: up to the first `/` it is the exchange, behind it the
    /// routing key. Without a `/` the routing key is empty, and with nothing before it the exchange is the
    /// default one.
    pub fn exchange_from_topic(mut self) -> Self {
        self.config.address = Address::ExchangeAndRoutingKey;
        self
    }

    /// The largest payload, in bytes; 16 MiB unless set. A larger one fails before it is sent. Set it to the
    /// node's `max_message_size`: the node closes the channel of a message that it finds too large, and with
    /// it what else was on its way there.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.config.payload_bytes_max = bytes;
        self
    }

    /// Declares this exchange, durable, if there is none of its name.
    pub fn declare_exchange(mut self, name: impl Into<String>, kind: RabbitMqExchangeKind) -> Self {
        self.config.declarations.push(Declaration::Exchange { name: name.into(), kind });
        self
    }

    /// Declares this queue, durable, if there is none of its name.
    pub fn declare_queue(mut self, name: impl Into<String>, kind: RabbitMqQueueKind) -> Self {
        self.config.declarations.push(Declaration::Queue { name: name.into(), kind });
        self
    }

    /// Binds a queue to an exchange by a routing key or, for an exchange of kind `Topic`, a pattern.
    pub fn declare_binding(
        mut self,
        queue: impl Into<String>,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        self.config.declarations.push(Declaration::Binding {
            queue: queue.into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        });
        self
    }

    /// The authorities to trust for TLS, as certificates in PEM. Those of the system unless set.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.config.ca_file = Some(path.as_ref().to_owned());
        self
    }

    /// The client's own certificate and its key for TLS, in PEM.
    pub fn client_certificate(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.config.client_certificate = Some((certificate.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// The name of the connection, as the management interface shows it; `outbox` unless set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The configuration, if all of it can work.
    ///
    /// # Errors
    /// Names everything that is wrong at once. Never holds a secret.
    pub fn build(mut self) -> Result<RabbitMqConfig, ConfigError> {
        let mut problems = Vec::new();
        match (URL_RULES.check("url", &self.url), self.url.parse()) {
            (Err(problem), _) => problems.push(problem),
            (_, Ok(uri)) => self.config.uri = uri,
            // Neither the URL nor the parser's text about it: they may hold the password.
            (_, Err(_)) => problems.push(Problem::new(
                "url",
                "has a parameter that is not known, or a value that it cannot have",
                format!("correct it, as in {URL_FORM}"),
            )),
        }
        self.config.check(&mut problems);
        ConfigError::check(problems)?;
        Ok(self.config)
    }
}

impl fmt::Debug for RabbitMqConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqConfigBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let error = RabbitMqConfig::builder("http://me:hunter2@a")
            .payload_bytes_max(0)
            .exchange("x".repeat(256))
            .declare_queue("q".repeat(256), RabbitMqQueueKind::Quorum)
            .declare_binding("q", "e", "k".repeat(256))
            .client_certificate("/no/such/file", "/no/such/key")
            .build()
            .unwrap_err();
        let named: Vec<&str> = error.problems().iter().map(|problem| &*problem.setting).collect();
        let expected = [
            "url",
            "payload_bytes_max",
            "exchange",
            "declared queue",
            "declared binding's routing key",
            "client_certificate",
            "client_key",
        ];
        assert_eq!(named, expected, "{error}");
    }

    #[test]
    fn a_topic_is_a_routing_key_or_has_the_exchange_too() {
        let builder = RabbitMqConfig::builder("amqp://a");
        let config = builder.clone().build().unwrap();
        assert_eq!(config.address("orders/eu"), ("", "orders/eu"));
        let config = builder.clone().exchange("events").build().unwrap();
        assert_eq!(config.address("orders.eu"), ("events", "orders.eu"));
        let config = builder.exchange_from_topic().build().unwrap();
        for (topic, address) in [
            ("e/k", ("e", "k")),
            ("e/k/l", ("e", "k/l")),
            ("e", ("e", "")),
            ("/q", ("", "q")),
            ("e/", ("e", "")),
        ] {
            assert_eq!(config.address(topic), address, "{topic}");
        }
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let builder = RabbitMqConfig::builder("amqp://me:hunter1@a:1/v");
        let text = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(!text.contains("hunter"), "{text}");
        assert!(text.contains("a:1") && text.contains("me"), "{text}");
        let error = RabbitMqConfig::builder("amqp://me:hunter1@[a/").build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    }
}
