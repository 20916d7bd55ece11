//! What the adapter is told: where the database is, and how the tables are called.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, UrlRules, check_identifier},
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};
use sqlx::{AssertSqlSafe, ConnectOptions, postgres::PgConnectOptions};

/// The settings that a program which reads some can give: see [`PostgresAdapter`](crate::PostgresAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "prefix",
        Kind::Text,
        "The name of the events' table, and what the names of the tables beside it start with.",
    )
    .default("outbox"),
    Setting::new(
        "schema",
        Kind::Text,
        "The schema of the tables. Without one they are found by the search_path.",
    ),
    CONNECTIONS,
];

const CONNECTIONS: Setting = Setting::new(
    "connections",
    Kind::COUNT,
    "The size of the connection pool, beside two connections of the relay's own.",
)
.default("5");

/// A bytea of more than 1 GiB cannot be stored, and its text form needs twice that.
const PAYLOAD_BYTES: Setting = Setting::new(
    "payload_bytes_max",
    Kind::Integer { min: 1, max: 256 << 20 },
    "The largest payload that `enqueue` takes.",
)
.unit("bytes");

/// What the printed and applied table definition is made for. Nothing breaks when a relay does otherwise; it
/// costs throughput, and `check` says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SentRows {
    /// Sent rows stay until retention removes them: pages are filled to 45 %, so that marking a row as sent
    /// finds room beside it and touches no index (measured: 174-200 k/s drained, against 85 k on full pages).
    #[default]
    Kept,
    /// Sent rows are deleted or archived by the settle: pages are filled to 100 %.
    Deleted,
}

impl SentRows {
    pub(crate) fn fillfactor(self) -> i32 {
        match self {
            Self::Kept => 45,
            Self::Deleted => 100,
        }
    }
}

/// Where the outbox is and how it is called. Built by [`PostgresConfig::builder`].
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresConfig {
    pub(crate) connect: Option<PgConnectOptions>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) payload_bytes_max: usize,
    pub(crate) connections: u32,
    pub(crate) sent_rows: SentRows,
    pub(crate) prepare: bool,
}

impl PostgresConfig {
    /// Starts with the defaults: tables `outbox…` found by the `search_path`, payloads up to
    /// [`PAYLOAD_BYTES_MAX_DEFAULT`], 5 connections, sent rows kept.
    pub fn builder() -> PostgresConfigBuilder {
        PostgresConfigBuilder {
            url: None,
            schema: None,
            table: "outbox".to_owned(),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            connections: 5,
            sent_rows: SentRows::default(),
            prepare: true,
        }
    }
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            connect: None,
            tables: Arc::new(Tables::new(None, "outbox")),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            connections: 5,
            sent_rows: SentRows::default(),
            prepare: true,
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("PostgresConfig");
        if let Some(connect) = &self.connect {
            out.field("host", &connect.get_host()).field("port", &connect.get_port());
            out.field("database", &connect.get_database()).field("user", &connect.get_username());
        }
        out.field("table", &self.tables.outbox())
            .field("payload_bytes_max", &self.payload_bytes_max)
            .field("connections", &self.connections)
            .field("sent_rows", &self.sent_rows)
            .finish()
    }
}

/// Builds a [`PostgresConfig`]; [`build`](Self::build) validates it and names every problem at once.
#[derive(Clone)]
#[must_use]
pub struct PostgresConfigBuilder {
    url: Option<String>,
    schema: Option<String>,
    table: String,
    payload_bytes_max: usize,
    connections: u32,
    sent_rows: SentRows,
    prepare: bool,
}

impl PostgresConfigBuilder {
    /// Sets the server: `postgres://user:password@host:port/database`, with the parameters that libpq knows
    /// (`?sslmode=require`). Not needed by a writer, nor with a pool of your own.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the schema of the tables. Without one they are found by the `search_path`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets the name of the table, which is also the prefix of the tables beside it; `outbox` by default.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// Sets the largest payload that `enqueue` takes, in bytes.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.payload_bytes_max = bytes;
        self
    }

    /// Sets the size of the pool that [`PostgresStore::connect_lazy`](crate::PostgresStore::connect_lazy)
    /// opens, beside the two connections that a relay has of its own; 1 or more.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Sets what the table definition is made for.
    pub fn sent_rows(mut self, sent_rows: SentRows) -> Self {
        self.sent_rows = sent_rows;
        self
    }

    /// Whether `enqueue` keeps its statements prepared on the caller's connections, which is faster; true by
    /// default. False for a writer behind a pooler in transaction mode that loses them, such as PgBouncer
    /// before 1.21.
    pub fn prepare(mut self, prepare: bool) -> Self {
        self.prepare = prepare;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// Every key that is wrong and what it accepts, and never the url itself.
    pub fn build(self) -> Result<PostgresConfig, ConfigError> {
        let mut problems = Vec::new();
        let connect = self.url.as_deref().and_then(|url| parse_url(url, &mut problems));
        check_identifier("table", &self.table, &mut problems);
        if let Some(schema) = &self.schema {
            check_identifier("schema", schema, &mut problems);
        }
        CONNECTIONS.check_integer(self.connections, &mut problems);
        PAYLOAD_BYTES.check_integer(self.payload_bytes_max, &mut problems);
        ConfigError::check(problems)?;
        Ok(PostgresConfig {
            connect,
            tables: Arc::new(Tables::new(self.schema.as_deref(), &self.table)),
            payload_bytes_max: self.payload_bytes_max,
            connections: self.connections,
            sent_rows: self.sent_rows,
            prepare: self.prepare,
        })
    }
}

impl fmt::Debug for PostgresConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfigBuilder")
            .field("url", &self.url.as_ref().map(|_| "***"))
            .field("schema", &self.schema)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

const URL_FORM: &str = "postgres://user:password@host:port/database";

/// The driver warns of a parameter that it does not know with its value, which may be secret, and goes on.
const URL_RULES: UrlRules = UrlRules::new(&["postgres", "postgresql"], URL_FORM).parameters(&[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[",
]);

fn parse_url(url: &str, problems: &mut Vec<Problem>) -> Option<PgConnectOptions> {
    if let Err(problem) = URL_RULES.check("url", url) {
        problems.push(problem);
        return None;
    }
    let Ok(options) = PgConnectOptions::from_str(url) else {
        // The parser's own words may repeat parts of the url, and with them the password.
        let what = "has a parameter with a value that it cannot have";
        problems.push(Problem::new("url", what, format!("correct it, as in {URL_FORM}?sslmode=require")));
        return None;
    };
    // The driver keeps the brackets of an IPv6 address, and then looks for a host of that name.
    let address = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let options = match address.map(str::to_owned) {
        Some(address) => options.host(&address),
        None => options,
    };
    // The driver's log of slow statements would be the relay's noise, not its user's.
    Some(options.disable_statement_logging())
}

/// How long the adapter waits for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of the tables, quoted. Made of validated identifiers only.
#[derive(Debug)]
pub(crate) struct Tables {
    schema: Option<String>,
    prefix: String,
    names: [(&'static str, String); 12],
}

impl Tables {
    fn new(schema: Option<&str>, prefix: &str) -> Self {
        let quoted = |suffix: &str| match schema {
            Some(schema) => format!("\"{schema}\".\"{prefix}{suffix}\""),
            None => format!("\"{prefix}{suffix}\""),
        };
        Self {
            schema: schema.map(str::to_owned),
            prefix: prefix.to_owned(),
            names: [
                ("{outbox}", quoted("")),
                ("{relays}", quoted("_relays")),
                ("{partitions}", quoted("_partitions")),
                ("{holds}", quoted("_holds")),
                ("{failed}", quoted("_failed")),
                ("{archive}", quoted("_archive")),
                ("{topics}", quoted("_topics")),
                ("{meta}", quoted("_meta")),
                ("{inbox}", quoted("_inbox")),
                ("{inbox_horizons}", quoted("_inbox_horizons")),
                ("{inbox_meta}", quoted("_inbox_meta")),
                ("{prefix}", prefix.to_owned()),
            ],
        }
    }

    /// The configured schema, unquoted.
    pub(crate) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The prefix, unquoted.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The main table, quoted.
    pub(crate) fn outbox(&self) -> &str {
        &self.names[0].1
    }

    /// A statement with the names of the tables put in for `{outbox}`, `{holds}` and so on.
    pub(crate) fn text(&self, template: &str) -> String {
        self.names.iter().fold(template.to_owned(), |text, (token, name)| text.replace(token, name))
    }

    /// The same, ready to be run. Only names that were validated are put in; values are always bound.
    pub(crate) fn sql(&self, template: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.text(template))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_key_is_named_and_the_password_never() {
        let error = PostgresConfig::builder()
            .url("postgres://me:hush@[bad")
            .schema("a;b")
            .table("1st")
            .connections(0)
            .payload_bytes_max(0)
            .build()
            .unwrap_err();
        let keys = ["url", "table", "schema", "connections", "payload_bytes_max"];
        assert_eq!(error.problems().len(), keys.len(), "{error}");
        for (problem, key) in error.problems().iter().zip(keys) {
            assert_eq!(problem.setting, key, "{error}");
        }
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn an_ipv6_address_is_what_the_driver_connects_to() {
        let config = PostgresConfig::builder().url("postgres://me@[::1]:5433/shop").build().unwrap();
        let connect = config.connect.unwrap();
        assert_eq!((connect.get_host(), connect.get_port()), ("::1", 5433));
    }

    #[test]
    fn debug_hides_the_password() {
        let builder = PostgresConfig::builder().url("postgres://me:hush@host/db");
        assert!(!format!("{builder:?}").contains("hush"));
        let text = format!("{:?}", builder.build().unwrap());
        assert!(!text.contains("hush") && text.contains("host"), "{text}");
    }

    #[test]
    fn names_are_quoted_and_only_in_their_places() {
        let tables = Tables::new(Some("Tenant"), "ob");
        assert_eq!(
            tables.text("select 1 from {outbox} o, {holds} h"),
            "select 1 from \"Tenant\".\"ob\" o, \"Tenant\".\"ob_holds\" h"
        );
    }
}
