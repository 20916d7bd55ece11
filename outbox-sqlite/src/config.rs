//! What a store is told: [`SqliteConfig`].

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use outbox_core::{PAYLOAD_BYTES_MAX_DEFAULT, StoreError, StoreErrorKind};

/// The table prefix of a configuration that names none.
pub const PREFIX_DEFAULT: &str = "outbox";

/// How long a statement waits for another writer unless told otherwise. Five seconds is what SQLite's own drivers for
/// Python and Rust use.
pub const BUSY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest wait for another writer that makes sense: a relay that waits longer has lost its lease.
const BUSY_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// The longest table prefix, in bytes; it leaves room for `_partitions` in every tool that shows names.
const PREFIX_BYTES_MAX: usize = 40;

/// The largest payload that SQLite can store, in bytes: `SQLITE_MAX_LENGTH`, 10^9 by default
/// (<https://www.sqlite.org/limits.html>).
const PAYLOAD_BYTES_CEILING: usize = 1_000_000_000;

/// Where the outbox is and how it is used. Made by [`SqliteConfig::builder`], which validates.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteConfig {
    path: PathBuf,
    prefix: String,
    payload_bytes_max: usize,
    busy_timeout: Duration,
}

impl SqliteConfig {
    /// Starts a configuration for the database file at `path`.
    pub fn builder(path: impl Into<PathBuf>) -> SqliteConfigBuilder {
        SqliteConfigBuilder(Self {
            path: path.into(),
            prefix: PREFIX_DEFAULT.to_owned(),
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
            busy_timeout: BUSY_TIMEOUT_DEFAULT,
        })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the events' table, and what the names of the other tables start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The largest payload that `enqueue` takes, in bytes.
    pub fn payload_bytes_max(&self) -> usize {
        self.payload_bytes_max
    }

    /// How long a statement waits for another writer before it fails with
    /// [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict).
    pub fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    /// A statement with this configuration's names: `{p}` is the prefix, `{now}` the database's clock in microseconds.
    pub(crate) fn sql(&self, template: &str) -> String {
        template.replace("{p}", &self.prefix).replace("{now}", crate::codec::NOW)
    }
}

/// Builds a [`SqliteConfig`].
#[derive(Debug, Clone)]
#[must_use = "a configuration is validated by build"]
pub struct SqliteConfigBuilder(SqliteConfig);

impl SqliteConfigBuilder {
    /// Sets the name of the events' table, which the other tables' names start with: a letter or underscore, then
    /// letters, digits and underscores, at most 40. Default [`PREFIX_DEFAULT`].
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// Sets the largest payload that `enqueue` takes, in bytes, from 1 to 10^9.
    /// Default [`PAYLOAD_BYTES_MAX_DEFAULT`].
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.0.payload_bytes_max = bytes;
        self
    }

    /// Sets how long a statement waits for another writer, at most ten minutes. Default [`BUSY_TIMEOUT_DEFAULT`].
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.0.busy_timeout = timeout;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// A [`ConfigError`] that names every option that is wrong.
    pub fn build(self) -> Result<SqliteConfig, ConfigError> {
        let config = self.0;
        let mut problems = Vec::new();
        if config.path.as_os_str().is_empty() {
            problems.push("path is empty: name the database file".to_owned());
        }
        if config.path.as_os_str() == ":memory:" {
            problems.push(
                "path is :memory:, which every connection has for itself: name a file that the service and the relay share"
                    .to_owned(),
            );
        }
        if let Err(problem) = check_prefix(&config.prefix) {
            problems.push(problem);
        }
        if config.payload_bytes_max == 0 || config.payload_bytes_max > PAYLOAD_BYTES_CEILING {
            problems.push(format!(
                "payload_bytes_max is {}: give 1 to {PAYLOAD_BYTES_CEILING}",
                config.payload_bytes_max
            ));
        }
        if config.busy_timeout > BUSY_TIMEOUT_MAX {
            problems.push(format!(
                "busy_timeout is {:?}: give at most {BUSY_TIMEOUT_MAX:?}",
                config.busy_timeout
            ));
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }
}

/// A configuration that was refused, with every problem at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// Each problem: the option, its value, and what is accepted.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the sqlite configuration is refused: {}", self.problems.join("; "))
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for StoreError {
    fn from(error: ConfigError) -> Self {
        Self::new(StoreErrorKind::Misuse, error.to_string())
    }
}

/// The prefix goes into statements as it is, so nothing but an identifier may pass.
fn check_prefix(prefix: &str) -> Result<(), String> {
    let identifier = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && prefix.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if !identifier || prefix.len() > PREFIX_BYTES_MAX {
        return Err(format!(
            "prefix is {prefix:?}: give a letter or underscore, then letters, digits and underscores, at most \
             {PREFIX_BYTES_MAX}"
        ));
    }
    if prefix.to_ascii_lowercase().starts_with("sqlite_") {
        return Err(format!("prefix is {prefix:?}: sqlite keeps names that start with sqlite_ for itself"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named_at_once() {
        let error = SqliteConfig::builder("")
            .prefix("a; DROP TABLE b")
            .payload_bytes_max(0)
            .busy_timeout(Duration::from_secs(601))
            .build()
            .unwrap_err();
        assert_eq!(error.problems().len(), 4, "{error}");
        for word in ["path", "prefix", "payload_bytes_max", "busy_timeout"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn only_identifiers_are_prefixes() {
        let build = |prefix: &str| SqliteConfig::builder("x.db").prefix(prefix).build();
        for good in ["outbox", "_o", "Tenant_7", &"x".repeat(40)] {
            assert!(build(good).is_ok(), "{good}");
        }
        for bad in ["", "7x", "a-b", "a b", "a\"b", "ä", "sqlite_x", "SQLITE_x", &"x".repeat(41)] {
            assert!(build(bad).is_err(), "{bad}");
        }
        assert!(SqliteConfig::builder(":memory:").build().is_err());
    }
}
