//! What the adapter is told: where the database is, and how the tables are called.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use outbox_core::{PAYLOAD_BYTES_MAX_DEFAULT, StoreError, StoreErrorKind};
use sqlx::{AssertSqlSafe, ConnectOptions, mysql::MySqlConnectOptions};

/// The longest schema name and table prefix, in bytes: with the longest suffix it stays below MySQL's 64.
const IDENTIFIER_BYTES_MAX: usize = 40;

/// The largest payload that can be configured, in bytes: with its packet it stays far below the 1 GiB that is the
/// most a server can be set to take (`max_allowed_packet`).
const PAYLOAD_BYTES_LIMIT: usize = 256 << 20;

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
    /// (`?ssl-mode=VERIFY_CA&ssl-ca=ca.pem`); `mariadb://` is the same. Not needed by a writer, nor with a pool of your
    /// own.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the schema of the tables, which MySQL calls a database. Without one it is the database of the connection.
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

    /// Sets the size of the pool that [`MysqlStore::connect`](crate::MysqlStore::connect) opens, beside the two
    /// connections that a relay has of its own; 1 or more.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// Every key that is wrong and what it accepts, and never the url itself.
    pub fn build(self) -> Result<MysqlConfig, MysqlConfigError> {
        let mut problems = Vec::new();
        let connect =
            self.url.as_deref().and_then(|url| parse_url(url, self.schema.is_some(), &mut problems));
        check_identifier("table", &self.table, &mut problems);
        if let Some(schema) = &self.schema {
            check_identifier("schema", schema, &mut problems);
        }
        if self.connections == 0 {
            problems.push("connections is 0: at least 1 is needed".to_owned());
        }
        if self.payload_bytes_max == 0 || self.payload_bytes_max > PAYLOAD_BYTES_LIMIT {
            problems.push(format!(
                "payload_bytes_max is {}: it must lie between 1 and {PAYLOAD_BYTES_LIMIT}",
                self.payload_bytes_max,
            ));
        }
        if !problems.is_empty() {
            return Err(MysqlConfigError { problems });
        }
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

/// Everything that is wrong with a configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MysqlConfigError {
    problems: Vec<String>,
}

impl MysqlConfigError {
    /// Each problem: the key, its value unless that may be secret, and what is accepted.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for MysqlConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the MySQL configuration is refused: {}", self.problems.join("; "))
    }
}

impl std::error::Error for MysqlConfigError {}

impl From<MysqlConfigError> for StoreError {
    fn from(error: MysqlConfigError) -> Self {
        Self::new(StoreErrorKind::Misuse, error.to_string())
    }
}

fn parse_url(url: &str, has_schema: bool, problems: &mut Vec<String>) -> Option<MySqlConnectOptions> {
    const FORM: &str = "mysql://user:password@host:port/database is expected";
    let scheme = url.starts_with("mysql://") || url.starts_with("mariadb://");
    match MySqlConnectOptions::from_str(url) {
        Ok(options) if scheme && options.get_database().is_none() && !has_schema => {
            problems.push(format!("url names no database, and there is no schema: {FORM}"));
            None
        }
        // The driver's log of slow statements would be the relay's noise, not its user's.
        Ok(options) if scheme => Some(options.disable_statement_logging()),
        // The parser's own words may repeat parts of the url, and with them the password.
        _ => {
            problems.push(format!("url is none: {FORM}"));
            None
        }
    }
}

fn check_identifier(key: &str, name: &str, problems: &mut Vec<String>) {
    let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let tail = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !head || !tail || name.len() > IDENTIFIER_BYTES_MAX {
        problems.push(format!(
            "{key} is {name:?}: letters, digits and _ are accepted, not a digit first, at most \
             {IDENTIFIER_BYTES_MAX} characters"
        ));
    }
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
            assert!(problem.starts_with(key), "{key} is missing in: {problem}");
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
