//! The writer's side: [`SqliteOutbox`].

use std::future::{Future, ready};

use outbox_core::{Enqueue, EnqueueError, Event, StoreError, StoreErrorKind, store::Sequence};
use rusqlite::{CachedStatement, Connection, ErrorCode, Transaction, params};

use crate::{SqliteConfig, error::store_error};

/// Writes events in the service's own transaction, on the service's own connection. Cheap to clone; holds no
/// connection.
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
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    insert: String,
    payload_bytes_max: usize,
}

impl SqliteOutbox {
    /// The writer's side of the outbox of this configuration. Opens nothing.
    pub fn new(config: &SqliteConfig) -> Self {
        Self {
            insert: config.sql(
                "INSERT INTO {p} (id, aggregate_type, aggregate_id, event_type, version, payload, content_type, headers, \
                 topic, available_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING sequence",
            ),
            payload_bytes_max: config.payload_bytes_max(),
        }
    }

    /// Writes one event in the transaction that `connection` is in, and returns its sequence. A
    /// [`Transaction`] can be given as it is.
    ///
    /// # Errors
    /// [`EnqueueError::NoTransaction`] outside a transaction, [`EnqueueError::Event`] for a payload over the
    /// limit, both before anything is sent; [`EnqueueError::Duplicate`] for an id that is there already;
    /// [`EnqueueError::Store`] with [`StoreErrorKind::Conflict`] if another writer is in the way. The
    /// transaction is still usable, and holds nothing of the event.
    pub fn enqueue(&self, connection: &Connection, event: &Event) -> Result<Sequence, EnqueueError> {
        self.admit(connection, std::slice::from_ref(event))?;
        self.insert(&mut self.prepare(connection)?, event)
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
        self.admit(connection, events)?;
        let mut statement = self.prepare(connection)?;
        let savepoint =
            |sql| connection.execute_batch(sql).map_err(|error| store_error("set a savepoint", error));
        savepoint("SAVEPOINT outbox_enqueue_all")?;
        let inserted = events.iter().map(|event| self.insert(&mut statement, event)).collect();
        // SQLite ends the whole transaction by itself after a full disk or a failing one, and the savepoint
        // with it.
        if !connection.is_autocommit() {
            savepoint(match &inserted {
                Ok::<Vec<_>, _>(_) => "RELEASE outbox_enqueue_all",
                Err(_) => "ROLLBACK TO outbox_enqueue_all; RELEASE outbox_enqueue_all",
            })?;
        }
        inserted
    }

    fn admit(&self, connection: &Connection, events: &[Event]) -> Result<(), EnqueueError> {
        if connection.is_autocommit() {
            return Err(EnqueueError::NoTransaction);
        }
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        Ok(())
    }

    fn prepare<'c>(&self, connection: &'c Connection) -> Result<CachedStatement<'c>, EnqueueError> {
        Ok(connection.prepare_cached(&self.insert).map_err(|error| store_error("write an event", error))?)
    }

    fn insert(&self, statement: &mut CachedStatement<'_>, event: &Event) -> Result<Sequence, EnqueueError> {
        let headers = headers_json(event)?;
        let mut id = uuid::Uuid::encode_buffer();
        let parameters = params![
            &*event.id().hyphenated().encode_lower(&mut id),
            event.aggregate_type(),
            event.aggregate_id(),
            event.event_type(),
            event.version(),
            event.payload().as_ref(),
            event.content_type(),
            headers,
            event.topic(),
            event.available_at().map(|at| at.timestamp_micros()),
        ];
        statement.query_row(parameters, |row| row.get(0)).map_err(|error| refusal(event, error))
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

fn headers_json(event: &Event) -> Result<Option<String>, EnqueueError> {
    if event.headers().is_empty() {
        return Ok(None);
    }
    serde_json::to_string(event.headers()).map(Some).map_err(|error| {
        StoreError::new(StoreErrorKind::Unexpected, "could not write the headers as JSON")
            .with_source(error)
            .into()
    })
}

fn refusal(event: &Event, error: rusqlite::Error) -> EnqueueError {
    let duplicate = matches!(
        &error,
        rusqlite::Error::SqliteFailure(code, Some(message))
            if code.code == ErrorCode::ConstraintViolation
                && code.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
                && message.ends_with(".id")
    );
    if duplicate { EnqueueError::Duplicate(event.id()) } else { store_error("write an event", error).into() }
}
