//! Statements for drivers that no adapter here was written for.
//!
//! An adapter of a SQL database writes its statements once, as text and typed parameters ([`Statement`]),
//! and runs them through a [`Driver`]: a few methods over the type that the driver calls a transaction.
//! Its own driver goes the same way as every other.
//!
//! - To write one event, a statement is enough: run `PostgresOutbox::insert(&event)` inside a transaction.
//! - To have the whole of [`Enqueue`] and [`Inbox`], with the check of the transaction, batches, named
//!   duplicates and purges, implement [`Driver`] for a type of your own, and put it before the adapter's with
//!   [`Through`].
//!
//! ```text
//! Through<PostgresOutbox, YourDriver> ── Enqueue<YourTransaction>
//! Through<PostgresInbox, YourDriver>  ── Inbox<YourTransaction>
//! ```

use std::{borrow::Cow, error::Error, fmt, future::Future, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    Enqueue, EnqueueError, Event, Inbox, InboxError, Receipt, StoreError, StoreErrorKind,
    inbox::EventIdentity,
    store::{CONTENT_TYPE_DEFAULT, Sequence},
};

/// The text of a statement and its parameters, in the order of their places.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Statement<'a> {
    /// The text, with the places of its database: `$1`, `?` or `?1`. One of few, so that it is worth
    /// preparing.
    pub sql: Arc<str>,
    /// One value for each place.
    pub parameters: Vec<Parameter<'a>>,
}

impl<'a> Statement<'a> {
    /// A statement from its text and its parameters.
    pub fn new(sql: Arc<str>, parameters: Vec<Parameter<'a>>) -> Self {
        Self { sql, parameters }
    }
}

/// A value, with the type that the statement has for it. `None` is null.
///
/// A driver that meets one that it does not know answers an error.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Parameter<'a> {
    /// A UUID: PostgreSQL's `uuid`, 16 bytes where there is no such type.
    Uuid(Uuid),
    /// An integer of 32 bits.
    Integer(i32),
    /// An integer of 64 bits.
    BigInteger(Option<i64>),
    /// A text.
    Text(Option<Cow<'a, str>>),
    /// Bytes: `bytea`, `VARBINARY`, `BLOB`.
    Bytes(Option<&'a [u8]>),
    /// A time: PostgreSQL's `timestamptz`, MySQL's `DATETIME(6)` in UTC.
    Time(Option<DateTime<Utc>>),
    /// An array of PostgreSQL, `uuid[]`.
    Uuids(Vec<Uuid>),
    /// An array of PostgreSQL, `integer[]`.
    Integers(Vec<i32>),
    /// An array of PostgreSQL, `text[]`.
    Texts(Vec<Option<Cow<'a, str>>>),
    /// An array of PostgreSQL, `bytea[]`.
    ByteStrings(Vec<Option<&'a [u8]>>),
    /// An array of PostgreSQL, `timestamptz[]`.
    Times(Vec<Option<DateTime<Utc>>>),
}

impl<'a> Parameter<'a> {
    /// A text.
    pub fn text(text: &'a str) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }

    /// Bytes.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Self::Bytes(Some(bytes))
    }
}

/// An event's content type as it is stored: the default is null, which saves its bytes in every row.
pub fn content_type_column(event: &Event) -> Option<&str> {
    Some(event.content_type()).filter(|text| *text != CONTENT_TYPE_DEFAULT)
}

/// An event's payload as it is stored, in the column of texts or in that of bytes: a text wherever it can be
/// one, so that people and tools can read it. Both are null for a tombstone.
///
/// A text holds no NUL, since PostgreSQL has none in its texts.
pub fn payload_columns(event: &Event) -> (Option<&str>, Option<&[u8]>) {
    let Some(payload) = event.payload() else { return (None, None) };
    match std::str::from_utf8(payload) {
        Ok(text) if !payload.contains(&0) => (Some(text), None),
        _ => (None, Some(payload)),
    }
}

/// An event's payload as one value, for a database whose values have types of their own: a text wherever it
/// can be one, else bytes; null for a tombstone.
pub fn payload_value(event: &Event) -> Parameter<'_> {
    match payload_columns(event) {
        (Some(text), _) => Parameter::text(text),
        (None, bytes) => Parameter::Bytes(bytes),
    }
}

/// An event's headers as they are stored: the text of a JSON object, or null if there are none.
///
/// # Errors
/// Where that text cannot be written.
pub fn headers_column(event: &Event) -> Result<Option<String>, EnqueueError> {
    if event.headers().is_empty() {
        return Ok(None);
    }
    let unexpected = |error| {
        StoreError::new(StoreErrorKind::Unexpected, "cannot write the headers as JSON").with_source(error)
    };
    Ok(Some(serde_json::to_string(event.headers()).map_err(unexpected)?))
}

/// The first event whose id was given twice.
pub fn given_twice(events: &[Event]) -> Option<Uuid> {
    let mut seen = std::collections::HashSet::with_capacity(events.len());
    events.iter().map(Event::id).find(|id| !seen.insert(*id))
}

/// What a driver says of a statement that failed.
#[derive(Debug)]
pub struct DriverError {
    code: Option<String>,
    kind: Option<StoreErrorKind>,
    source: Box<dyn Error + Send + Sync>,
}

impl DriverError {
    /// The driver's own error.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code: None, kind: None, source: source.into() }
    }

    /// Adds the database's code: PostgreSQL's SQLSTATE, MySQL's number, SQLite's extended result code. By
    /// it an adapter tells what happened.
    #[must_use]
    pub fn with_code(mut self, code: Option<impl Into<String>>) -> Self {
        self.code = code.map(Into::into);
        self
    }

    /// Adds what a caller can do about an error that has no code, such as a lost connection.
    #[must_use]
    pub fn with_kind(mut self, kind: StoreErrorKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// The database's code.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// What a caller can do about it, if the driver knows; a code is asked first.
    pub fn kind(&self) -> Option<StoreErrorKind> {
        self.kind
    }

    /// The driver's error.
    pub fn into_source(self) -> Box<dyn Error + Send + Sync> {
        self.source
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl Error for DriverError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// Runs statements of the dialect `L` in transactions of the type `T`: what an adapter needs of a driver.
///
/// `T` is the caller's transaction, or a connection that can be in one; never a pool. `L` is the adapter's
/// mark of its dialect, such as `outbox_postgres::Postgres`, so that no statement goes to another kind of
/// database.
///
/// A driver that blocks runs the statement in the call and answers with a future that is ready. Dropping a
/// future may leave the statement done or not, as the driver says.
pub trait Driver<T: ?Sized, L> {
    /// Runs a text of one or more statements without parameters, in one round trip where the protocol can.
    /// It must not be wrapped in a transaction: that is how an adapter finds out whether there is one.
    fn run(
        &self,
        transaction: &mut T,
        sql: &'static str,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Runs a statement that answers no rows. Returns the first number that MySQL generated for its rows,
    /// if the driver knows it; an adapter that needs it asks the server otherwise.
    fn execute(
        &self,
        transaction: &mut T,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Option<i64>, DriverError>> + Send;

    /// Runs a statement and returns its rows, of one column `number`: an integer of 64 bits, not null.
    fn numbers(
        &self,
        transaction: &mut T,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Vec<i64>, DriverError>> + Send;

    /// Runs a statement and returns its rows, of two columns: `name`, a text, and `number`, both not null.
    fn named_numbers(
        &self,
        transaction: &mut T,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Vec<(String, i64)>, DriverError>> + Send;

    /// Whether the connection is inside a transaction, if the driver asks the database itself without a
    /// round trip. `None`, the default, lets the adapter ask by a statement.
    fn is_inside(&self, transaction: &T) -> Option<bool> {
        let _ = transaction;
        None
    }
}

/// The writer's side of an adapter, through any driver of its dialect. [`Through`] makes an [`Enqueue`] of
/// it.
pub trait EnqueueBy {
    /// The mark of its dialect.
    type Dialect;

    /// As [`Enqueue::enqueue`].
    fn enqueue_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send
    where
        T: ?Sized + Send,
        D: Driver<T, Self::Dialect> + Sync;

    /// As [`Enqueue::enqueue_all`].
    fn enqueue_all_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send
    where
        T: ?Sized + Send,
        D: Driver<T, Self::Dialect> + Sync;
}

/// The consumer's side of an adapter, through any driver of its dialect. [`Through`] makes an [`Inbox`] of
/// it.
pub trait ReceiveBy {
    /// The mark of its dialect.
    type Dialect;

    /// As [`Inbox::receive`].
    fn receive_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send
    where
        T: ?Sized + Send,
        D: Driver<T, Self::Dialect> + Sync;

    /// As [`Inbox::purge`].
    fn purge_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send
    where
        T: ?Sized + Send,
        D: Driver<T, Self::Dialect> + Sync;
}

/// An adapter's outbox or inbox behind another driver: `Through::new(PostgresOutbox::new(&config),
/// YourDriver)`.
#[derive(Debug, Clone, Copy)]
pub struct Through<A, D> {
    adapter: A,
    driver: D,
}

impl<A, D> Through<A, D> {
    /// Puts `driver` before `adapter`.
    pub fn new(adapter: A, driver: D) -> Self {
        Self { adapter, driver }
    }

    /// The adapter's outbox or inbox.
    pub fn adapter(&self) -> &A {
        &self.adapter
    }
}

impl<T, A, D> Enqueue<T> for Through<A, D>
where
    T: ?Sized + Send,
    A: EnqueueBy + Sync,
    D: Driver<T, A::Dialect> + Sync,
{
    fn enqueue(
        &self,
        transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        self.adapter.enqueue_by(&self.driver, transaction, event)
    }

    fn enqueue_all(
        &self,
        transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        self.adapter.enqueue_all_by(&self.driver, transaction, events)
    }
}

impl<T, A, D> Inbox<T> for Through<A, D>
where
    T: ?Sized + Send,
    A: ReceiveBy + Sync,
    D: Driver<T, A::Dialect> + Sync,
{
    fn receive(
        &self,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send {
        self.adapter.receive_by(&self.driver, transaction, event)
    }

    fn purge(
        &self,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send {
        self.adapter.purge_by(&self.driver, transaction, older_than, rows_max)
    }
}
