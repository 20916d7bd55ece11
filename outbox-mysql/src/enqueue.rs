//! The writer's side: events in the caller's own transaction.

use std::{borrow::Cow, future::Future, sync::Arc};

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use outbox_core::{
    Enqueue, EnqueueError, Event,
    statement::{
        Driver, DriverError, EnqueueBy, Parameter, Statement, content_type_column, given_twice,
        headers_column, payload_columns,
    },
    store::Sequence,
};
use sqlx::MySqlConnection;
use uuid::Uuid;

use crate::{
    Mysql, MysqlConfig,
    codec::ascii,
    driver::Sqlx,
    error::{DUPLICATE, NO_SAVEPOINT, driver_error, number_of},
};

const COLUMNS: &str = "id, aggregate_type, aggregate_id, event_type, version, payload, payload_binary, content_type, \
                       headers, topic, available_at";
const PLACES: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// How many events one statement writes: `enqueue_all` takes the largest of these that it can fill. A few
/// constant texts, so that each stays prepared.
const EVENTS_PER_STATEMENT: [usize; 4] = [512, 64, 8, 1];

/// The most payload that one statement carries beside its first event, in bytes: a quarter of MariaDB's
/// default `max_allowed_packet`.
const BYTES_PER_STATEMENT: usize = 4 << 20;

/// Writes events inside a transaction of the service. Has no connection of its own and is cheap to clone.
///
/// ```no_run
/// # async fn place(pool: sqlx::MySqlPool, outbox: outbox_mysql::MysqlOutbox) -> Result<(), Box<dyn std::error::Error>> {
/// use outbox_core::{Enqueue, Event};
///
/// let mut transaction = pool.begin().await?;
/// sqlx::query("UPDATE orders SET state = 'placed' WHERE id = 4711").execute(&mut *transaction).await?;
/// let event = Event::builder("order", "4711", "order.placed").payload("{}").build()?;
/// outbox.enqueue(&mut transaction, &event).await?;
/// transaction.commit().await?;
/// # Ok(()) }
/// ```
///
/// Outside a transaction it refuses: a transaction of sqlx, a hand-written `BEGIN` and a session without
/// autocommit are all accepted. That costs one short statement an `enqueue`, since sqlx itself knows only
/// of the transactions it began.
///
/// Through any other driver, see [`outbox_core::statement`], or run [`insert`](Self::insert) yourself.
#[derive(Debug, Clone)]
pub struct MysqlOutbox {
    inserts: [Arc<str>; EVENTS_PER_STATEMENT.len()],
    find: Arc<str>,
    payload_bytes_max: usize,
}

impl MysqlOutbox {
    /// The writer's side of the outbox that `config` names. Its url is not needed.
    pub fn new(config: &MysqlConfig) -> Self {
        let insert = |events: usize| {
            let places = vec![PLACES; events].join(", ");
            config.tables.text(&format!("INSERT INTO {{outbox}} ({COLUMNS}) VALUES {places}")).into()
        };
        Self {
            inserts: EVENTS_PER_STATEMENT.map(insert),
            find: config
                .tables
                .text("SELECT 1 AS number FROM {outbox} WHERE id = ? LOCK IN SHARE MODE")
                .into(),
            payload_bytes_max: config.payload_bytes_max,
        }
    }

    /// The statement that writes one event, for a driver of your own: run it inside a transaction, which
    /// it does not check. The number that the server generated for it (`LAST_INSERT_ID()`) is the event's
    /// sequence; error 1062 says that the id is in the outbox already.
    ///
    /// The parameters are, in order: [`Uuid`](Parameter::Uuid), three [`Bytes`](Parameter::Bytes),
    /// [`Integer`](Parameter::Integer), three `Bytes`, [`Text`](Parameter::Text), `Bytes`,
    /// [`Time`](Parameter::Time). Texts are bound as bytes, those of UTF-8, so that no character set of the
    /// connection changes them.
    ///
    /// # Errors
    /// A payload over the limit.
    pub fn insert<'a>(&self, event: &'a Event) -> Result<Statement<'a>, EnqueueError> {
        event.check_payload(self.payload_bytes_max)?;
        self.insert_many(EVENTS_PER_STATEMENT.len() - 1, std::slice::from_ref(event))
    }

    fn insert_many<'a>(&self, statement: usize, events: &'a [Event]) -> Result<Statement<'a>, EnqueueError> {
        let mut parameters = Vec::with_capacity(events.len() * 11);
        events.iter().try_for_each(|event| push(&mut parameters, event))?;
        Ok(Statement::new(Arc::clone(&self.inserts[statement]), parameters))
    }

    fn insert_all<'a>(&self, events: &'a [Event]) -> Result<Vec<(usize, Statement<'a>)>, EnqueueError> {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        let mut statements = Vec::new();
        let mut rest = events;
        while !rest.is_empty() {
            let statement = statement_of(rest);
            let (chunk, later) = rest.split_at(EVENTS_PER_STATEMENT[statement]);
            statements.push((chunk.len(), self.insert_many(statement, chunk)?));
            rest = later;
        }
        Ok(statements)
    }

    /// The first event whose id is there already or was given twice; asked after a statement has failed by
    /// it.
    async fn duplicate<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Option<Uuid>, DriverError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        if let Some(twice) = given_twice(events) {
            return Ok(Some(twice));
        }
        for event in events {
            // Locking, because the transaction's snapshot may be older than the row.
            let find = Statement::new(Arc::clone(&self.find), vec![Parameter::Uuid(event.id())]);
            if !driver.numbers(transaction, find).await?.is_empty() {
                return Ok(Some(event.id()));
            }
        }
        Ok(None)
    }

    async fn failed<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
        error: DriverError,
    ) -> EnqueueError
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        let duplicate = match number_of(&error) {
            Some(DUPLICATE) => self.duplicate(driver, transaction, events).await,
            _ => Ok(None),
        };
        match duplicate {
            Ok(Some(id)) => EnqueueError::Duplicate(id),
            _ => driver_error("write into the outbox", error).into(),
        }
    }
}

impl EnqueueBy for MysqlOutbox {
    type Dialect = Mysql;

    async fn enqueue_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &Event,
    ) -> Result<Sequence, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        let statement = self.insert(event)?;
        driver.run(transaction, INSIDE).await.map_err(no_transaction)?;
        match write(driver, transaction, statement).await {
            Ok(sequence) => Ok(sequence),
            Err(error) => Err(self.failed(driver, transaction, std::slice::from_ref(event), error).await),
        }
    }

    async fn enqueue_all_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Mysql> + Sync,
    {
        let statements = self.insert_all(events)?;
        // All or none: a duplicate takes back those that were written before it, and nothing of the
        // caller's.
        let sql = "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue; SAVEPOINT outbox_enqueue";
        driver.run(transaction, sql).await.map_err(no_transaction)?;
        let error = match write_all(driver, transaction, statements).await {
            Ok(sequences) => {
                let end = driver.run(transaction, "RELEASE SAVEPOINT outbox_enqueue").await;
                return end.map(|()| sequences).map_err(no_transaction);
            }
            Err(error) => error,
        };
        let sql = "ROLLBACK TO SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue";
        match driver.run(transaction, sql).await {
            Ok(()) => Err(self.failed(driver, transaction, events, error).await),
            // A deadlock, or a connection that is gone, has taken the whole transaction back.
            Err(_) => Err(driver_error("write events into the outbox", error).into()),
        }
    }
}

impl Enqueue<MySqlConnection> for MysqlOutbox {
    fn enqueue(
        &self,
        transaction: &mut MySqlConnection,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        self.enqueue_by(&Sqlx, transaction, event)
    }

    fn enqueue_all(
        &self,
        transaction: &mut MySqlConnection,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        self.enqueue_all_by(&Sqlx, transaction, events)
    }
}

/// Outside a transaction the savepoint ends with the statement that made it, and cannot be released.
const INSIDE: &str = "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue";

/// Writes the events of one statement, and returns the sequence of the first.
async fn write<T, D>(
    driver: &D,
    transaction: &mut T,
    statement: Statement<'_>,
) -> Result<Sequence, DriverError>
where
    T: ?Sized + Send,
    D: Driver<T, Mysql> + Sync,
{
    match driver.execute(transaction, statement).await? {
        Some(first) => Ok(first),
        None => number(driver, transaction, "SELECT CAST(LAST_INSERT_ID() AS SIGNED) AS number").await,
    }
}

/// Writes the events of several statements. Within one, the sequences follow that of the first at the
/// distance of `auto_increment_increment`: InnoDB draws the numbers of such an insert at once, in every
/// lock mode.
async fn write_all<T, D>(
    driver: &D,
    transaction: &mut T,
    statements: Vec<(usize, Statement<'_>)>,
) -> Result<Vec<Sequence>, DriverError>
where
    T: ?Sized + Send,
    D: Driver<T, Mysql> + Sync,
{
    let sql = "SELECT CAST(@@SESSION.auto_increment_increment AS SIGNED) AS number";
    let increment = number(driver, transaction, sql).await?;
    let mut sequences = Vec::new();
    for (count, statement) in statements {
        let first = write(driver, transaction, statement).await?;
        sequences.extend((0..).map(|place| first + place * increment).take(count));
    }
    Ok(sequences)
}

async fn number<T, D>(driver: &D, transaction: &mut T, sql: &'static str) -> Result<i64, DriverError>
where
    T: ?Sized + Send,
    D: Driver<T, Mysql> + Sync,
{
    let numbers = driver.numbers(transaction, Statement::new(sql.into(), Vec::new())).await?;
    numbers.into_iter().next().ok_or_else(|| DriverError::new(format!("no row of {sql}")))
}

fn no_transaction(error: DriverError) -> EnqueueError {
    match number_of(&error) {
        Some(NO_SAVEPOINT) => EnqueueError::NoTransaction,
        _ => driver_error("write into the outbox in this transaction", error).into(),
    }
}

/// Names and the payload are bound as bytes, so that no character set of the connection changes them; a JSON
/// column takes a text only, of which [`ascii`] leaves none to change.
fn push<'a>(parameters: &mut Vec<Parameter<'a>>, event: &'a Event) -> Result<(), EnqueueError> {
    let (text, bytes) = payload_columns(event);
    parameters.extend([
        Parameter::Uuid(event.id()),
        Parameter::bytes(event.aggregate_type().as_bytes()),
        Parameter::bytes(event.aggregate_id().as_bytes()),
        Parameter::bytes(event.event_type().as_bytes()),
        Parameter::Integer(event.version()),
        Parameter::Bytes(text.map(str::as_bytes)),
        Parameter::Bytes(bytes),
        Parameter::Bytes(content_type_column(event).map(str::as_bytes)),
        Parameter::Text(headers_column(event)?.map(|headers| Cow::Owned(ascii(&headers)))),
        Parameter::Bytes(event.topic().map(str::as_bytes)),
        Parameter::Time(event.available_at().map(|time| storable(time).and_utc())),
    ]);
    Ok(())
}

/// The nearest time that the type DATETIME has: from the year 1000 to the end of 9999.
pub(crate) fn storable(at: DateTime<Utc>) -> NaiveDateTime {
    let day = |year, month, day| NaiveDate::from_ymd_opt(year, month, day).unwrap_or_default();
    let first = day(1000, 1, 1).and_time(NaiveTime::MIN);
    let end = day(9999, 12, 31).and_time(NaiveTime::MIN);
    at.naive_utc().clamp(first, end)
}

/// Which statement carries the next events: the largest that they fill and whose payloads are not too
/// many.
fn statement_of(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fitting = events
        .iter()
        .take(EVENTS_PER_STATEMENT[0])
        .take_while(|event| {
            let fits = bytes == 0 || bytes + event.payload_len() <= BYTES_PER_STATEMENT;
            bytes += event.payload_len();
            fits
        })
        .count();
    let last = EVENTS_PER_STATEMENT.len() - 1;
    EVENTS_PER_STATEMENT.iter().position(|events| *events <= fitting).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: usize, payload: usize) -> Vec<Event> {
        let event = || Event::builder("t", "1", "e").payload(vec![0; payload]).build().unwrap();
        (0..count).map(|_| event()).collect()
    }

    #[test]
    fn a_statement_carries_as_many_events_as_it_can_fill() {
        for (count, payload, expected) in
            [(1, 0, 1), (7, 0, 1), (8, 0, 8), (600, 10, 512), (600, 100_000, 8), (3, 9 << 20, 1)]
        {
            let found = EVENTS_PER_STATEMENT[statement_of(&events(count, payload))];
            assert_eq!(found, expected, "{count} events of {payload} bytes");
        }
    }

    #[test]
    fn a_time_out_of_range_becomes_the_nearest_one() {
        assert_eq!(storable(DateTime::<Utc>::MAX_UTC).to_string(), "9999-12-31 00:00:00");
        assert_eq!(storable(DateTime::<Utc>::MIN_UTC).to_string(), "1000-01-01 00:00:00");
    }
}
