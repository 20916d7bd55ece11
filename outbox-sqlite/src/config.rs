//! What a store is told: [`SqliteConfig`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, check_identifier},
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};

/// The table prefix of a configuration that names none.
pub const PREFIX_DEFAULT: &str = "outbox";

/// How long a statement waits for another writer unless told otherwise. Five seconds is what SQLite's own
/// drivers for Python and Rust use.
pub const BUSY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The settings that a program which reads some can give: see [`SqliteAdapter`](crate::SqliteAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "prefix",
        Kind::Text,
        "The name of the events' table, and what the names of the tables beside it start with.",
    )
    .default(PREFIX_DEFAULT),
    BUSY_TIMEOUT,
];

/// A relay that waits longer than ten minutes for another writer has lost its lease.
const BUSY_TIMEOUT: Setting = Setting::new(
    "busy_timeout",
    Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(600) },
    "How long a statement waits for another writer.",
)
.default("5s");

/// What SQLite can store: `SQLITE_MAX_LENGTH`, 10^9 by default (<https://www.sqlite.org/limits.html>).
const PAYLOAD_BYTES: Setting = Setting::new(
    "payload_bytes_max",
    Kind::Integer { min: 1, max: 1_000_000_000 },
    "The largest payload that `enqueue` takes.",
)
.unit("bytes");

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

    /// A statement with this configuration's names: `{p}` is the prefix, `{now}` the database's clock in
    /// microseconds.
    pub(crate) fn sql(&self, template: &str) -> String {
        template.replace("{p}", &self.prefix).replace("{now}", crate::codec::NOW)
    }
}

/// Builds a [`SqliteConfig`].
#[derive(Debug, Clone)]
#[must_use = "a configuration is validated by build"]
pub struct SqliteConfigBuilder(SqliteConfig);

impl SqliteConfigBuilder {
    /// Sets the name of the events' table, which the other tables' names start with: a letter or underscore,
    /// then letters, digits and underscores, at most 40. Default [`PREFIX_DEFAULT`].
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

    /// Sets how long a statement waits for another writer, at most ten minutes. Default
    /// [`BUSY_TIMEOUT_DEFAULT`].
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
            problems.push(Problem::new("path", "is empty", "name the database file"));
        }
        if config.path.as_os_str() == ":memory:" {
            problems.push(Problem::new(
                "path",
                "is :memory:, which every connection has for itself",
                "name a file that the service and the relay share",
            ));
        }
        check_identifier("prefix", &config.prefix, &mut problems);
        if config.prefix.to_ascii_lowercase().starts_with("sqlite_") {
            let what =
                format!("is {:?}, and SQLite keeps names that start with sqlite_ for itself", config.prefix);
            problems.push(Problem::new("prefix", what, "give another one"));
        }
        PAYLOAD_BYTES.check_integer(config.payload_bytes_max, &mut problems);
        BUSY_TIMEOUT.check_duration(config.busy_timeout, &mut problems);
        ConfigError::check(problems)?;
        Ok(config)
    }
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
