//! What the adapter is told: where the database is, and how the tables are called.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, UrlRules, check_identifier},
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};
use sqlx::{AssertSqlSafe, ConnectOptions, mysql::MySqlConnectOptions};

/// The settings that a program which reads some can give: see [`MysqlAdapter`](crate::MysqlAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "prefix",
        Kind::Text,
        "The name of the events' table, and what the names of the tables beside it start with.",
    )
    .default("outbox"),
    Setting::new("schema", Kind::Text, "The database of the tables, if it is not that of the URL."),
    CONNECTIONS,
];

const CONNECTIONS: Setting = Setting::new(
    "connections",
    Kind::COUNT,
    "The size of the connection pool, beside two connections of the relay's own.",
)
.default("5");

/// With its packet, the largest payload stays far below the 1 GiB that is the most a server can be set to
/// take (`max_allowed_packet`).
const PAYLOAD_BYTES: Setting = Setting::new(
    "payload_bytes_max",
    Kind::Integer { min: 1, max: 256 << 20 },
    "The largest payload that `enqueue` takes.",
)
.unit("bytes");

/// Where the outbox is and how it is called. Built by [`MysqlConfig::builder`].
#[derive(Clone)]
#[non_exhaustive]
pub struct MysqlConfig {
    pub(crate) connect: Option<MySqlConnectOptions>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) payload_bytes_max: usize,
    pub(crate) connections: u32,
}

impl MysqlConfig {
    /// Starts with the defaults: tables `outbox…` in the database of the connection, payloads up to
    /// [`PAYLOAD_BYTES_MAX_DEFAULT`], 5 connections.
    pub fn builder() -> MysqlConfigBuilder {
        MysqlConfigBuilder {
            url: None,
            schema: None,
            table: "outbox".to_owned(),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            connections: 5,
        }
    }
}

impl Default for MysqlConfig {
    fn default() -> Self {
        Self {
            connect: None,
            tables: Arc::new(Tables::new(None, "outbox")),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            connections: 5,
        }
    }
}

impl fmt::Debug for MysqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MysqlConfig");
        if let Some(connect) = &self.connect {
            out.field("host", &connect.get_host()).field("port", &connect.get_port());
            out.field("database", &connect.get_database()).field("user", &connect.get_username());
        }
        out.field("table", &self.tables.outbox())
            .field("payload_bytes_max", &self.payload_bytes_max)
            .field("connections", &self.connections)
            .finish()
    }
}

/// Builds a [`MysqlConfig`]; [`build`](Self::build) validates it and names every problem at once.
#[derive(Clone)]
#[must_use]
pub struct MysqlConfigBuilder {
    url: Option<String>,
    schema: Option<String>,
    table: String,
    payload_bytes_max: usize,
    connections: u32,
}

impl MysqlConfigBuilder {
    /// Sets the server: `mysql://user:password@host:port/database`, with the parameters that sqlx knows
    /// (`?ssl-mode=VERIFY_CA&ssl-ca=ca.pem`); `mariadb://` is the same. Not needed by a writer, nor with a
    /// pool of your own.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the schema of the tables, which MySQL calls a database. Without one it is the database of the
    /// connection.
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

    /// Sets the size of the pool that [`MysqlStore::connect_lazy`](crate::MysqlStore::connect_lazy) opens,
    /// beside the two connections that a relay has of its own; 1 or more.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// Every key that is wrong and what it accepts, and never the url itself.
    pub fn build(self) -> Result<MysqlConfig, ConfigError> {
        let mut problems = Vec::new();
        let connect =
            self.url.as_deref().and_then(|url| parse_url(url, self.schema.is_some(), &mut problems));
        check_identifier("table", &self.table, &mut problems);
        if let Some(schema) = &self.schema {
            check_identifier("schema", schema, &mut problems);
        }
        CONNECTIONS.check_integer(self.connections, &mut problems);
        PAYLOAD_BYTES.check_integer(self.payload_bytes_max, &mut problems);
        ConfigError::check(problems)?;
        Ok(MysqlConfig {
            connect,
            tables: Arc::new(Tables::new(self.schema.as_deref(), &self.table)),
            payload_bytes_max: self.payload_bytes_max,
            connections: self.connections,
        })
    }
}

impl fmt::Debug for MysqlConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlConfigBuilder")
            .field("url", &self.url.as_ref().map(|_| "***"))
            .field("schema", &self.schema)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

const URL_FORM: &str = "mysql://user:password@host:port/database";

/// The driver leaves out a parameter that it does not know without a word.
const URL_RULES: UrlRules = UrlRules::new(&["mysql", "mariadb"], URL_FORM).parameters(&[
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "charset",
    "collation",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "socket",
    "timezone",
    "time-zone",
]);

fn parse_url(url: &str, has_schema: bool, problems: &mut Vec<Problem>) -> Option<MySqlConnectOptions> {
    if let Err(problem) = URL_RULES.check("url", url) {
        problems.push(problem);
        return None;
    }
    let Ok(options) = MySqlConnectOptions::from_str(url) else {
        // The parser's own words may repeat parts of the url, and with them the password.
        let what = "has a parameter with a value that it cannot have";
        problems.push(Problem::new("url", what, format!("correct it, as in {URL_FORM}?ssl-mode=REQUIRED")));
        return None;
    };
    if options.get_database().is_none() && !has_schema {
        let remedy = "add /database to its host, or name the database by schema";
        problems.push(Problem::new("url", "names no database", remedy));
        return None;
    }
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
    names: [(&'static str, String); 10],
}

impl Tables {
    fn new(schema: Option<&str>, prefix: &str) -> Self {
        let quoted = |suffix: &str| match schema {
            Some(schema) => format!("`{schema}`.`{prefix}{suffix}`"),
            None => format!("`{prefix}{suffix}`"),
        };
        Self {
            schema: schema.map(str::to_owned),
            prefix: prefix.to_owned(),
            names: [
                ("{outbox}", quoted("")),
                ("{relays}", quoted("_relays")),
                ("{partitions}", quoted("_partitions")),
                ("{holds}", quoted("_holds")),
                ("{archive}", quoted("_archive")),
                ("{topics}", quoted("_topics")),
                ("{meta}", quoted("_meta")),
                ("{inbox}", quoted("_inbox")),
                ("{inbox_horizons}", quoted("_inbox_horizons")),
                ("{inbox_meta}", quoted("_inbox_meta")),
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

    /// The main table.
    pub(crate) fn outbox(&self) -> &str {
        &self.names[0].1
    }

    /// A statement with the names of the tables put in for `{outbox}`, `{holds}` and so on, and their prefix
    /// for `{prefix}`.
    pub(crate) fn text(&self, template: &str) -> String {
        let text = template.replace("{prefix}", &self.prefix);
        self.names.iter().fold(text, |text, (token, name)| text.replace(token, name))
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
        let error = MysqlConfig::builder()
            .url("mysql://me:hush@[bad")
            .schema("a;b")
            .table("1st")
            .connections(0)
            .payload_bytes_max(0)
            .build()
            .unwrap_err();
        let keys = ["url", "table", "schema", "connections", "payload_bytes_max"];
        assert_eq!(error.problems().len(), keys.len(), "{error}");
        for (key, problem) in keys.iter().zip(error.problems()) {
            assert_eq!(problem.setting, *key, "{error}");
        }
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn a_url_needs_a_database_unless_there_is_a_schema() {
        assert!(MysqlConfig::builder().url("mysql://me:hush@host/").build().is_err());
        assert!(MysqlConfig::builder().url("postgres://me:hush@host/db").build().is_err());
        assert!(MysqlConfig::builder().url("mysql://me:hush@host/").schema("shop").build().is_ok());
        assert!(MysqlConfig::builder().url("mariadb://me:hush@host/shop").build().is_ok());
    }

    #[test]
    fn an_ipv6_address_is_what_the_driver_connects_to() {
        let config = MysqlConfig::builder().url("mysql://me@[::1]:3307/shop").build().unwrap();
        let connect = config.connect.unwrap();
        assert_eq!((connect.get_host(), connect.get_port()), ("::1", 3307));
    }

    #[test]
    fn debug_hides_the_password() {
        let builder = MysqlConfig::builder().url("mysql://me:hush@host/db");
        assert!(!format!("{builder:?}").contains("hush"));
        let text = format!("{:?}", builder.build().unwrap());
        assert!(!text.contains("hush") && text.contains("host"), "{text}");
    }

    #[test]
    fn names_are_quoted_and_only_in_their_places() {
        let tables = Tables::new(Some("Tenant"), "ob");
        assert_eq!(
            tables.text("select 1 from {outbox} o, {holds} h"),
            "select 1 from `Tenant`.`ob` o, `Tenant`.`ob_holds` h"
        );
    }
}
