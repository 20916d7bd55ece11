//! The consumer's side: receipts in the consumer's own transaction.

mod schema;

use std::{future::Future, sync::Arc, time::Duration};

use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, PURGE_AGE_MIN, check_consumer, check_purge_age},
    statement::{Driver, DriverError, Parameter, ReceiveBy, Statement},
};
use sqlx::PgConnection;

use crate::{
    Postgres, PostgresConfig,
    config::Tables,
    driver::Sqlx,
    error::{NO_TRANSACTION, driver_error},
};

pub use schema::inbox_migration_sql;

/// The inbox of one consumer, in a transaction of the consumer. Has no connection of its own and is cheap
/// to clone.
///
/// ```no_run
/// # async fn handle(pool: sqlx::PgPool, event: outbox_core::ReceivedEvent) -> Result<(), Box<dyn std::error::Error>> {
/// use outbox_core::{Inbox, Receipt};
/// use outbox_postgres::{PostgresConfig, PostgresInbox};
///
/// let inbox = PostgresInbox::new(&PostgresConfig::builder().schema("billing").build()?, "billing")?;
/// let mut transaction = pool.begin().await?;
/// if inbox.receive(&mut transaction, &event.identity).await? == Receipt::New {
///     sqlx::query("INSERT INTO invoices (order_id) VALUES (4711)").execute(&mut *transaction).await?;
/// }
/// transaction.commit().await?;
/// // Only now acknowledge the message.
/// # Ok(()) }
/// ```
///
/// Outside a transaction it refuses, as [`PostgresOutbox`](crate::PostgresOutbox) does. For other drivers
/// than sqlx, see [`outbox_core::statement`].
///
/// Under READ COMMITTED, the default, a copy of an event that another transaction is handling waits for
/// its end. Under REPEATABLE READ and SERIALIZABLE it waits too, and is then answered with
/// [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict) (SQLSTATE 40001): begin again.
#[derive(Clone)]
pub struct PostgresInbox {
    consumer: Arc<str>,
    tables: Arc<Tables>,
    statements: Arc<Statements>,
    sqlx: Sqlx,
}

impl PostgresInbox {
    /// The inbox of `consumer` in the tables that `config` names: `outbox_inbox…` unless told otherwise.
    /// They are in the consumer's database, which need not have an outbox. The url of `config` is not
    /// needed.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &PostgresConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        let tables = Arc::clone(&config.tables);
        let statements = Arc::new(Statements::new(&tables));
        Ok(Self { consumer: consumer.into(), tables, statements, sqlx: Sqlx { prepare: config.prepare } })
    }

    /// Creates the inbox's tables, in one transaction. Does nothing where they are there; two processes
    /// may do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the tables are of a newer
    /// version than this program knows.
    pub async fn migrate(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        schema::migrate(connection, &self.tables).await
    }

    /// Looks for whatever would break a guarantee, and names all of it at once: missing tables, columns
    /// and privileges, a read replica, another version, events that can never be purged. Changes nothing.
    ///
    /// # Errors
    /// Where the server cannot be asked.
    pub async fn check(&self, connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
        schema::check(connection, &self.tables, &self.consumer).await
    }

    /// A statement whose first parameters are the consumer and the source.
    fn statement<'a>(
        &'a self,
        sql: &Arc<str>,
        event: &'a EventIdentity,
        others: impl IntoIterator<Item = Parameter<'a>>,
    ) -> Statement<'a> {
        let mut parameters = vec![Parameter::text(&self.consumer), Parameter::text(event.source())];
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
        D: Driver<T, Postgres> + Sync,
    {
        let statements = &*self.statements;
        let (id, time) = (Parameter::text(event.id()), Parameter::Time(event.time()));
        let write = self.statement(&statements.write, event, [id.clone(), time.clone()]);
        // An event that is younger than the least age of a purge is not before any horizon.
        let horizon = match driver.numbers(transaction, write).await?.first() {
            None => return Ok(Receipt::Seen),
            Some(&YOUNG) => return Ok(Receipt::New),
            Some(&OLD_AND_FROZEN) => &statements.horizon_locked,
            Some(_) => &statements.horizon,
        };
        let horizon = self.statement(horizon, event, [time]);
        if driver.numbers(transaction, horizon).await?.first() != Some(&1) {
            return Ok(Receipt::New);
        }
        driver.execute(transaction, self.statement(&statements.withdraw, event, [id])).await?;
        Ok(Receipt::TooOld)
    }
}

impl std::fmt::Debug for PostgresInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresInbox")
            .field("consumer", &self.consumer)
            .field("table", &self.tables.text("{inbox}"))
            .finish_non_exhaustive()
    }
}

impl ReceiveBy for PostgresInbox {
    type Dialect = Postgres;

    async fn receive_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError>
    where
        T: ?Sized + Send,
        D: Driver<T, Postgres> + Sync,
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
        D: Driver<T, Postgres> + Sync,
    {
        check_purge_age(older_than)?;
        driver.run(transaction, INSIDE).await.map_err(no_transaction)?;
        let age = i64::try_from(older_than.as_micros()).unwrap_or(AGE_MICROS_MAX).min(AGE_MICROS_MAX);
        let parameters = vec![
            Parameter::text(&self.consumer),
            Parameter::BigInteger(Some(age)),
            Parameter::BigInteger(Some(rows_max.into())),
        ];
        let purge = Statement::new(Arc::clone(&self.statements.purge), parameters);
        let purged = driver.numbers(transaction, purge).await;
        let purged = purged.map_err(|error| driver_error("purge the inbox", error))?;
        Ok(purged.into_iter().next().unwrap_or_default().unsigned_abs())
    }
}

impl Inbox<PgConnection> for PostgresInbox {
    fn receive(
        &self,
        transaction: &mut PgConnection,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send {
        self.receive_by(&self.sqlx, transaction, event)
    }

    fn purge(
        &self,
        transaction: &mut PgConnection,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send {
        self.purge_by(&self.sqlx, transaction, older_than, rows_max)
    }
}

/// In the implicit transaction of a simple query a savepoint is refused as it is outside any.
const INSIDE: &str = "SAVEPOINT outbox_inbox; RELEASE SAVEPOINT outbox_inbox";

/// Longer than the calendar of the database is for ever.
const AGE_MICROS_MAX: i64 = 100_000_000_000_000_000;

/// What the write of a receipt answers: whether the event is as old as what may be purged, and whether the
/// snapshot is the transaction's. Old and not frozen is 1.
const YOUNG: i64 = 0;
const OLD_AND_FROZEN: i64 = 2;

fn no_transaction(error: DriverError) -> InboxError {
    match error.code() {
        Some(NO_TRANSACTION) => InboxError::NoTransaction,
        _ => driver_error("ask the inbox in this transaction", error).into(),
    }
}

struct Statements {
    write: Arc<str>,
    horizon: Arc<str>,
    horizon_locked: Arc<str>,
    withdraw: Arc<str>,
    purge: Arc<str>,
}

impl Statements {
    fn new(tables: &Tables) -> Self {
        // It waits for a transaction that has written the same row, or is removing it, and has not ended.
        let write = format!(
            "INSERT INTO {{inbox}} (consumer, source, id, time) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (consumer, source, id) DO NOTHING \
             RETURNING CASE WHEN time <= clock_timestamp() - interval '{} s' THEN \
               CASE current_setting('transaction_isolation') WHEN 'read committed' THEN 1 ELSE {OLD_AND_FROZEN} END \
               ELSE {YOUNG} END::bigint AS number",
            PURGE_AGE_MIN.as_secs()
        );
        // The horizon is read by a statement of its own, after the row was written: under READ COMMITTED
        // it sees the purge that removed a former row, since the write has waited for it. In one statement
        // with the write it would see the horizon from before the wait.
        let horizon = "SELECT count(*) AS number FROM {inbox_horizons} \
                       WHERE consumer = $1 AND source = $2 AND horizon >= $3";
        // A snapshot of the whole transaction would not see that purge. Writing the horizon's row fails
        // (40001) if it was changed or made since the snapshot.
        let horizon_locked = "INSERT INTO {inbox_horizons} AS h (consumer, source, horizon) \
                              VALUES ($1, $2, '-infinity') \
                              ON CONFLICT (consumer, source) DO UPDATE SET horizon = h.horizon \
                              RETURNING (horizon >= $3)::integer::bigint AS number";
        let withdraw = "DELETE FROM {inbox} WHERE consumer = $1 AND source = $2 AND id = $3";
        // By ctid, because a join may get a plan that reads the whole table; the rows are locked and never
        // updated, so that it stays theirs. statement_timestamp, because an index cannot be searched by
        // clock_timestamp.
        let purge = "WITH gone AS (DELETE FROM {inbox} WHERE ctid = ANY (ARRAY( \
                         SELECT ctid FROM {inbox} \
                         WHERE consumer = $1 AND time < statement_timestamp() - $2::bigint * interval '1 us' \
                         ORDER BY time LIMIT $3 FOR UPDATE SKIP LOCKED)) RETURNING source, time), \
                     raised AS (INSERT INTO {inbox_horizons} AS h (consumer, source, horizon) \
                         SELECT $1, source, max(time) FROM gone GROUP BY source ORDER BY source \
                         ON CONFLICT (consumer, source) DO UPDATE \
                         SET horizon = greatest(h.horizon, excluded.horizon), changed_at = clock_timestamp()) \
                     SELECT count(*) AS number FROM gone";
        let text = |template: &str| tables.text(template).into();
        Self {
            write: text(&write),
            horizon: text(horizon),
            horizon_locked: text(horizon_locked),
            withdraw: text(withdraw),
            purge: text(purge),
        }
    }
}
