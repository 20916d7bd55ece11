//! The writer's side: events in the caller's own transaction.

use std::{borrow::Cow, future::Future, sync::Arc};

use chrono::{DateTime, Utc};
use outbox_core::{
    Enqueue, EnqueueError, Event, StoreError, StoreErrorKind,
    statement::{
        Driver, DriverError, EnqueueBy, Parameter, Statement, content_type_column, given_twice,
        headers_column, payload_columns,
    },
    store::Sequence,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Postgres, PostgresConfig,
    driver::Sqlx,
    error::{NO_TRANSACTION, driver_error},
};

/// The most events that one statement of `enqueue_all` writes; more are written by several.
const EVENTS_PER_STATEMENT: usize = 5_000;
/// The most payload that one statement of `enqueue_all` carries, in bytes, far below the 1 GiB of a
/// message.
const BYTES_PER_STATEMENT: usize = 16 << 20;

/// Writes events inside a transaction of the service. Has no connection of its own and is cheap to clone.
///
/// ```no_run
/// # async fn place(pool: sqlx::PgPool, outbox: outbox_postgres::PostgresOutbox) -> Result<(), Box<dyn std::error::Error>> {
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
/// Outside a transaction it refuses: a transaction of sqlx, a hand-written `BEGIN` and one that is open on
/// a pooled connection are all accepted. That costs one short statement an `enqueue`, since sqlx itself
/// knows only of the transactions it began.
///
/// Through any other driver, see [`outbox_core::statement`], or run [`insert`](Self::insert) yourself.
#[derive(Debug, Clone)]
pub struct PostgresOutbox {
    one: Arc<str>,
    many: Arc<str>,
    find: Arc<str>,
    payload_bytes_max: usize,
    sqlx: Sqlx,
}

impl PostgresOutbox {
    /// The writer's side of the outbox that `config` names. Its url is not needed.
    pub fn new(config: &PostgresConfig) -> Self {
        let columns = |headers: &str| {
            format!(
                "id, aggregate_type, aggregate_id, event_type, version, payload, payload_binary, content_type, \
                 {headers}, topic, available_at"
            )
        };
        let names = columns("headers");
        // Headers are bound as a text, which every driver can.
        let one = format!(
            "INSERT INTO {{outbox}} ({names}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11) \
             ON CONFLICT (id) DO NOTHING RETURNING sequence AS number"
        );
        // The numbers are drawn above the sort, so that they ascend in the order given.
        let values = columns("headers::jsonb");
        let many = format!(
            "INSERT INTO {{outbox}} ({names}) SELECT {values} FROM unnest($1::uuid[], $2::text[], $3::text[], \
             $4::text[], $5::integer[], $6::text[], $7::bytea[], $8::text[], $9::text[], $10::text[], \
             $11::timestamptz[]) WITH ORDINALITY AS event ({names}, place) ORDER BY place \
             ON CONFLICT (id) DO NOTHING RETURNING sequence AS number"
        );
        let find = "SELECT place AS number FROM unnest($1::uuid[]) WITH ORDINALITY AS event (id, place) \
                    WHERE EXISTS (SELECT 1 FROM {outbox} o WHERE o.id = event.id) ORDER BY place LIMIT 1";
        let text = |template: &str| config.tables.text(template).into();
        Self {
            one: text(&one),
            many: text(&many),
            find: text(find),
            payload_bytes_max: config.payload_bytes_max,
            sqlx: Sqlx { prepare: config.prepare },
        }
    }

    /// The statement that writes one event, for a driver of your own: run it inside a transaction, which
    /// it does not check. It answers the event's sequence in one row, or no row if the id is in the outbox
    /// already.
    ///
    /// The parameters are, in order: [`Uuid`](Parameter::Uuid), three [`Text`](Parameter::Text),
    /// [`Integer`](Parameter::Integer), `Text`, [`Bytes`](Parameter::Bytes), three `Text`,
    /// [`Time`](Parameter::Time).
    ///
    /// # Errors
    /// A payload over the limit.
    pub fn insert<'a>(&self, event: &'a Event) -> Result<Statement<'a>, EnqueueError> {
        event.check_payload(self.payload_bytes_max)?;
        let (payload, payload_binary) = payload_of(event);
        let parameters = vec![
            Parameter::Uuid(event.id()),
            Parameter::text(event.aggregate_type()),
            Parameter::text(event.aggregate_id()),
            Parameter::text(event.event_type()),
            Parameter::Integer(event.version()),
            Parameter::Text(payload.map(Cow::Borrowed)),
            Parameter::Bytes(payload_binary),
            Parameter::Text(content_type_column(event).map(Cow::Borrowed)),
            Parameter::Text(headers_column(event)?.map(Cow::Owned)),
            Parameter::Text(event.topic().map(Cow::Borrowed)),
            Parameter::Time(event.available_at()),
        ];
        Ok(Statement::new(Arc::clone(&self.one), parameters))
    }

    /// The statements that write many events, each as many as fit.
    fn insert_all<'a>(&self, events: &'a [Event]) -> Result<Vec<(usize, Statement<'a>)>, EnqueueError> {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        let mut statements = Vec::new();
        let mut rest = events;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_len(rest));
            let mut columns = Columns::default();
            chunk.iter().try_for_each(|event| columns.push(event))?;
            statements.push((chunk.len(), Statement::new(Arc::clone(&self.many), columns.into_parameters())));
            rest = later;
        }
        Ok(statements)
    }

    /// The first event whose id is there already or was given twice; asked after one was not written.
    async fn duplicate<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<EnqueueError, DriverError>
    where
        T: ?Sized + Send,
        D: Driver<T, Postgres> + Sync,
    {
        if let Some(id) = given_twice(events) {
            return Ok(EnqueueError::Duplicate(id));
        }
        let ids = Parameter::Uuids(events.iter().map(Event::id).collect());
        let find = Statement::new(Arc::clone(&self.find), vec![ids]);
        let place = driver.numbers(transaction, find).await?.into_iter().next();
        let event = place.and_then(|place| events.get(usize::try_from(place).ok()?.checked_sub(1)?));
        Ok(event.map_or_else(gone, |event| EnqueueError::Duplicate(event.id())))
    }
}

impl EnqueueBy for PostgresOutbox {
    type Dialect = Postgres;

    async fn enqueue_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        event: &Event,
    ) -> Result<Sequence, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Postgres> + Sync,
    {
        let statement = self.insert(event)?;
        // Both in one simple query, so in one round trip. In the implicit transaction of such a query a
        // savepoint is refused as it is outside any.
        let sql = "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue";
        driver.run(transaction, sql).await.map_err(no_transaction)?;
        let written = driver.numbers(transaction, statement).await;
        let written = written.map_err(|error| driver_error("write an event into the outbox", error))?;
        written.into_iter().next().ok_or_else(|| EnqueueError::Duplicate(event.id()))
    }

    async fn enqueue_all_by<T, D>(
        &self,
        driver: &D,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError>
    where
        T: ?Sized + Send,
        D: Driver<T, Postgres> + Sync,
    {
        let statements = self.insert_all(events)?;
        // All or none: a duplicate takes back those that were written before it, and nothing of the
        // caller's.
        driver.run(transaction, "SAVEPOINT outbox_enqueue").await.map_err(no_transaction)?;
        let result = write(driver, transaction, statements).await;
        let end = match &result {
            Ok(_) => "RELEASE SAVEPOINT outbox_enqueue",
            Err(_) => "ROLLBACK TO SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue",
        };
        let ended = driver.run(transaction, end).await.map_err(no_transaction);
        let failed = |error| driver_error("write events into the outbox", error);
        match result {
            Ok(mut sequences) => {
                ended?;
                sequences.sort_unstable();
                Ok(sequences)
            }
            Err(NotWritten::Failed(error)) => Err(failed(error).into()),
            Err(NotWritten::Duplicate) => {
                ended?;
                Err(self.duplicate(driver, transaction, events).await.map_err(failed)?)
            }
        }
    }
}

impl Enqueue<PgConnection> for PostgresOutbox {
    fn enqueue(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        self.enqueue_by(&self.sqlx, transaction, event)
    }

    fn enqueue_all(
        &self,
        transaction: &mut PgConnection,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        self.enqueue_all_by(&self.sqlx, transaction, events)
    }
}

enum NotWritten {
    /// The id of one of the events is there already, or was given twice.
    Duplicate,
    Failed(DriverError),
}

async fn write<T, D>(
    driver: &D,
    transaction: &mut T,
    statements: Vec<(usize, Statement<'_>)>,
) -> Result<Vec<Sequence>, NotWritten>
where
    T: ?Sized + Send,
    D: Driver<T, Postgres> + Sync,
{
    let mut sequences = Vec::new();
    for (count, statement) in statements {
        let written = driver.numbers(transaction, statement).await.map_err(NotWritten::Failed)?;
        if written.len() < count {
            return Err(NotWritten::Duplicate);
        }
        sequences.extend(written);
    }
    Ok(sequences)
}

fn no_transaction(error: DriverError) -> EnqueueError {
    match error.code() {
        Some(NO_TRANSACTION) => EnqueueError::NoTransaction,
        _ => driver_error("write into the outbox in this transaction", error).into(),
    }
}

/// An event's payload in the column of texts or in that of bytes. A text that begins like PostgreSQL's form
/// of bytes is refused by the column of texts, and so is stored as bytes.
fn payload_of(event: &Event) -> (Option<&str>, Option<&[u8]>) {
    match payload_columns(event) {
        (Some(text), _) if text.starts_with(r"\x") => (None, Some(text.as_bytes())),
        columns => columns,
    }
}

/// The event that was in the way has been removed since.
fn gone() -> EnqueueError {
    let what = "cannot write events into the outbox: one of their ids was there, and is gone: try again";
    StoreError::new(StoreErrorKind::Conflict, what).into()
}

/// How many of these one statement carries: at least one.
fn chunk_len(events: &[Event]) -> usize {
    let mut bytes = 0;
    events
        .iter()
        .take(EVENTS_PER_STATEMENT)
        .take_while(|event| {
            let fits = bytes == 0 || bytes + event.payload_len() <= BYTES_PER_STATEMENT;
            bytes += event.payload_len();
            fits
        })
        .count()
        .max(1)
}

#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    aggregate_types: Vec<Option<Cow<'a, str>>>,
    aggregate_ids: Vec<Option<Cow<'a, str>>>,
    event_types: Vec<Option<Cow<'a, str>>>,
    versions: Vec<i32>,
    payloads: Vec<Option<Cow<'a, str>>>,
    payloads_binary: Vec<Option<&'a [u8]>>,
    content_types: Vec<Option<Cow<'a, str>>>,
    headers: Vec<Option<Cow<'a, str>>>,
    topics: Vec<Option<Cow<'a, str>>>,
    available_ats: Vec<Option<DateTime<Utc>>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, event: &'a Event) -> Result<(), EnqueueError> {
        self.ids.push(event.id());
        self.aggregate_types.push(Some(event.aggregate_type().into()));
        self.aggregate_ids.push(Some(event.aggregate_id().into()));
        self.event_types.push(Some(event.event_type().into()));
        self.versions.push(event.version());
        let (payload, payload_binary) = payload_of(event);
        self.payloads.push(payload.map(Cow::Borrowed));
        self.payloads_binary.push(payload_binary);
        self.content_types.push(content_type_column(event).map(Cow::Borrowed));
        self.headers.push(headers_column(event)?.map(Cow::Owned));
        self.topics.push(event.topic().map(Cow::Borrowed));
        self.available_ats.push(event.available_at());
        Ok(())
    }

    fn into_parameters(self) -> Vec<Parameter<'a>> {
        vec![
            Parameter::Uuids(self.ids),
            Parameter::Texts(self.aggregate_types),
            Parameter::Texts(self.aggregate_ids),
            Parameter::Texts(self.event_types),
            Parameter::Integers(self.versions),
            Parameter::Texts(self.payloads),
            Parameter::ByteStrings(self.payloads_binary),
            Parameter::Texts(self.content_types),
            Parameter::Texts(self.headers),
            Parameter::Texts(self.topics),
            Parameter::Times(self.available_ats),
        ]
    }
}
