//! The consumer's side: [`SqliteInbox`].

use std::{
    collections::BTreeMap,
    future::{Future, ready},
    time::Duration,
};

use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, check_consumer, check_purge_age},
    statement::{Driver, DriverError, Parameter, ReceiveBy, Statement},
    store::Schema,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use crate::{
    Sqlite, SqliteConfig,
    codec::to_micros,
    driver::{Rusqlite, at_once},
    enqueue::is_inside,
    error::{Context, driver_error},
    schema::exists,
};

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

/// The inbox's tables as plain SQL, to be run by a tool of your own. Running it again does nothing. They
/// need none of the outbox's tables.
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

/// The inbox of one consumer, in the consumer's own transaction, on the consumer's own connection. Cheap
/// to clone; holds no connection.
///
/// SQLite has one writer at a time: [`receive`](Self::receive) waits for another one for as long as the
/// connection's busy timeout, then answers
/// [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict). Begin the transaction with
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
        at_once(self.receive_in(&Rusqlite, &mut &*connection, event))
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
        at_once(self.purge_in(&Rusqlite, &mut &*connection, older_than, rows_max))
    }

    /// Makes what is missing, in a transaction of its own. Does nothing where nothing is missing; two
    /// processes may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the tables are of a later release,
    /// which are left alone; else what SQLite says.
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

    /// A statement whose first parameter is the consumer.
    fn statement<'a>(
        &'a self,
        template: &str,
        others: impl IntoIterator<Item = Parameter<'a>>,
    ) -> Statement<'a> {
        let mut parameters = vec![Parameter::text(&self.consumer)];
        parameters.extend(others);
        Statement::new(self.config.sql(template).into(), parameters)
    }

    async fn receive_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        insist_on_transaction(driver, transaction).await?;
        let receipt = self.receipt(driver, transaction, event).await;
        Ok(receipt.map_err(|error| driver_error("ask the inbox", error))?)
    }

    async fn receipt<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, DriverError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        let (source, id) = (Parameter::text(event.source()), Parameter::text(event.id()));
        let time = Parameter::BigInteger(event.time().map(|time| time.timestamp_micros()));
        let write = "INSERT INTO {p}_inbox (consumer, source, id, time) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT DO NOTHING RETURNING 1 AS number";
        let write = self.statement(write, [source.clone(), id.clone(), time.clone()]);
        if driver.numbers(transaction, write).await?.is_empty() {
            return Ok(Receipt::Seen);
        }
        // The transaction is the only writer from here on, so no purge can come between.
        let horizon = "SELECT 1 AS number FROM {p}_inbox_horizons \
                       WHERE consumer = ?1 AND source = ?2 AND horizon >= ?3";
        let horizon = self.statement(horizon, [source.clone(), time]);
        if driver.numbers(transaction, horizon).await?.is_empty() {
            return Ok(Receipt::New);
        }
        let withdraw = "DELETE FROM {p}_inbox WHERE consumer = ?1 AND source = ?2 AND id = ?3";
        driver.execute(transaction, self.statement(withdraw, [source, id])).await?;
        Ok(Receipt::TooOld)
    }

    async fn purge_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        check_purge_age(older_than)?;
        insist_on_transaction(driver, transaction).await?;
        let purged = self.purged(driver, transaction, older_than, rows_max).await;
        Ok(purged.map_err(|error| driver_error("purge the inbox", error))?)
    }

    async fn purged<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, DriverError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        let purge = "DELETE FROM {p}_inbox WHERE consumer = ?1 AND (source, id) IN (SELECT source, id FROM {p}_inbox \
                     WHERE consumer = ?1 AND time < {now} - ?2 ORDER BY time LIMIT ?3) \
                     RETURNING source AS name, time AS number";
        let age = Parameter::BigInteger(Some(to_micros(older_than)));
        let purge = self.statement(purge, [age, Parameter::BigInteger(Some(rows_max.into()))]);
        let gone = driver.named_numbers(transaction, purge).await?;
        let mut latest = BTreeMap::new();
        for (source, time) in &gone {
            let horizon = latest.entry(source).or_insert(*time);
            *horizon = (*time).max(*horizon);
        }
        let raise = "INSERT INTO {p}_inbox_horizons AS h (consumer, source, horizon) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (consumer, source) DO UPDATE SET horizon = max(h.horizon, excluded.horizon)";
        for (source, time) in latest {
            let raise = self.statement(raise, [Parameter::text(source), Parameter::BigInteger(Some(time))]);
            driver.execute(transaction, raise).await?;
        }
        Ok(gone.len() as u64)
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

impl ReceiveBy for SqliteInbox {
    type Dialect = Sqlite;

    async fn receive_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError>
    where
        T: ?Sized + Send,
        D: Driver<T, Sqlite> + Sync,
    {
        self.receive_in(driver, transaction, event).await
    }

    async fn purge_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError>
    where
        T: ?Sized + Send,
        D: Driver<T, Sqlite> + Sync,
    {
        self.purge_in(driver, transaction, older_than, rows_max).await
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

async fn insist_on_transaction<T, D>(driver: &D, transaction: &mut T) -> Result<(), InboxError>
where
    T: ?Sized,
    D: Driver<T, Sqlite>,
{
    match is_inside(driver, transaction).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(InboxError::NoTransaction),
        Err(error) => Err(driver_error("ask the inbox in this transaction", error).into()),
    }
}
