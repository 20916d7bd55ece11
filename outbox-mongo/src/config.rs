//! What the adapter is told: where the database is, and how the collections are called.

use std::{fmt, sync::Arc, time::Duration};

use mongodb::options::ConnectionString;
use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, UrlRules, check_identifier},
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};

/// The settings that a program which reads some can give: see [`MongoAdapter`](crate::MongoAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "prefix",
        Kind::Text,
        "The name of the events' collection, and what the names of the collections beside it start with.",
    )
    .default("outbox"),
    Setting::new("schema", Kind::Text, "The database of the collections, if it is not that of the URL."),
    CONNECTIONS,
];

/// A relay reads and settles at the same time.
const CONNECTIONS: Setting = Setting::new(
    "connections",
    Kind::Integer { min: 2, max: u32::MAX as u64 },
    "The size of the connection pool.",
)
.default("10");

/// A document has 16 MiB, and the names and headers need some of it.
const PAYLOAD_BYTES: Setting = Setting::new(
    "payload_bytes_max",
    Kind::Integer { min: 1, max: 15 << 20 },
    "The largest payload that `enqueue` takes.",
)
.unit("bytes");

/// The limit that MongoDB sets a transaction by default (`transactionLifetimeLimitSeconds`).
const TRANSACTION_LIFETIME_DEFAULT: Duration = Duration::from_secs(60);

/// More than a day makes no sense to wait for a writer.
const TRANSACTION_LIFETIME: Setting = Setting::new(
    "transaction_lifetime",
    Kind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(86_400) },
    "How long the server lets a transaction stay open.",
);

/// Where the outbox is and how it is called. Built by [`MongoConfig::builder`].
#[derive(Clone)]
#[non_exhaustive]
pub struct MongoConfig {
    pub(crate) connect: Option<ConnectionString>,
    pub(crate) names: Arc<Names>,
    pub(crate) payload_bytes_max: usize,
    pub(crate) connections: u32,
    pub(crate) transaction_lifetime: Duration,
}

impl MongoConfig {
    /// Starts with the defaults: collections `outbox…` in the database of the url, payloads up to
    /// [`PAYLOAD_BYTES_MAX_DEFAULT`], 10 connections, transactions of at most 60 seconds.
    pub fn builder() -> MongoConfigBuilder {
        MongoConfigBuilder {
            url: None,
            database: None,
            table: "outbox".to_owned(),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            connections: 10,
            transaction_lifetime: TRANSACTION_LIFETIME_DEFAULT,
        }
    }
}

impl fmt::Debug for MongoConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MongoConfig");
        if let Some(connect) = &self.connect {
            out.field("hosts", &connect.host_info).field("replica_set", &connect.replica_set);
        }
        out.field("database", &self.names.database)
            .field("table", &self.names.outbox)
            .field("payload_bytes_max", &self.payload_bytes_max)
            .field("connections", &self.connections)
            .field("transaction_lifetime", &self.transaction_lifetime)
            .finish()
    }
}

/// Builds a [`MongoConfig`]; [`build`](Self::build) validates it and names every problem at once.
#[derive(Clone)]
#[must_use]
pub struct MongoConfigBuilder {
    url: Option<String>,
    database: Option<String>,
    table: String,
    payload_bytes_max: usize,
    connections: u32,
    transaction_lifetime: Duration,
}

impl MongoConfigBuilder {
    /// Sets the servers: `mongodb://user:password@host:port/database?replicaSet=name`, with the options of a
    /// MongoDB connection string (`tls=true`, `tlsCAFile=…`, `authMechanism=…`). Not needed by a writer, nor
    /// with a client of your own.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the database, instead of the one that the url names.
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// Sets the name of the collection of events, which is also the prefix of the collections beside it;
    /// `outbox` by default.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// Sets the largest payload that `enqueue` takes, in bytes, from 1 to 15 MiB.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.payload_bytes_max = bytes;
        self
    }

    /// Sets the most connections that [`MongoStore::connect_lazy`](crate::MongoStore::connect_lazy) opens to
    /// a server; 2 or more, since a relay reads and settles at the same time.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Sets how long the server lets a transaction stay open: its parameter
    /// `transactionLifetimeLimitSeconds`, 60 seconds by default. An event can become visible that long after
    /// it was given its sequence, and a relay looks back over twice that time with each read: where
    /// transactions are short, a lower limit makes it cheaper.
    pub fn transaction_lifetime(mut self, lifetime: Duration) -> Self {
        self.transaction_lifetime = lifetime;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// Every key that is wrong and what it accepts, and never the url itself.
    pub fn build(self) -> Result<MongoConfig, ConfigError> {
        let mut problems = Vec::new();
        let connect = self.url.as_deref().and_then(|url| parse_url(url, &mut problems));
        check_identifier("table", &self.table, &mut problems);
        let database = self.database.or_else(|| connect.as_ref()?.default_database.clone());
        match &database {
            Some(database) => check_identifier("database", database, &mut problems),
            None if self.url.is_none() => problems.push(Problem::new("database", "is missing", "name it")),
            // A URL that is not valid has been named already.
            None if connect.is_none() => {}
            None => {
                let remedy = "add /database to its hosts, or name the database beside it";
                problems.push(Problem::new("url", "names no database", remedy));
            }
        }
        CONNECTIONS.check_integer(self.connections, &mut problems);
        PAYLOAD_BYTES.check_integer(self.payload_bytes_max, &mut problems);
        TRANSACTION_LIFETIME.check_duration(self.transaction_lifetime, &mut problems);
        ConfigError::check(problems)?;
        Ok(MongoConfig {
            connect,
            names: Arc::new(Names::new(database.unwrap_or_default(), &self.table)),
            payload_bytes_max: self.payload_bytes_max,
            connections: self.connections,
            transaction_lifetime: self.transaction_lifetime,
        })
    }
}

impl fmt::Debug for MongoConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoConfigBuilder")
            .field("url", &self.url.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

const URL_FORM: &str = "mongodb://user:password@host:port/database?replicaSet=name";

const URL_RULES: UrlRules = UrlRules::new(&["mongodb"], URL_FORM).many_hosts();

fn parse_url(url: &str, problems: &mut Vec<Problem>) -> Option<ConnectionString> {
    if url.starts_with("mongodb+srv:") {
        problems.push(Problem::new(
            "url",
            "names its servers by DNS records (mongodb+srv), which this build does not ask for",
            "list the servers in a url that starts with mongodb://",
        ));
        return None;
    }
    if let Err(problem) = URL_RULES.check("url", url) {
        problems.push(problem);
        return None;
    }
    // The parser's own words may repeat parts of the url, and with them the password.
    ConnectionString::parse(url)
        .inspect_err(|_| {
            let what = "has a parameter that is not known, or a value that it cannot have";
            problems.push(Problem::new("url", what, format!("correct it, as in {URL_FORM}")));
        })
        .ok()
}

/// How long the driver looks for a primary, unless the url says otherwise: longer than an election.
pub(crate) const SELECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of the database and its collections. Made of validated identifiers only.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) database: String,
    pub(crate) outbox: String,
    pub(crate) relays: String,
    pub(crate) partitions: String,
    pub(crate) holds: String,
    pub(crate) archive: String,
    pub(crate) topics: String,
    pub(crate) meta: String,
    pub(crate) inbox: String,
    pub(crate) inbox_horizons: String,
    pub(crate) inbox_meta: String,
}

impl Names {
    fn new(database: String, prefix: &str) -> Self {
        let name = |suffix: &str| format!("{prefix}{suffix}");
        Self {
            database,
            outbox: name(""),
            relays: name("_relays"),
            partitions: name("_partitions"),
            holds: name("_holds"),
            archive: name("_archive"),
            topics: name("_topics"),
            meta: name("_meta"),
            inbox: name("_inbox"),
            inbox_horizons: name("_inbox_horizons"),
            inbox_meta: name("_inbox_meta"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "mongodb://me:hush@localhost:27017/shop?replicaSet=rs0";

    #[test]
    fn every_problem_is_named_at_once_and_no_secret() {
        let builder = MongoConfig::builder()
            .url("postgres://me:hush@localhost/x")
            .database("a.b")
            .table("a b")
            .connections(1)
            .payload_bytes_max(16 << 20)
            .transaction_lifetime(Duration::ZERO);
        let error = builder.clone().build().unwrap_err();
        let keys = ["url", "table", "database", "connections", "payload_bytes_max", "transaction_lifetime"];
        assert_eq!(error.problems().len(), keys.len(), "{error}");
        for (key, problem) in keys.iter().zip(error.problems()) {
            assert_eq!(problem.setting, *key, "{error}");
        }
        assert!(!format!("{error} {error:?} {builder:?}").contains("hush"));
        let srv = MongoConfig::builder().url("mongodb+srv://me:hush@localhost/x").build().unwrap_err();
        assert!(srv.to_string().contains("mongodb+srv") && !srv.to_string().contains("hush"), "{srv}");
    }

    #[test]
    fn the_database_is_that_of_the_url_unless_it_is_named() {
        let config = MongoConfig::builder().url(URL).build().unwrap();
        assert_eq!(config.names.database, "shop");
        assert!(!format!("{config:?}").contains("hush"));
        let config = MongoConfig::builder().url(URL).database("other").table("events").build().unwrap();
        assert_eq!((config.names.database.as_str(), config.names.holds.as_str()), ("other", "events_holds"));
        let missing = MongoConfig::builder().url("mongodb://localhost").build().unwrap_err();
        assert!(missing.to_string().contains("url names no database"), "{missing}");
        let missing = MongoConfig::builder().build().unwrap_err();
        assert!(missing.to_string().contains("database is missing"), "{missing}");
    }
}
