//! The tables: their SQL, and the migration that makes them.

use std::time::Duration;

use outbox_core::{
    StoreError,
    store::{NAME_BYTES_MAX, Schema},
};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use crate::{SqliteConfig, database::open, error::Context};

/// What each version of the schema brought, the first one first. A version that was released is never
/// changed: a change is a further entry, with its statements in [`MIGRATION`] such that they do nothing where
/// they were done.
const MIGRATIONS: &[&str] = &[
    "the tables of the outbox",
    "names of at most 255 bytes, an archive that takes a number twice, and no relays of version 1",
];

/// The version of the schema that this release makes and needs.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The remedy for what a migration puts right.
pub(crate) const MIGRATE: &str = "run `outbox migrate`, or `SqliteStore::migrate` in a program; \
    `outbox migrate --print` and `migration_sql` give the statements";

/// How long `migrate` waits between attempts to switch to WAL.
const WAL_RETRY: Duration = Duration::from_millis(10);

/// The columns whose length is limited.
const NAMES: &[&str] = &["aggregate_type", "aggregate_id", "event_type", "content_type", "topic"];

/// The columns of an event, in the table and in the archive.
pub(crate) const COLUMNS: &[&str] = &[
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

/// An index of version 1, without its prefix, that every fetch of that version names.
pub(crate) const INDEX_OF_VERSION_1: &str = "_holds_due";

/// The statements inside the migration's transaction. `IF NOT EXISTS` everywhere, so that running them again,
/// or in two processes at once, does nothing.
///
/// Names are limited by triggers and not by constraints. SQLite adds a constraint to a table only by copying
/// it, which no text can do once and not again, and drops the user's own triggers and indexes with the old
/// one. A trigger looks only at what is written from now on, so that no row of before is ever in the way of a
/// settle; and `INSERT OR IGNORE`, which passes over a constraint without a word, cannot pass over it.
///
/// For the same reason the key of the archive stays, and what it has no place for has a table of its own.
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
  payload        BLOB,                           -- a text or a blob; null is a tombstone
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
-- A name has at most 255 bytes. What a relay records is never refused: it writes none of these columns.
CREATE TRIGGER IF NOT EXISTS {p}_inserted BEFORE INSERT ON {p}
BEGIN SELECT CASE {limits}
  WHEN NEW.attempts < 0 THEN RAISE(ABORT, 'attempts is negative') END; END;
CREATE TRIGGER IF NOT EXISTS {p}_updated
BEFORE UPDATE OF aggregate_type, aggregate_id, event_type, content_type, topic ON {p}
BEGIN SELECT CASE {limits} END; END;
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
-- Relays of version 1 name this index in every fetch. They would take a tombstone for an error.
DROP INDEX IF EXISTS {p}_holds_due;
CREATE INDEX IF NOT EXISTS {p}_holds_until ON {p}_holds (until) WHERE paused_at IS NULL AND until IS NOT NULL;
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

-- Events whose number another event in the archive has: they come after the table's numbers were reset.
CREATE TABLE IF NOT EXISTS {p}_archive_again (
  sequence       INTEGER NOT NULL,
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
  archived_at    INTEGER NOT NULL DEFAULT {now},
  PRIMARY KEY (sequence, id)
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

/// The migration as plain SQL, to be run by a tool of your own, outside a transaction. Running it again does
/// nothing. It has triggers, so a tool that cuts a text at each semicolon cannot run it.
pub fn migration_sql(config: &SqliteConfig) -> String {
    format!(
        "-- The outbox, schema version {SCHEMA_VERSION}. The journal mode is kept in the file and cannot change inside a \
         transaction.\nPRAGMA journal_mode = WAL;\nBEGIN IMMEDIATE;{}{}COMMIT;\n",
        statements(config),
        config.sql(&version_sql()),
    )
}

/// The statements that make everything but the version.
pub(crate) fn statements(config: &SqliteConfig) -> String {
    config.sql(&MIGRATION.replace("{limits}", &limits()))
}

/// What no relay could record is refused, each name by its column. Whatever else is odd fails alone.
fn limits() -> String {
    let too_long = |name: &&str| {
        format!(
            "WHEN length(CAST(NEW.{name} AS BLOB)) > {NAME_BYTES_MAX} \
             THEN RAISE(ABORT, '{name} has more than {NAME_BYTES_MAX} bytes')"
        )
    };
    NAMES.iter().map(too_long).collect::<Vec<_>>().join("\n  ")
}

fn version_sql() -> String {
    // The version of a later release stays, should an earlier one's text be run again.
    format!(
        "INSERT INTO {{p}}_schema (only, version) VALUES (1, {SCHEMA_VERSION}) \
         ON CONFLICT (only) DO UPDATE SET version = max(version, excluded.version);\n"
    )
}

/// What is known of the tables.
pub(crate) fn schema(config: &SqliteConfig) -> Schema {
    let object = format!("{}_schema in {}", config.prefix(), config.path().display());
    Schema::new(object, MIGRATIONS, MIGRATE)
}

/// Creates the file if there is none, switches it to WAL, and makes what is missing. Does nothing where
/// nothing is missing; two processes may do it at once.
///
/// # Errors
/// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the schema is of a later release, which
/// is left alone; else what SQLite says.
pub fn migrate(config: &SqliteConfig) -> Result<(), StoreError> {
    let mut connection = open(config, OpenFlags::SQLITE_OPEN_CREATE)
        .doing(&format!("open {} to migrate it", config.path().display()))?;
    let doing = "migrate the outbox";
    let schema = schema(config);
    schema.refuse_newer(recorded_version(config, &connection).doing(doing)?)?;
    switch_to_wal(config, &connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).doing(doing)?;
    // Read again under the lock: another process may have migrated meanwhile.
    schema.refuse_newer(recorded_version(config, &transaction).doing(doing)?)?;
    transaction.execute_batch(&statements(config)).doing(doing)?;
    transaction.execute_batch(&config.sql(&version_sql())).doing(doing)?;
    transaction.commit().doing(doing)
}

pub(crate) fn recorded_version(
    config: &SqliteConfig,
    connection: &Connection,
) -> rusqlite::Result<Option<i64>> {
    if !exists(connection, "table", &config.sql("{p}_schema"))? {
        return Ok(None);
    }
    connection
        .query_row(&config.sql("SELECT version FROM {p}_schema WHERE only = 1"), [], |row| row.get(0))
        .optional()
}

/// SQLite does not call its busy handler for the lock that this switch needs, so that two processes that
/// migrate a new file at once meet `SQLITE_BUSY` at once: hence the loop, bounded by the busy timeout.
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

/// Whether there is such a table, index or trigger.
pub(crate) fn exists(connection: &Connection, kind: &str, name: &str) -> rusqlite::Result<bool> {
    // Names of tables ignore case in SQLite.
    let sql = "SELECT EXISTS(SELECT 1 FROM sqlite_master WHERE type = ?1 AND name = ?2 COLLATE NOCASE)";
    connection.query_row(sql, (kind, name), |row| row.get(0))
}
