//! The consumer's side: receipts in the consumer's own transaction.

mod schema;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::NaiveDateTime;
use outbox_core::{
    EventError, Finding, Inbox, InboxError, Receipt, StoreError,
    inbox::{EventIdentity, PURGE_AGE_MIN, check_consumer, check_purge_age},
};
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, mysql::MySqlArguments, query::Query};

use crate::{
    MysqlConfig,
    codec::{json, micros, rows},
    config::Tables,
    enqueue::storable,
    error::{DUPLICATE, NO_SAVEPOINT, number, store_error},
};

pub use schema::inbox_migration_sql;

/// The inbox of one consumer, in a transaction of the consumer. Has no connection of its own and is cheap to
/// clone.
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
/// Outside a transaction it refuses, as [`MysqlOutbox`](crate::MysqlOutbox) does.
///
/// Under every isolation level, a copy of an event that another transaction is handling waits for its end,
/// for as long as `innodb_lock_wait_timeout` says. After that, and where the server ends a deadlock, the
/// answer is [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict): roll back, and begin again.
#[derive(Clone)]
pub struct MysqlInbox {
    consumer: Arc<str>,
    tables: Arc<Tables>,
    statements: Arc<Statements>,
}

impl MysqlInbox {
    /// The inbox of `consumer` in the tables that `config` names: `outbox_inbox…` unless told otherwise. They
    /// are in the consumer's database, which need not have an outbox. The url of `config` is not needed.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(config: &MysqlConfig, consumer: &str) -> Result<Self, EventError> {
        check_consumer(consumer)?;
        let tables = Arc::clone(&config.tables);
        let statements = Arc::new(Statements::new(&tables));
        Ok(Self { consumer: consumer.into(), tables, statements })
    }

    /// Creates the inbox's tables. Does nothing where they are there; two processes may do it at once. These
    /// databases commit each definition, and with it a transaction that the connection is in.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`](outbox_core::StoreErrorKind::Schema) if the tables are of a newer version
    /// than this program knows.
    pub async fn migrate(&self, connection: &mut MySqlConnection) -> Result<(), StoreError> {
        schema::migrate(connection, &self.tables).await
    }

    /// Looks for whatever would break a guarantee, and names all of it at once: missing tables, columns and
    /// privileges, a wrong storage engine or collation, a read replica, another version, events that can
    /// never be purged. Changes nothing.
    ///
    /// # Errors
    /// Where the server cannot be asked.
    pub async fn check(&self, connection: &mut MySqlConnection) -> Result<Vec<Finding>, StoreError> {
        schema::check(connection, &self.tables, &self.consumer).await
    }

    /// A statement whose first parameter is the consumer.
    fn query<'q>(&'q self, sql: &Arc<str>) -> Query<'q, MySql, MySqlArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(self.consumer.as_bytes())
    }

    async fn receive_in(
        &self,
        connection: &mut MySqlConnection,
        event: &EventIdentity,
    ) -> Result<Receipt, sqlx::Error> {
        let statements = &*self.statements;
        let (source, id) = (event.source().as_bytes(), event.id().as_bytes());
        let time = event.time().map(storable);
        let write = self.query(&statements.write).bind(source).bind(id).bind(time);
        match write.execute(&mut *connection).await {
            // It takes back this statement alone, unlike a count of rows it says the same in every driver's
            // mode.
            Err(error) if number(&error) == Some(DUPLICATE) => return Ok(Receipt::Seen),
            written => written.map(drop)?,
        }
        let horizon = self.query(&statements.horizon).bind(source).bind(time).bind(time);
        if horizon.fetch_optional(&mut *connection).await?.is_none() {
            return Ok(Receipt::New);
        }
        self.query(&statements.withdraw).bind(source).bind(id).execute(connection).await?;
        Ok(Receipt::TooOld)
    }

    async fn purge_in(
        &self,
        connection: &mut MySqlConnection,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, sqlx::Error> {
        let statements = &*self.statements;
        let find = sqlx::query_as(AssertSqlSafe(Arc::clone(&statements.find))).bind(self.consumer.as_bytes());
        let find = find.bind(micros(older_than)).bind(rows_max);
        let old: Vec<(String, String, NaiveDateTime)> = find.fetch_all(&mut *connection).await?;
        let keys: Vec<_> = old.iter().map(|(source, id, _)| (source, id)).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let purge = sqlx::query(AssertSqlSafe(Arc::clone(&statements.purge))).bind(json(&keys));
        purge.bind(self.consumer.as_bytes()).execute(&mut *connection).await?;
        let mut horizons = BTreeMap::new();
        for (source, _, time) in &old {
            let horizon = horizons.entry(source).or_insert(time);
            *horizon = time.max(*horizon);
        }
        for (source, horizon) in horizons {
            let raise = self.query(&statements.raise).bind(source).bind(horizon).bind(horizon);
            raise.execute(&mut *connection).await?;
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

impl Inbox<MySqlConnection> for MysqlInbox {
    async fn receive(
        &self,
        transaction: &mut MySqlConnection,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError> {
        insist_on_transaction(transaction).await?;
        let received = self.receive_in(transaction, event).await;
        Ok(received.map_err(|error| store_error("ask the inbox", error))?)
    }

    async fn purge(
        &self,
        transaction: &mut MySqlConnection,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        check_purge_age(older_than)?;
        insist_on_transaction(transaction).await?;
        let purged = self.purge_in(transaction, older_than, rows_max).await;
        Ok(purged.map_err(|error| store_error("purge the inbox", error))?)
    }
}

/// Outside a transaction a savepoint ends with the statement that made it.
async fn insist_on_transaction(connection: &mut MySqlConnection) -> Result<(), InboxError> {
    match sqlx::raw_sql("SAVEPOINT outbox_inbox; RELEASE SAVEPOINT outbox_inbox").execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if number(&error) == Some(NO_SAVEPOINT) => Err(InboxError::NoTransaction),
        Err(error) => Err(store_error("ask the inbox in this transaction", error).into()),
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
        // After the row was written, which has waited for a purge that was removing a former one. A locking
        // read sees what that purge has committed, also where the transaction's snapshot is from before. An
        // event that is younger than the least age of a purge is not before any horizon: then the table is
        // neither read nor locked.
        let horizon = format!(
            "SELECT 1 FROM {{inbox_horizons}} WHERE consumer = ? AND source = ? AND horizon >= ? \
             AND ? <= UTC_TIMESTAMP(6) - INTERVAL {} SECOND LOCK IN SHARE MODE",
            PURGE_AGE_MIN.as_secs()
        );
        let withdraw = "DELETE FROM {inbox} WHERE consumer = ? AND source = ? AND id = ?";
        // Names as hexadecimal digits, which pass through JSON whatever their bytes are.
        let find = "SELECT HEX(source), HEX(id), time FROM {inbox} FORCE INDEX (time) \
                    WHERE consumer = ? AND time < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND \
                    ORDER BY time LIMIT ? FOR UPDATE SKIP LOCKED";
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
            find: text(find),
            purge: text(&purge),
            raise: text(raise),
        }
    }
}
