//! The consumer's side: [`SqliteInbox`].

use std::{
    collections::BTreeMap,
    future::{Future, ready},
    time::Duration,
};

use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, check_consumer, check_purge_age},
    store::Schema,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::{SqliteConfig, codec::to_micros, error::Context, schema::exists};

/// What each version of the inbox's tables brought, the first one first.
const MIGRATIONS: &[&str] = &["the tables of the inbox"];

/// The version of the inbox's tables that this release makes and needs.
pub const INBOX_SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

const MIGRATE: &str = "run `SqliteInbox::migrate`, or the statements of `inbox_migration_sql`";

const TABLES: [(&str, &[&str]); 3] = [
    ("{p}_inbox", &["consumer", "source", "id", "time", "received_at"]),
    ("{p}_inbox_horizons", &["consumer", "source", "horizon"]),
    ("{p}_inbox_schema", &["only", "version"]),
];

const MIGRATION: &str = "
-- What consumers have handled: one row an event. Only the inbox writes here.
CREATE TABLE IF NOT EXISTS {p}_inbox (
  consumer    TEXT    NOT NULL,
  source      TEXT    NOT NULL,
  id          TEXT    NOT NULL,
  time        INTEGER,                        -- the event's own, in microseconds since 1970-01-01 UTC; null: unknown, never purged
  received_at INTEGER NOT NULL DEFAULT {now},
  PRIMARY KEY (consumer, source, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {p}_inbox_time ON {p}_inbox (consumer, time);

-- How far it was forgotten: an event without a row, and not later than this, may have been handled. Never lowered.
CREATE TABLE IF NOT EXISTS {p}_inbox_horizons (
  consumer TEXT    NOT NULL,
  source   TEXT    NOT NULL,
  horizon  INTEGER NOT NULL,
  PRIMARY KEY (consumer, source)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS {p}_inbox_schema (
  only    INTEGER PRIMARY KEY CHECK (only = 1),
  version INTEGER NOT NULL
);
";

/// The inbox's tables as plain SQL, to be run by a tool of your own. Running it again does nothing. They need
/// none of the outbox's tables.
pub fn inbox_migration_sql(config: &SqliteConfig) -> String {
    format!(
        "-- The inbox, schema version {INBOX_SCHEMA_VERSION}.\nBEGIN IMMEDIATE;{}{}COMMIT;\n",
        config.sql(MIGRATION),
        config.sql(&version_sql()),
    )
}

fn version_sql() -> String {
    // The version of a later release stays, should an earlier one's text be run again.
    format!(
        "INSERT INTO {{p}}_inbox_schema (only, version) VALUES (1, {INBOX_SCHEMA_VERSION}) \
         ON CONFLICT (only) DO UPDATE SET version = max(version, excluded.version);\n"
    )
}

/// The inbox of one consumer, in the consumer's own transaction, on the consumer's own connection. Cheap to
/// clone; holds no connection.
///
/// SQLite has one writer at a time: [`receive`](Self::receive) waits for another one for as long as the
/// connection's busy timeout, then answers [`StoreErrorKind::Conflict`]. Begin the transaction with
/// `TransactionBehavior::Immediate`: a deferred one that has read before is refused at once if anybody wrote
/// meanwhile.
///
/// ```
/// use outbox_core::{Receipt, inbox::EventIdentity};
/// use outbox_sqlite::{SqliteConfig, SqliteInbox};
/// use rusqlite::{Connection, TransactionBehavior};
///
/// # let path = std::env::temp_dir().join(format!("inbox-doc-{}.db", uuid::Uuid::now_v7()));
/// let mut connection = Connection::open(&path)?;
/// let inbox = SqliteInbox::new(&SqliteConfig::builder(&path).build()?, "billing")?;
/// inbox.migrate(&mut connection)?;
/// # connection.execute_batch("CREATE TABLE invoices (order_id TEXT)")?;
///
/// let event = EventIdentity::new("/shop", "01997a4e-8d6c-7c53-a2b0-6b9f5a1d3c11", None)?;
/// let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
/// if inbox.receive(&transaction, &event)? == Receipt::New {
///     transaction.execute("INSERT INTO invoices VALUES ('4711')", [])?;
/// }
/// transaction.commit()?;
/// // Only now acknowledge the message.
/// # drop(connection);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SqliteInbox {
    config: SqliteConfig,
    consumer: String,
}

impl SqliteInbox {
    /// The inbox of `consumer` in the tables whose prefix `config` names: `outbox_inbox…` unless told
    /// otherwise. Opens nothing; the path of `config` is not looked at.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &SqliteConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        Ok(Self { config: config.clone(), consumer: consumer.to_owned() })
    }

    /// Asks in the transaction that `connection` is in. A [`Transaction`] can be given as it is.
    ///
    /// # Errors
    /// As [`Inbox::receive`].
    pub fn receive(&self, connection: &Connection, event: &EventIdentity) -> Result<Receipt, InboxError> {
        insist_on_transaction(connection)?;
        Ok(self.receive_in(connection, event).doing("ask the inbox")?)
    }

    /// Purges in the transaction that `connection` is in.
    ///
    /// # Errors
    /// As [`Inbox::purge`].
    pub fn purge(
        &self,
        connection: &Connection,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        check_purge_age(older_than)?;
        insist_on_transaction(connection)?;
        Ok(self.purge_in(connection, older_than, rows_max).doing("purge the inbox")?)
    }

    /// Makes what is missing, in a transaction of its own. Does nothing where nothing is missing; two
    /// processes may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`] if the tables are of a later release, which are left alone; else what
    /// SQLite says.
    pub fn migrate(&self, connection: &mut Connection) -> Result<(), StoreError> {
        let doing = "migrate the inbox";
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).doing(doing)?;
        self.schema().refuse_newer(self.version(&transaction).doing(doing)?)?;
        transaction.execute_batch(&self.config.sql(MIGRATION)).doing(doing)?;
        transaction.execute_batch(&self.config.sql(&version_sql())).doing(doing)?;
        transaction.commit().doing(doing)
    }

    /// Looks for whatever would break a guarantee, and names all of it at once. Changes nothing.
    ///
    /// # Errors
    /// What SQLite says of a file that cannot be read.
    pub fn check(&self, connection: &Connection) -> Result<Vec<Finding>, StoreError> {
        self.look(connection).doing("check the inbox")
    }

    fn receive_in(&self, connection: &Connection, event: &EventIdentity) -> rusqlite::Result<Receipt> {
        let time = event.time().map(|time| time.timestamp_micros());
        let write = "INSERT INTO {p}_inbox (consumer, source, id, time) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
        let mut write = connection.prepare_cached(&self.config.sql(write))?;
        if write.execute(params![self.consumer, event.source(), event.id(), time])? == 0 {
            return Ok(Receipt::Seen);
        }
        // The transaction is the only writer from here on, so no purge can come between.
        let horizon = "SELECT EXISTS (SELECT 1 FROM {p}_inbox_horizons WHERE consumer = ?1 AND source = ?2 AND horizon >= ?3)";
        let mut horizon = connection.prepare_cached(&self.config.sql(horizon))?;
        if !horizon.query_row(params![self.consumer, event.source(), time], |row| row.get(0))? {
            return Ok(Receipt::New);
        }
        let withdraw = "DELETE FROM {p}_inbox WHERE consumer = ?1 AND source = ?2 AND id = ?3";
        let mut withdraw = connection.prepare_cached(&self.config.sql(withdraw))?;
        withdraw.execute(params![self.consumer, event.source(), event.id()])?;
        Ok(Receipt::TooOld)
    }

    fn purge_in(
        &self,
        connection: &Connection,
        older_than: Duration,
        rows_max: u32,
    ) -> rusqlite::Result<u64> {
        let purge = "DELETE FROM {p}_inbox WHERE consumer = ?1 AND (source, id) IN (SELECT source, id FROM {p}_inbox \
                     WHERE consumer = ?1 AND time < {now} - ?2 ORDER BY time LIMIT ?3) RETURNING source, time";
        let mut purge = connection.prepare_cached(&self.config.sql(purge))?;
        let gone = purge.query_map(params![self.consumer, to_micros(older_than), rows_max], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let (mut count, mut latest) = (0, BTreeMap::new());
        for receipt in gone {
            let (source, time) = receipt?;
            count += 1;
            let horizon = latest.entry(source).or_insert(time);
            *horizon = time.max(*horizon);
        }
        let raise = "INSERT INTO {p}_inbox_horizons AS h (consumer, source, horizon) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (consumer, source) DO UPDATE SET horizon = max(h.horizon, excluded.horizon)";
        let mut raise = connection.prepare_cached(&self.config.sql(raise))?;
        for (source, time) in latest {
            raise.execute(params![self.consumer, source, time])?;
        }
        Ok(count)
    }

    fn schema(&self) -> Schema {
        Schema::new(format!("{}_inbox_schema", self.config.prefix()), MIGRATIONS, MIGRATE)
    }

    fn version(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        if !exists(connection, "table", &self.config.sql("{p}_inbox_schema"))? {
            return Ok(None);
        }
        let sql = self.config.sql("SELECT version FROM {p}_inbox_schema WHERE only = 1");
        connection.query_row(&sql, [], |row| row.get(0)).optional()
    }

    fn look(&self, connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for (table, columns) in TABLES {
            let table = self.config.sql(table);
            if !exists(connection, "table", &table)? {
                findings.push(Finding::error("missing-table", format!("there is no table {table}"), MIGRATE));
                continue;
            }
            let mut found = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
            let found = found.query_map([&table], |row| row.get::<_, String>(0))?;
            let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
            let absent: Vec<_> =
                columns.iter().copied().filter(|column| !found.iter().any(|f| f == column)).collect();
            if !absent.is_empty() {
                let problem = format!("{table} has no column {}", absent.join(", "));
                findings.push(Finding::error("missing-column", problem, MIGRATE));
            }
        }
        if !findings.is_empty() {
            return Ok(findings);
        }
        findings.extend(self.schema().check(self.version(connection)?));
        let timeless = "SELECT EXISTS (SELECT 1 FROM {p}_inbox WHERE consumer = ?1 AND time IS NULL)";
        if connection.query_row(&self.config.sql(timeless), [&self.consumer], |row| row.get(0))? {
            findings.push(Finding::warning(
                "events-without-time",
                format!(
                    "{}_inbox has receipts of {:?} for events without a time, which cannot be purged",
                    self.config.prefix(),
                    self.consumer
                ),
                "let their producer set the CloudEvents attribute time, or give them UUIDv7 ids",
            ));
        }
        if connection.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0))? == 0 {
            findings.push(Finding::warning(
                "synchronous-off",
                "the connection has synchronous = OFF: a power failure can undo an effect after its message was \
                 acknowledged",
                "set PRAGMA synchronous = FULL on the consumer's connections",
            ));
        }
        Ok(findings)
    }
}

/// For code that is generic over stores. The trait's future is ready at once: the work is done by the call
/// itself, on the calling thread, as it is for [`SqliteOutbox`](crate::SqliteOutbox).
impl Inbox<Transaction<'_>> for SqliteInbox {
    fn receive(
        &self,
        transaction: &mut Transaction<'_>,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send {
        ready(Self::receive(self, transaction, event))
    }

    fn purge(
        &self,
        transaction: &mut Transaction<'_>,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send {
        ready(Self::purge(self, transaction, older_than, rows_max))
    }
}

fn insist_on_transaction(connection: &Connection) -> Result<(), InboxError> {
    if connection.is_autocommit() { Err(InboxError::NoTransaction) } else { Ok(()) }
}
