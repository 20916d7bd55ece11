//! `[store]`: which database, and how its outbox is called.

use std::{path::PathBuf, time::Duration};

use outbox_core::WhenSent;

use super::reader::{Reader, variable};

const URL: &str = "store.url";

const URL_REMEDY: &str = "give \"postgres://user:password@host:port/database\", \"mysql://user:password@host:port/database\", \
                          \"mongodb://user:password@host:port/database?replicaSet=name\" or \"sqlite:path/to/file.db\"";

/// The store, by database.
#[derive(Debug, Clone)]
pub(crate) enum StoreConfig {
    #[cfg(feature = "sqlite")]
    Sqlite(outbox_sqlite::SqliteConfig),
    #[cfg(feature = "postgres")]
    Postgres {
        config: Box<outbox_postgres::PostgresConfig>,
        /// The URL without its password and its parameters.
        shown: String,
    },
    #[cfg(feature = "mysql")]
    Mysql {
        config: Box<outbox_mysql::MysqlConfig>,
        /// The URL without its password and its parameters.
        shown: String,
    },
    #[cfg(feature = "mongo")]
    Mongo {
        config: Box<outbox_mongo::MongoConfig>,
        /// The URL without its password and its parameters.
        shown: String,
    },
}

/// What `[store]` says, before a database is chosen.
struct Settings {
    prefix: Option<String>,
    schema: Option<String>,
    connections: Option<u32>,
    busy_timeout: Option<Duration>,
}

pub(super) fn read(reader: &mut Reader, when_sent: WhenSent) -> Option<StoreConfig> {
    let url = reader.text(URL);
    let mut settings = Settings { prefix: None, schema: None, connections: None, busy_timeout: None };
    settings.prefix = reader.text("store.prefix");
    settings.schema = reader.text("store.schema");
    reader.read_integer("store.connections", "a whole number from 1", &mut settings.connections, |text| {
        super::reader::parse_integer(text)?.try_into().ok().map(Some)
    });
    reader.read("store.busy_timeout", super::reader::DURATION, &mut settings.busy_timeout, |text| {
        humantime::parse_duration(text).ok().map(Some)
    });
    let Some(url) = url else {
        reader.missing(URL, URL_REMEDY);
        return None;
    };
    if let Some(rest) = url.strip_prefix("sqlite:") {
        refuse_foreign(reader, "SQLite", &["store.schema", "store.connections"]);
        return sqlite(reader, rest, settings);
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        refuse_foreign(reader, "PostgreSQL", &["store.busy_timeout"]);
        return postgres(reader, &url, settings, when_sent);
    }
    if url.starts_with("mysql://") || url.starts_with("mariadb://") {
        refuse_foreign(reader, "MySQL", &["store.busy_timeout"]);
        return mysql(reader, &url, settings);
    }
    if url.starts_with("mongodb://") || url.starts_with("mongodb+srv://") {
        refuse_foreign(reader, "MongoDB", &["store.busy_timeout"]);
        return mongo(reader, &url, settings);
    }
    reader.problem(URL, &scheme_problem(&url), URL_REMEDY);
    None
}

/// Settings that another database has.
fn refuse_foreign(reader: &mut Reader, database: &str, keys: &[&'static str]) {
    for key in keys {
        if reader.is_given(key) {
            reader.problem(
                key,
                &format!("means nothing to {database}"),
                &format!("remove it, or unset {}", variable(key)),
            );
        }
    }
}

/// The path behind `sqlite:` or `file:`, with or without the two slashes of a URL.
pub(super) fn path_of(rest: &str) -> PathBuf {
    PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))
}

/// What is wrong with a URL's scheme. The text itself may hold a password, also where the scheme should be.
pub(super) fn scheme_problem(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') => {
            format!("has the unknown scheme {scheme:?}")
        }
        _ => "has no known scheme".to_owned(),
    }
}

/// A URL as it may be shown: without the password, and without the parameters, which may hold one.
///
/// A password that should have been percent-encoded can contain any of the URL's own marks, so everything up to the
/// last `@` counts as the user's part.
#[cfg(any(
    feature = "mongo",
    feature = "mysql",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    all(test, feature = "sqlite")
))]
pub(super) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (user.split([':', '/', '?', '#']).next().map(|user| format!("{user}@")), rest),
        None => (None, rest),
    };
    let place = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, database) = place.split_once('/').unwrap_or((place, ""));
    // Without an @, what looks like a port may be the password of a URL whose end got lost.
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_err() => name,
        _ => host,
    };
    format!("{scheme}://{}{host}/{database}", user.unwrap_or_default())
}

#[cfg(feature = "sqlite")]
fn sqlite(reader: &mut Reader, rest: &str, settings: Settings) -> Option<StoreConfig> {
    let path = path_of(rest);
    if rest.contains('?') {
        reader.problem(
            URL,
            "has parameters, which SQLite files take none of",
            "give \"sqlite:path/to/file.db\"",
        );
        return None;
    }
    let mut builder = outbox_sqlite::SqliteConfig::builder(path);
    if let Some(prefix) = settings.prefix {
        builder = builder.prefix(prefix);
    }
    if let Some(timeout) = settings.busy_timeout {
        builder = builder.busy_timeout(timeout);
    }
    match builder.build() {
        Ok(config) => Some(StoreConfig::Sqlite(config)),
        Err(error) => {
            refuse_each(
                reader,
                &[("prefix", "store.prefix"), ("busy_timeout", "store.busy_timeout")],
                error.problems(),
            );
            None
        }
    }
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(reader: &mut Reader, _: &str, _: Settings) -> Option<StoreConfig> {
    not_compiled_in(reader, URL, "SQLite", "sqlite");
    None
}

#[cfg(feature = "postgres")]
fn postgres(reader: &mut Reader, url: &str, settings: Settings, when_sent: WhenSent) -> Option<StoreConfig> {
    use outbox_postgres::{PostgresConfig, SentRows};

    let kept = match when_sent {
        WhenSent::Keep => SentRows::Kept,
        WhenSent::Delete | WhenSent::Archive => SentRows::Deleted,
    };
    let mut builder = PostgresConfig::builder().sent_rows(kept).url(url);
    if let Some(prefix) = settings.prefix {
        builder = builder.table(prefix);
    }
    if let Some(schema) = settings.schema {
        builder = builder.schema(schema);
    }
    if let Some(connections) = settings.connections {
        builder = builder.connections(connections);
    }
    match builder.build() {
        Ok(config) => Some(StoreConfig::Postgres { config: Box::new(config), shown: redacted(url) }),
        Err(error) => {
            let keys =
                [("table", "store.prefix"), ("schema", "store.schema"), ("connections", "store.connections")];
            refuse_each(reader, &keys, error.problems());
            None
        }
    }
}

#[cfg(not(feature = "postgres"))]
fn postgres(reader: &mut Reader, _: &str, _: Settings, _: WhenSent) -> Option<StoreConfig> {
    not_compiled_in(reader, URL, "PostgreSQL", "postgres");
    None
}

#[cfg(feature = "mysql")]
fn mysql(reader: &mut Reader, url: &str, settings: Settings) -> Option<StoreConfig> {
    let mut builder = outbox_mysql::MysqlConfig::builder().url(url);
    if let Some(prefix) = settings.prefix {
        builder = builder.table(prefix);
    }
    if let Some(schema) = settings.schema {
        builder = builder.schema(schema);
    }
    if let Some(connections) = settings.connections {
        builder = builder.connections(connections);
    }
    match builder.build() {
        Ok(config) => Some(StoreConfig::Mysql { config: Box::new(config), shown: redacted(url) }),
        Err(error) => {
            let keys =
                [("table", "store.prefix"), ("schema", "store.schema"), ("connections", "store.connections")];
            refuse_each(reader, &keys, error.problems());
            None
        }
    }
}

#[cfg(not(feature = "mysql"))]
fn mysql(reader: &mut Reader, _: &str, _: Settings) -> Option<StoreConfig> {
    not_compiled_in(reader, URL, "MySQL", "mysql");
    None
}

#[cfg(feature = "mongo")]
fn mongo(reader: &mut Reader, url: &str, settings: Settings) -> Option<StoreConfig> {
    let mut builder = outbox_mongo::MongoConfig::builder().url(url);
    if let Some(prefix) = settings.prefix {
        builder = builder.table(prefix);
    }
    if let Some(schema) = settings.schema {
        builder = builder.database(schema);
    }
    if let Some(connections) = settings.connections {
        builder = builder.connections(connections);
    }
    match builder.build() {
        Ok(config) => Some(StoreConfig::Mongo { config: Box::new(config), shown: redacted(url) }),
        Err(error) => {
            let keys = [
                ("table", "store.prefix"),
                ("database is \"", "store.schema"),
                ("connections", "store.connections"),
            ];
            refuse_each(reader, &keys, error.problems());
            None
        }
    }
}

#[cfg(not(feature = "mongo"))]
fn mongo(reader: &mut Reader, _: &str, _: Settings) -> Option<StoreConfig> {
    not_compiled_in(reader, URL, "MongoDB", "mongo");
    None
}

/// What an adapter said of its settings, by its names for them; what is not among `keys` is of the URL.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql", feature = "mongo"))]
fn refuse_each(reader: &mut Reader, keys: &[(&str, &'static str)], problems: &[String]) {
    for problem in problems {
        let key = keys.iter().find(|(name, _)| problem.starts_with(name)).map_or(URL, |(_, key)| key);
        refused(reader, key, problem);
    }
}

/// What an adapter said of a setting, whose text ends with the remedy.
#[allow(dead_code, reason = "without any feature there is no adapter")]
pub(super) fn refused(reader: &mut Reader, key: &'static str, problem: &str) {
    let (problem, remedy) = problem.rsplit_once(": ").unwrap_or((problem, "correct it"));
    reader.problem(key, &format!("is refused: {problem}"), remedy);
}

#[allow(dead_code, reason = "with every feature there is nothing that is not compiled in")]
pub(super) fn not_compiled_in(reader: &mut Reader, key: &'static str, name: &str, feature: &str) {
    reader.problem(
        key,
        &format!("asks for {name}, which this program was built without"),
        &format!("build it with the cargo feature {feature}"),
    );
}
