//! The consumer's side: receipts in the consumer's own transaction.

mod schema;

use std::{sync::Arc, time::Duration};

use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, PURGE_AGE_MIN, check_consumer, check_purge_age},
};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, postgres::PgArguments, query::Query};

use crate::{PostgresConfig, config::Tables, error::store_error};

pub use schema::inbox_migration_sql;

/// The inbox of one consumer, in a transaction of the consumer. Has no connection of its own and is cheap to
/// clone.
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
/// Outside a transaction it refuses, as [`PostgresOutbox`](crate::PostgresOutbox) does.
///
/// Under READ COMMITTED, the default, a copy of an event that another transaction is handling waits for its
/// end. Under REPEATABLE READ and SERIALIZABLE it waits too, and is then answered with
/// [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict) (SQLSTATE 40001): begin again.
#[derive(Clone)]
pub struct PostgresInbox {
    consumer: Arc<str>,
    tables: Arc<Tables>,
    statements: Arc<Statements>,
    prepare: bool,
}

impl PostgresInbox {
    /// The inbox of `consumer` in the tables that `config` names: `outbox_inbox…` unless told otherwise. They
    /// are in the consumer's database, which need not have an outbox. The url of `config` is not needed.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &PostgresConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        let tables = Arc::clone(&config.tables);
        let statements = Arc::new(Statements::new(&tables));
        Ok(Self { consumer: consumer.into(), tables, statements, prepare: config.prepare })
    }

    /// Creates the inbox's tables, in one transaction. Does nothing where they are there; two processes may
    /// do it at once.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the tables are of a newer version
    /// than this program knows.
    pub async fn migrate(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        schema::migrate(connection, &self.tables).await
    }

    /// Looks for whatever would break a guarantee, and names all of it at once: missing tables, columns and
    /// privileges, a read replica, another version, events that can never be purged. Changes nothing.
    ///
    /// # Errors
    /// Where the server cannot be asked.
    pub async fn check(&self, connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
        schema::check(connection, &self.tables, &self.consumer).await
    }

    /// A statement whose first parameter is the consumer.
    fn query<'q>(&'q self, sql: &Arc<str>) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(&*self.consumer).persistent(self.prepare)
    }

    async fn receive_in(
        &self,
        connection: &mut PgConnection,
        event: &EventIdentity,
    ) -> Result<Receipt, sqlx::Error> {
        let statements = &*self.statements;
        let write = self.query(&statements.write).bind(event.source()).bind(event.id()).bind(event.time());
        let Some(written) = write.fetch_optional(&mut *connection).await? else { return Ok(Receipt::Seen) };
        // An event that is younger than the least age of a purge is not before any horizon.
        let Some(time) = event.time().filter(|_| written.get("old")) else { return Ok(Receipt::New) };
        let sql = if written.get("frozen") { &statements.horizon_locked } else { &statements.horizon };
        let horizon = self.query(sql).bind(event.source()).bind(time).fetch_one(&mut *connection).await?;
        if !horizon.get::<bool, _>("too_old") {
            return Ok(Receipt::New);
        }
        self.query(&statements.withdraw).bind(event.source()).bind(event.id()).execute(connection).await?;
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

impl Inbox<PgConnection> for PostgresInbox {
    async fn receive(
        &self,
        transaction: &mut PgConnection,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError> {
        insist_on_transaction(transaction).await?;
        let received = self.receive_in(transaction, event).await;
        Ok(received.map_err(|error| store_error("ask the inbox", error))?)
    }

    async fn purge(
        &self,
        transaction: &mut PgConnection,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        check_purge_age(older_than)?;
        insist_on_transaction(transaction).await?;
        // Longer than the calendar of the database is for ever.
        let seconds = older_than.as_secs_f64().min(1e11);
        let purge = self.query(&self.statements.purge).bind(seconds).bind(i64::from(rows_max));
        let row = purge.fetch_one(transaction).await;
        let count: i64 =
            row.and_then(|row| row.try_get(0)).map_err(|error| store_error("purge the inbox", error))?;
        Ok(count.unsigned_abs())
    }
}

/// In the implicit transaction of a simple query a savepoint is refused as it is outside any.
async fn insist_on_transaction(connection: &mut PgConnection) -> Result<(), InboxError> {
    match sqlx::raw_sql("SAVEPOINT outbox_inbox; RELEASE SAVEPOINT outbox_inbox").execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("25P01")) => {
            Err(InboxError::NoTransaction)
        }
        Err(error) => Err(store_error("ask the inbox in this transaction", error).into()),
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
             RETURNING coalesce(time <= clock_timestamp() - interval '{} s', false) AS old, \
               current_setting('transaction_isolation') <> 'read committed' AS frozen",
            PURGE_AGE_MIN.as_secs()
        );
        // The horizon is read by a statement of its own, after the row was written: under READ COMMITTED it
        // sees the purge that removed a former row, since the write has waited for it. In one statement with
        // the write it would see the horizon from before the wait.
        let horizon = "SELECT EXISTS (SELECT 1 FROM {inbox_horizons} \
                       WHERE consumer = $1 AND source = $2 AND horizon >= $3) AS too_old";
        // A snapshot of the whole transaction would not see that purge. Writing the horizon's row fails
        // (40001) if it was changed or made since the snapshot.
        let horizon_locked = "INSERT INTO {inbox_horizons} AS h (consumer, source, horizon) \
                              VALUES ($1, $2, '-infinity') \
                              ON CONFLICT (consumer, source) DO UPDATE SET horizon = h.horizon \
                              RETURNING horizon >= $3 AS too_old";
        let withdraw = "DELETE FROM {inbox} WHERE consumer = $1 AND source = $2 AND id = $3";
        // By ctid, because a join may get a plan that reads the whole table; the rows are locked and never
        // updated, so that it stays theirs. statement_timestamp, because an index cannot be searched by
        // clock_timestamp.
        let purge = "WITH gone AS (DELETE FROM {inbox} WHERE ctid = ANY (ARRAY( \
                         SELECT ctid FROM {inbox} \
                         WHERE consumer = $1 AND time < statement_timestamp() - make_interval(secs => $2) \
                         ORDER BY time LIMIT $3 FOR UPDATE SKIP LOCKED)) RETURNING source, time), \
                     raised AS (INSERT INTO {inbox_horizons} AS h (consumer, source, horizon) \
                         SELECT $1, source, max(time) FROM gone GROUP BY source ORDER BY source \
                         ON CONFLICT (consumer, source) DO UPDATE \
                         SET horizon = greatest(h.horizon, excluded.horizon), changed_at = clock_timestamp()) \
                     SELECT count(*) FROM gone";
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
