//! The consumer's side: receipts in the consumer's own transaction.

mod schema;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use chrono::DateTime;
use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, PURGE_AGE_MIN, check_consumer, check_purge_age},
    statement::{Driver, DriverError, Parameter, ReceiveBy, Statement},
};
use sqlx::MySqlConnection;

use crate::{
    Mysql, MysqlConfig,
    codec::{json, micros, micros_of, rows},
    config::Tables,
    driver::Sqlx,
    enqueue::storable,
    error::{DUPLICATE, NO_SAVEPOINT, driver_error, number_of},
};

pub use schema::inbox_migration_sql;

/// The inbox of one consumer, in a transaction of the consumer. Has no connection of its own and is cheap
/// to clone.
///
/// ```no_run
/// # async fn handle(pool: sqlx::MySqlPool, event: outbox_core::ReceivedEvent) -> Result<(), Box<dyn std::error::Error>> {
/// use outbox_core::{Inbox, Receipt};
/// use outbox_mysql::{MysqlConfig, MysqlInbox};
///
/// let inbox = MysqlInbox::new(&MysqlConfig::builder().schema("billing").build()?, "billing")?;
/// let mut transaction = pool.begin().await?;
/// if inbox.receive(&mut transaction, &event.identity).await? == Receipt::New {
///     sqlx::query("INSERT INTO invoices (order_id) VALUES (4711)").execute(&mut *transaction).await?;
/// }
/// transaction.commit().await?;
/// // Only now acknowledge the message.
/// # Ok(()) }
/// ```
///
/// Outside a transaction it refuses, as [`MysqlOutbox`](crate::MysqlOutbox) does. For other drivers than
/// sqlx, see [`outbox_core::statement`].
///
/// Under every isolation level, a copy of an event that another transaction is handling waits for its end,
/// for as long as `innodb_lock_wait_timeout` says. After that, and where the server ends a deadlock, the
/// answer is [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict): roll back, and begin
/// again.
#[derive(Clone)]
pub struct MysqlInbox {
    consumer: Arc<str>,
    tables: Arc<Tables>,
    statements: Arc<Statements>,
}

impl MysqlInbox {
    /// The inbox of `consumer` in the tables that `config` names: `outbox_inbox…` unless told otherwise.
    /// They are in the consumer's database, which need not have an outbox. The url of `config` is not
    /// needed.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &MysqlConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        let tables = Arc::clone(&config.tables);
        let statements = Arc::new(Statements::new(&tables));
        Ok(Self { consumer: consumer.into(), tables, statements })
    }

    /// Creates the inbox's tables. Does nothing where they are there; two processes may do it at once.
    /// These databases commit each definition, and with it a transaction that the connection is in.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the tables are of a newer
    /// version than this program knows.
    pub async fn migrate(&self, connection: &mut MySqlConnection) -> Result<(), StoreError> {
        schema::migrate(connection, &self.tables).await
    }

    /// Looks for whatever would break a guarantee, and names all of it at once: missing tables, columns
    /// and privileges, a wrong storage engine or collation, a read replica, another version, events that
    /// can never be purged. Changes nothing.
    ///
    /// # Errors
    /// Where the server cannot be asked.
    pub async fn check(&self, connection: &mut MySqlConnection) -> Result<Vec<Finding>, StoreError> {
        schema::check(connection, &self.tables, &self.consumer).await
    }

    /// A statement whose first parameter is the consumer.
    fn statement<'a>(
        &'a self,
        sql: &Arc<str>,
        others: impl IntoIterator<Item = Parameter<'a>>,
    ) -> Statement<'a> {
        let mut parameters = vec![Parameter::bytes(self.consumer.as_bytes())];
        parameters.extend(others);
        Statement::new(Arc::clone(sql), parameters)
    }

    async fn receive_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, DriverError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        let statements = &*self.statements;
        let source = || Parameter::bytes(event.source().as_bytes());
        let id = || Parameter::bytes(event.id().as_bytes());
        let time = || Parameter::Time(event.time().map(|time| storable(time).and_utc()));
        let write = self.statement(&statements.write, [source(), id(), time()]);
        match driver.execute(transaction, write).await {
            // It takes back this statement alone, unlike a count of rows it says the same in every
            // driver's mode.
            Err(error) if number_of(&error) == Some(DUPLICATE) => return Ok(Receipt::Seen),
            written => written.map(drop)?,
        }
        let horizon = self.statement(&statements.horizon, [source(), time(), time()]);
        if driver.numbers(transaction, horizon).await?.is_empty() {
            return Ok(Receipt::New);
        }
        driver.execute(transaction, self.statement(&statements.withdraw, [source(), id()])).await?;
        Ok(Receipt::TooOld)
    }

    async fn purge_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, DriverError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        let statements = &*self.statements;
        let age = Parameter::BigInteger(Some(micros(older_than)));
        let find = self.statement(&statements.find, [age, Parameter::BigInteger(Some(rows_max.into()))]);
        let old = driver.named_numbers(transaction, find).await?;
        let keys: Vec<_> = old.iter().filter_map(|(names, _)| names.split_once('/')).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let rows = Parameter::Text(Some(json(&keys).into()));
        let parameters = vec![rows, Parameter::bytes(self.consumer.as_bytes())];
        driver.execute(transaction, Statement::new(Arc::clone(&statements.purge), parameters)).await?;
        let mut horizons = BTreeMap::new();
        for ((source, _), (_, micros)) in keys.iter().zip(&old) {
            let horizon = horizons.entry(*source).or_insert(*micros);
            *horizon = (*micros).max(*horizon);
        }
        for (source, micros) in horizons {
            let time = || Parameter::Time(DateTime::from_timestamp_micros(micros));
            let raise = self.statement(&statements.raise, [Parameter::text(source), time(), time()]);
            driver.execute(transaction, raise).await?;
        }
        Ok(keys.len() as u64)
    }
}

impl std::fmt::Debug for MysqlInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MysqlInbox")
            .field("consumer", &self.consumer)
            .field("table", &self.tables.text("{inbox}"))
            .finish_non_exhaustive()
    }
}

impl ReceiveBy for MysqlInbox {
    type Dialect = Mysql;

    async fn receive_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        driver.run(transaction, INSIDE).await.map_err(no_transaction)?;
        let received = self.receive_in(driver, transaction, event).await;
        Ok(received.map_err(|error| driver_error("ask the inbox", error))?)
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
        D: Driver<T, Mysql> + Sync,
    {
        check_purge_age(older_than)?;
        driver.run(transaction, INSIDE).await.map_err(no_transaction)?;
        let purged = self.purge_in(driver, transaction, older_than, rows_max).await;
        Ok(purged.map_err(|error| driver_error("purge the inbox", error))?)
    }
}

impl Inbox<MySqlConnection> for MysqlInbox {
    fn receive(
        &self,
        transaction: &mut MySqlConnection,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send {
        self.receive_by(&Sqlx, transaction, event)
    }

    fn purge(
        &self,
        transaction: &mut MySqlConnection,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send {
        self.purge_by(&Sqlx, transaction, older_than, rows_max)
    }
}

/// Outside a transaction a savepoint ends with the statement that made it.
const INSIDE: &str = "SAVEPOINT outbox_inbox; RELEASE SAVEPOINT outbox_inbox";

fn no_transaction(error: DriverError) -> InboxError {
    match number_of(&error) {
        Some(NO_SAVEPOINT) => InboxError::NoTransaction,
        _ => driver_error("ask the inbox in this transaction", error).into(),
    }
}

struct Statements {
    write: Arc<str>,
    horizon: Arc<str>,
    withdraw: Arc<str>,
    find: Arc<str>,
    purge: Arc<str>,
    raise: Arc<str>,
}

impl Statements {
    fn new(tables: &Tables) -> Self {
        // It waits for a transaction that has written the same row, or is removing it, and has not ended.
        let write = "INSERT INTO {inbox} (consumer, source, id, time) VALUES (?, ?, ?, ?)";
        // After the row was written, which has waited for a purge that was removing a former one. A
        // locking read sees what that purge has committed, also where the transaction's snapshot is from
        // before. An event that is younger than the least age of a purge is not before any horizon: then
        // the table is neither read nor locked.
        let horizon = format!(
            "SELECT 1 AS number FROM {{inbox_horizons}} WHERE consumer = ? AND source = ? AND horizon >= ? \
             AND ? <= UTC_TIMESTAMP(6) - INTERVAL {} SECOND LOCK IN SHARE MODE",
            PURGE_AGE_MIN.as_secs()
        );
        let withdraw = "DELETE FROM {inbox} WHERE consumer = ? AND source = ? AND id = ?";
        // Names as hexadecimal digits, which pass through JSON whatever their bytes are.
        let find = format!(
            "SELECT CONCAT(HEX(source), '/', HEX(id)) AS name, {} AS number FROM {{inbox}} FORCE INDEX (time) \
             WHERE consumer = ? AND time < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND \
             ORDER BY time LIMIT ? FOR UPDATE SKIP LOCKED",
            micros_of("time")
        );
        let purge = format!(
            "DELETE i FROM {} STRAIGHT_JOIN {{inbox}} i FORCE INDEX (PRIMARY) \
             ON i.consumer = ? AND i.source = UNHEX(g.source) AND i.id = UNHEX(g.id)",
            rows("g", "source VARCHAR(510), id VARCHAR(510)")
        );
        let raise = "INSERT INTO {inbox_horizons} (consumer, source, horizon) VALUES (?, UNHEX(?), ?) \
                     ON DUPLICATE KEY UPDATE horizon = GREATEST(horizon, ?), changed_at = UTC_TIMESTAMP(6)";
        let text = |template: &str| tables.text(template).into();
        Self {
            write: text(write),
            horizon: text(&horizon),
            withdraw: text(withdraw),
            find: text(&find),
            purge: text(&purge),
            raise: text(raise),
        }
    }
}
