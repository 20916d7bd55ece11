//! The tables: their SQL, the migration that makes them, and the check that finds them wanting.

use std::time::Duration;

use outbox_core::{Finding, StoreError, StoreErrorKind};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use crate::{SqliteConfig, connection, error::Context};

/// What each version of the schema brought, the first one first. A version that was released is never changed: a change
/// is a further entry, with its statements in [`MIGRATION`] such that they do nothing where they were done.
const MIGRATIONS: &[&str] = &["the tables of the outbox"];

/// The version of the schema that this release makes and needs.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The database's clock: microseconds since 1970-01-01 UTC, with SQLite's own resolution of a millisecond.
///
/// `unixepoch('subsec')` would read better, but a writer may bring a library older than 3.42, where it is null.
pub(crate) const NOW: &str = "(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)";

/// The oldest SQLite library this crate can run on: `RETURNING` came with 3.35.
const SQLITE_VERSION_MIN: i32 = 3_035_000;

/// How long `migrate` waits between attempts to switch to WAL.
const WAL_RETRY: Duration = Duration::from_millis(10);

/// The columns of an event, in the table and in the archive.
const COLUMNS: &[&str] = &[
    "sequence",
    "id",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "version",
    "payload",
    "content_type",
    "headers",
    "topic",
    "created_at",
    "available_at",
    "status",
    "attempts",
    "last_error",
    "cause",
    "sent_at",
    "failed_at",
];

const TABLES: &[&str] = &["", "_relays", "_partitions", "_holds", "_archive", "_topics", "_schema"];

const INDEXES: &[&str] =
    &["_id", "_pending", "_by_key", "_scheduled", "_sent", "_failed", "_holds_due", "_holds_paused"];

/// The statements inside the migration's transaction. `IF NOT EXISTS` everywhere, so that running them again, or in
/// two processes at once, does nothing.
const MIGRATION: &str = "
CREATE TABLE IF NOT EXISTS {p} (
  -- AUTOINCREMENT never gives a number twice, not even that of a deleted row. Do not set it yourself.
  sequence       INTEGER PRIMARY KEY AUTOINCREMENT CHECK (sequence > 0),
  id             TEXT    NOT NULL COLLATE NOCASE DEFAULT (lower(
                   hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
                   substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' ||
                   hex(randomblob(6)))),
  aggregate_type TEXT    NOT NULL,
  aggregate_id   TEXT    NOT NULL,
  event_type     TEXT    NOT NULL,
  version        INTEGER NOT NULL DEFAULT 1,
  payload        BLOB,                           -- a blob or a text; null cannot be published
  content_type   TEXT,                           -- null: application/json
  headers        TEXT,                           -- a JSON object whose values are strings; null: none
  topic          TEXT,                           -- null: the relay's choice
  created_at     INTEGER NOT NULL DEFAULT {now}, -- every time is in microseconds since 1970-01-01 UTC
  available_at   INTEGER,                        -- null: at once
  status         INTEGER NOT NULL DEFAULT 0 CHECK (status IN (0, 1, 2)), -- pending, sent, failed
  attempts       INTEGER NOT NULL DEFAULT 0,
  last_error     TEXT,
  cause          TEXT,
  sent_at        INTEGER,
  failed_at      INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS {p}_id ON {p} (id);
CREATE INDEX IF NOT EXISTS {p}_pending ON {p} (sequence) WHERE status = 0;
CREATE INDEX IF NOT EXISTS {p}_by_key ON {p} (aggregate_type, aggregate_id, sequence) WHERE status = 0;
CREATE INDEX IF NOT EXISTS {p}_scheduled ON {p} (available_at, sequence) WHERE status = 0 AND available_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS {p}_sent ON {p} (sent_at) WHERE status = 1;
CREATE INDEX IF NOT EXISTS {p}_failed ON {p} (failed_at) WHERE status = 2;

CREATE TABLE IF NOT EXISTS {p}_relays (
  relay_id   TEXT    NOT NULL PRIMARY KEY,
  expires_at INTEGER NOT NULL,
  ttl        INTEGER NOT NULL -- in microseconds; tells an expiry that a clock which was set back has put far ahead
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS {p}_partitions (
  partition INTEGER PRIMARY KEY,
  epoch     INTEGER NOT NULL DEFAULT 0,
  owner     TEXT
);
INSERT OR IGNORE INTO {p}_partitions (partition) VALUES (0);

CREATE TABLE IF NOT EXISTS {p}_holds (
  aggregate_type TEXT    NOT NULL,
  aggregate_id   TEXT    NOT NULL,
  sequence       INTEGER, -- the event that is held; null: a plain pause
  until          INTEGER CHECK (typeof(until) IN ('integer', 'null')), -- null: without end
  reason         TEXT    NOT NULL,
  paused_at      INTEGER, -- null: not paused by an operator
  PRIMARY KEY (aggregate_type, aggregate_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {p}_holds_due ON {p}_holds (until) WHERE paused_at IS NULL AND until IS NOT NULL;
CREATE INDEX IF NOT EXISTS {p}_holds_paused ON {p}_holds (paused_at) WHERE paused_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS {p}_archive (
  sequence       INTEGER PRIMARY KEY,
  id             TEXT    NOT NULL COLLATE NOCASE,
  aggregate_type TEXT    NOT NULL,
  aggregate_id   TEXT    NOT NULL,
  event_type     TEXT    NOT NULL,
  version        INTEGER NOT NULL,
  payload        BLOB,
  content_type   TEXT,
  headers        TEXT,
  topic          TEXT,
  created_at     INTEGER NOT NULL,
  available_at   INTEGER,
  status         INTEGER NOT NULL,
  attempts       INTEGER NOT NULL,
  last_error     TEXT,
  cause          TEXT,
  sent_at        INTEGER,
  failed_at      INTEGER,
  archived_at    INTEGER NOT NULL DEFAULT {now}
);

CREATE TABLE IF NOT EXISTS {p}_topics (
  topic     TEXT    NOT NULL PRIMARY KEY, -- paused by an operator
  paused_at INTEGER NOT NULL DEFAULT {now}
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS {p}_schema (
  only    INTEGER PRIMARY KEY CHECK (only = 1),
  version INTEGER NOT NULL
);
";

/// The names of an event's columns, with commas.
pub(crate) fn columns() -> String {
    COLUMNS.join(", ")
}

/// The migration as plain SQL, to be run by a tool of your own, outside a transaction. Running it again does nothing.
pub fn migration_sql(config: &SqliteConfig) -> String {
    format!(
        "-- The outbox, schema version {SCHEMA_VERSION}. The journal mode is kept in the file and cannot change inside a \
         transaction.\nPRAGMA journal_mode = WAL;\nBEGIN IMMEDIATE;{}{}COMMIT;\n",
        config.sql(MIGRATION),
        config.sql(&version_sql()),
    )
}

fn version_sql() -> String {
    // The version of a later release stays, should an earlier one's text be run again.
    format!(
        "INSERT INTO {{p}}_schema (only, version) VALUES (1, {SCHEMA_VERSION}) \
         ON CONFLICT (only) DO UPDATE SET version = max(version, excluded.version);\n"
    )
}

/// Which migrations tables of this version lack, for people.
pub(crate) fn missing_migrations(version: i64) -> String {
    let lacks = |index: &usize| i64::try_from(*index).is_ok_and(|index| index >= version);
    let names: Vec<String> = (0..MIGRATIONS.len())
        .filter(lacks)
        .map(|index| format!("{} ({})", index + 1, MIGRATIONS[index]))
        .collect();
    let (noun, verb) = if names.len() == 1 { ("migration", "is") } else { ("migrations", "are") };
    format!("{noun} {} {verb} missing", names.join(", "))
}

/// Creates the file if there is none, switches it to WAL, and makes what is missing. Does nothing where nothing is
/// missing; two processes may do it at once.
///
/// # Errors
/// [`StoreErrorKind::Schema`] if the schema is of a later release, which is left alone; else what SQLite says.
pub fn migrate(config: &SqliteConfig) -> Result<(), StoreError> {
    let mut connection = connection::open(config, OpenFlags::SQLITE_OPEN_CREATE)
        .doing(&format!("open {} to migrate it", config.path().display()))?;
    let doing = "migrate the outbox";
    refuse_newer(config, recorded_version(config, &connection).doing(doing)?)?;
    switch_to_wal(config, &connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).doing(doing)?;
    // Read again under the lock: another process may have migrated meanwhile.
    refuse_newer(config, recorded_version(config, &transaction).doing(doing)?)?;
    transaction.execute_batch(&config.sql(MIGRATION)).doing(doing)?;
    transaction.execute_batch(&config.sql(&version_sql())).doing(doing)?;
    transaction.commit().doing(doing)
}

fn refuse_newer(config: &SqliteConfig, version: Option<i64>) -> Result<(), StoreError> {
    match version {
        Some(version) if version > SCHEMA_VERSION => Err(StoreError::new(
            StoreErrorKind::Schema,
            format!(
                "{}_schema has version {version}, made by a later release, and this one knows {SCHEMA_VERSION}: upgrade \
                 this program",
                config.prefix()
            ),
        )),
        _ => Ok(()),
    }
}

fn recorded_version(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<Option<i64>> {
    if !exists(connection, "table", &config.sql("{p}_schema"))? {
        return Ok(None);
    }
    connection
        .query_row(&config.sql("SELECT version FROM {p}_schema WHERE only = 1"), [], |row| row.get(0))
        .optional()
}

/// SQLite does not call its busy handler for the lock that this switch needs, so that two processes that migrate a
/// new file at once meet `SQLITE_BUSY` at once: hence the loop, bounded by the busy timeout.
fn switch_to_wal(config: &SqliteConfig, connection: &Connection) -> Result<(), StoreError> {
    let tries = config.busy_timeout().as_millis() / WAL_RETRY.as_millis();
    for _ in 0..tries {
        let switched = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match switched {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                std::thread::sleep(WAL_RETRY);
            }
            other => return other.map(drop).doing("switch the database to WAL"),
        }
    }
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).doing("switch the database to WAL")
}

pub(crate) fn exists(connection: &Connection, kind: &str, name: &str) -> rusqlite::Result<bool> {
    // Names of tables ignore case in SQLite.
    let sql = "SELECT EXISTS(SELECT 1 FROM sqlite_master WHERE type = ?1 AND name = ?2 COLLATE NOCASE)";
    connection.query_row(sql, (kind, name), |row| row.get(0))
}

/// Looks at the file and everything in it that could break a guarantee.
pub(crate) fn check(config: &SqliteConfig) -> Result<Vec<Finding>, StoreError> {
    let path = config.path().display();
    if !config.path().exists() {
        let problem = format!("there is no file {path}");
        return Ok(vec![Finding::error(
            "missing-file",
            problem,
            "correct the path, or run the migration to create it",
        )]);
    }
    match connection::open(config, OpenFlags::empty()).and_then(|connection| inspect(config, &connection)) {
        Ok(findings) => Ok(findings),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => Ok(vec![Finding::error(
            "not-a-database",
            format!("{path} is not a SQLite database, or an encrypted one"),
            "correct the path",
        )]),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
            Ok(vec![Finding::error(
                "corrupt",
                format!("{path} is damaged: {error}"),
                "restore it from a backup, or recover it with the sqlite3 shell's .recover",
            )])
        }
        Err(error)
            if matches!(
                crate::error::classify(&error),
                StoreErrorKind::Unavailable | StoreErrorKind::Denied
            ) =>
        {
            Ok(vec![Finding::error(
                "unreadable",
                format!("{path} cannot be opened: {error}"),
                "let the relay read and write the file and its directory, where SQLite keeps the write-ahead log",
            )])
        }
        Err(error) => Err(crate::error::store_error("inspect the database", error)),
    }
}

fn inspect(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let path = config.path().display();
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        findings.push(Finding::error(
            "sqlite-too-old",
            format!("the SQLite library is {}, and 3.35.0 is needed", rusqlite::version()),
            "build with the bundled library, which is the default of this crate",
        ));
    }
    if connection.is_readonly("main")? {
        findings.push(Finding::error(
            "read-only",
            format!("{path} can be read but not written"),
            "let the relay write the file and its directory",
        ));
    }
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        findings.push(Finding::warning(
            "journal-mode",
            format!("the journal mode of {path} is {mode}: the relay and the service block each other"),
            "run the migration, or PRAGMA journal_mode = WAL",
        ));
    }
    inspect_schema(config, connection, &mut findings)?;
    Ok(findings)
}

fn inspect_schema(
    config: &SqliteConfig,
    connection: &Connection,
    findings: &mut Vec<Finding>,
) -> rusqlite::Result<()> {
    const MIGRATE: &str = "run the migration";
    let prefix = config.prefix();
    for suffix in TABLES {
        if !exists(connection, "table", &format!("{prefix}{suffix}"))? {
            let problem = format!("there is no table {prefix}{suffix}");
            findings.push(Finding::error("missing-table", problem, MIGRATE));
        }
    }
    for (table, columns) in [(prefix.to_owned(), COLUMNS), (format!("{prefix}_archive"), COLUMNS)] {
        let missing = missing_columns(connection, &table, columns)?;
        if !missing.is_empty() {
            let problem = format!("table {table} has no column {}", missing.join(", "));
            findings.push(Finding::error(
                "missing-column",
                problem,
                "rename that table, then run the migration",
            ));
        }
    }
    for suffix in INDEXES {
        // An index of a table that is missing is no news.
        let table = if suffix.starts_with("_holds") { format!("{prefix}_holds") } else { prefix.to_owned() };
        if exists(connection, "table", &table)? && !exists(connection, "index", &format!("{prefix}{suffix}"))?
        {
            let problem = format!("there is no index {prefix}{suffix}, which the reader names");
            findings.push(Finding::error("missing-index", problem, MIGRATE));
        }
    }
    if exists(connection, "table", prefix)? && !has_autoincrement(connection, prefix)? {
        findings.push(Finding::error(
            "no-autoincrement",
            format!("table {prefix} has no AUTOINCREMENT: SQLite gives the numbers of deleted rows again, out of order"),
            "create the table by the migration and copy the rows",
        ));
    }
    match recorded_version(config, connection)? {
        Some(version) if version > SCHEMA_VERSION => findings.push(Finding::error(
            "newer-schema",
            format!("{prefix}_schema has version {version}, and this release knows {SCHEMA_VERSION}"),
            "upgrade this program",
        )),
        Some(version) if version < SCHEMA_VERSION => findings.push(Finding::error(
            "older-schema",
            format!(
                "{prefix}_schema has version {version}, and this release needs {SCHEMA_VERSION}: {}",
                missing_migrations(version)
            ),
            MIGRATE,
        )),
        None if exists(connection, "table", &format!("{prefix}_schema"))? => {
            let problem = format!("{prefix}_schema names no version");
            findings.push(Finding::error("older-schema", problem, MIGRATE));
        }
        _ => {}
    }
    Ok(())
}

fn missing_columns(
    connection: &Connection,
    table: &str,
    columns: &[&'static str],
) -> rusqlite::Result<Vec<&'static str>> {
    if !exists(connection, "table", table)? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare("SELECT lower(name) FROM pragma_table_info(?1)")?;
    let present =
        statement.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(columns.iter().copied().filter(|column| !present.iter().any(|name| name == column)).collect())
}

fn has_autoincrement(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let text: String = connection.query_row(sql, [table], |row| row.get(0))?;
    // SQLite keeps comments in the text, and ours name the word.
    Ok(text.lines().any(|line| {
        line.split("--").next().is_some_and(|code| code.to_ascii_uppercase().contains("AUTOINCREMENT"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_is_found() {
        let path = std::env::temp_dir().join(format!("outbox-read-only-{}.db", uuid::Uuid::now_v7()));
        let config = SqliteConfig::builder(&path).build().unwrap();
        migrate(&config).unwrap();
        // Opened read-only, since the permissions of a file do not stop a test that runs as root.
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let codes: Vec<_> =
            inspect(&config, &connection).unwrap().iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["read-only"]);
        drop(connection);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
}
