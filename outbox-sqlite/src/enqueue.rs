//! The writer's side: [`SqliteOutbox`].

use std::{
    borrow::Cow,
    future::{Future, ready},
    sync::Arc,
};

use outbox_core::{
    Enqueue, EnqueueError, Event,
    statement::{Driver, DriverError, EnqueueBy, Parameter, Statement, headers_column, payload_value},
    store::Sequence,
};
use rusqlite::{Connection, Transaction, ffi};

use crate::{
    Sqlite, SqliteConfig,
    driver::{Rusqlite, at_once},
    error::driver_error,
};

/// Writes events in the service's own transaction, on the service's own connection. Cheap to clone; holds
/// no connection.
///
/// Use `TransactionBehavior::Immediate` for a transaction that reads before it writes: a deferred one is
/// refused at its first write if anybody else wrote meanwhile, whatever the busy timeout.
///
/// ```
/// use outbox_core::Event;
/// use outbox_sqlite::{SqliteConfig, SqliteOutbox, migrate};
/// use rusqlite::{Connection, TransactionBehavior};
///
/// # let path = std::env::temp_dir().join(format!("outbox-doc-{}.db", uuid::Uuid::now_v7()));
/// let config = SqliteConfig::builder(&path).build()?;
/// migrate(&config)?;
/// let outbox = SqliteOutbox::new(&config);
///
/// let mut connection = Connection::open(&path)?;
/// connection.execute_batch("CREATE TABLE orders (id TEXT, total INTEGER)")?;
/// let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
/// transaction.execute("INSERT INTO orders VALUES ('4711', 12)", [])?;
/// let event = Event::builder("order", "4711", "order.placed").payload(r#"{"total": 12}"#).build()?;
/// outbox.enqueue(&transaction, &event)?;
/// transaction.commit()?;
/// # drop(connection);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Through any other driver, see [`outbox_core::statement`], or run [`insert`](Self::insert) yourself.
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    insert: Arc<str>,
    payload_bytes_max: usize,
}

impl SqliteOutbox {
    /// The writer's side of the outbox of this configuration. Opens nothing.
    pub fn new(config: &SqliteConfig) -> Self {
        Self {
            insert: config
                .sql(
                    "INSERT INTO {p} (id, aggregate_type, aggregate_id, event_type, version, payload, content_type, \
                     headers, topic, available_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
                     RETURNING sequence AS number",
                )
                .into(),
            payload_bytes_max: config.payload_bytes_max(),
        }
    }

    /// Writes one event in the transaction that `connection` is in, and returns its sequence. A
    /// [`Transaction`] can be given as it is.
    ///
    /// # Errors
    /// [`EnqueueError::NoTransaction`] outside a transaction, [`EnqueueError::Event`] for a payload over the
    /// limit, both before anything is sent; [`EnqueueError::Duplicate`] for an id that is there already;
    /// [`EnqueueError::Store`] with [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict) if
    /// another writer is in the way. The transaction is still usable, and holds nothing of the event.
    pub fn enqueue(&self, connection: &Connection, event: &Event) -> Result<Sequence, EnqueueError> {
        at_once(self.enqueue_in(&Rusqlite, &mut &*connection, event))
    }

    /// Writes many events in the transaction that `connection` is in, and returns their sequences, which
    /// ascend in the order given. All or none are written.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue).
    pub fn enqueue_all(
        &self,
        connection: &Connection,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        at_once(self.enqueue_all_in(&Rusqlite, &mut &*connection, events))
    }

    /// The statement that writes one event, for a driver of your own: run it inside a transaction, which
    /// it does not check. It answers the event's sequence in one row; the extended result code 2067
    /// (`SQLITE_CONSTRAINT_UNIQUE`) says that the id is in the outbox already.
    ///
    /// The parameters are, in order: four [`Text`](Parameter::Text), [`Integer`](Parameter::Integer),
    /// `Text` or [`Bytes`](Parameter::Bytes), three `Text`, [`BigInteger`](Parameter::BigInteger):
    /// microseconds since 1970.
    ///
    /// # Errors
    /// A payload over the limit.
    pub fn insert<'a>(&self, event: &'a Event) -> Result<Statement<'a>, EnqueueError> {
        event.check_payload(self.payload_bytes_max)?;
        let parameters = vec![
            Parameter::Text(Some(event.id().to_string().into())),
            Parameter::text(event.aggregate_type()),
            Parameter::text(event.aggregate_id()),
            Parameter::text(event.event_type()),
            Parameter::Integer(event.version()),
            payload_value(event),
            Parameter::text(event.content_type()),
            Parameter::Text(headers_column(event)?.map(Cow::Owned)),
            Parameter::Text(event.topic().map(Cow::Borrowed)),
            Parameter::BigInteger(event.available_at().map(|at| at.timestamp_micros())),
        ];
        Ok(Statement::new(Arc::clone(&self.insert), parameters))
    }

    async fn enqueue_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &Event,
    ) -> Result<Sequence, EnqueueError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        let statement = self.insert(event)?;
        if !is_inside(driver, transaction).await.map_err(failed)? {
            return Err(EnqueueError::NoTransaction);
        }
        write(driver, transaction, event, statement).await
    }

    async fn enqueue_all_in<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        if !is_inside(driver, transaction).await.map_err(failed)? {
            return Err(EnqueueError::NoTransaction);
        }
        driver.run(transaction, "SAVEPOINT outbox_enqueue_all").await.map_err(failed)?;
        let written = self.write_all(driver, transaction, events).await;
        // SQLite ends the whole transaction by itself after a full disk or a failing one, and the
        // savepoint with it.
        if written.is_ok() || is_inside(driver, transaction).await.map_err(failed)? {
            let end = match &written {
                Ok(_) => "RELEASE outbox_enqueue_all",
                Err(_) => "ROLLBACK TO outbox_enqueue_all; RELEASE outbox_enqueue_all",
            };
            driver.run(transaction, end).await.map_err(failed)?;
        }
        written
    }

    async fn write_all<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError>
    where
        T: ?Sized,
        D: Driver<T, Sqlite>,
    {
        let mut sequences = Vec::with_capacity(events.len());
        for event in events {
            sequences.push(write(driver, transaction, event, self.insert(event)?).await?);
        }
        Ok(sequences)
    }
}

impl EnqueueBy for SqliteOutbox {
    type Dialect = Sqlite;

    async fn enqueue_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &Event,
    ) -> Result<Sequence, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Sqlite> + Sync,
    {
        self.enqueue_in(driver, transaction, event).await
    }

    async fn enqueue_all_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Sqlite> + Sync,
    {
        self.enqueue_all_in(driver, transaction, events).await
    }
}

/// For code that is generic over stores. The trait's future is ready at once: the work is done by the call
/// itself, on the calling thread, because a `rusqlite::Connection` is not `Sync` and a future that borrows
/// one could not be `Send`. With an open write transaction an insert touches memory and the operating
/// system's cache only; a wait for another writer happens at the transaction's first write, which
/// `TransactionBehavior::Immediate` moves to its begin.
impl Enqueue<Transaction<'_>> for SqliteOutbox {
    fn enqueue(
        &self,
        transaction: &mut Transaction<'_>,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        ready(Self::enqueue(self, transaction, event))
    }

    fn enqueue_all(
        &self,
        transaction: &mut Transaction<'_>,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        ready(Self::enqueue_all(self, transaction, events))
    }
}

/// Whether the connection is inside a transaction. A savepoint would begin one where there is none;
/// `BEGIN` is refused inside one and changes nothing there.
pub(crate) async fn is_inside<T, D>(driver: &D, transaction: &mut T) -> Result<bool, DriverError>
where
    T: ?Sized,
    D: Driver<T, Sqlite>,
{
    if let Some(inside) = driver.is_inside(transaction) {
        return Ok(inside);
    }
    match driver.run(transaction, "BEGIN").await {
        Ok(()) => driver.run(transaction, "ROLLBACK").await.map(|()| false),
        // The words have not changed since version 3.0, and SQLite does not translate them.
        Err(error) if error.to_string().contains("within a transaction") => Ok(true),
        Err(error) => Err(error),
    }
}

async fn write<T, D>(
    driver: &D,
    transaction: &mut T,
    event: &Event,
    statement: Statement<'_>,
) -> Result<Sequence, EnqueueError>
where
    T: ?Sized,
    D: Driver<T, Sqlite>,
{
    let duplicate = ffi::SQLITE_CONSTRAINT_UNIQUE.to_string();
    match driver.numbers(transaction, statement).await {
        Ok(numbers) => {
            let none = || failed(DriverError::new("the insert has answered no row"));
            numbers.into_iter().next().ok_or_else(none)
        }
        Err(error) if error.code() == Some(&duplicate) && error.to_string().ends_with(".id") => {
            Err(EnqueueError::Duplicate(event.id()))
        }
        Err(error) => Err(failed(error)),
    }
}

fn failed(error: DriverError) -> EnqueueError {
    driver_error("write an event", error).into()
}
