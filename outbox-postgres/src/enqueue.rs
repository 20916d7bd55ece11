//! The writer's side: events in the caller's own transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use outbox_core::{
    Enqueue, EnqueueError, Event,
    store::{CONTENT_TYPE_DEFAULT, Sequence},
};
use sqlx::{AssertSqlSafe, PgConnection, types::Json};
use std::sync::Arc;
use uuid::Uuid;

use crate::{PostgresConfig, error::store_error};

/// The most events that one statement of `enqueue_all` writes; more are written by several.
const EVENTS_PER_STATEMENT: usize = 5_000;
/// The most payload that one statement of `enqueue_all` carries, in bytes, far below the 1 GiB of a message.
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
/// Outside a transaction it refuses: a transaction of sqlx, a hand-written `BEGIN` and one that is open on a
/// pooled connection are all accepted. That costs one short statement an `enqueue`, since sqlx itself knows
/// only of the transactions it began.
#[derive(Debug, Clone)]
pub struct PostgresOutbox {
    one: Arc<str>,
    many: Arc<str>,
    payload_bytes_max: usize,
    prepare: bool,
}

impl PostgresOutbox {
    /// The writer's side of the outbox that `config` names. Its url is not needed.
    pub fn new(config: &PostgresConfig) -> Self {
        let columns = "id, aggregate_type, aggregate_id, event_type, version, payload, content_type, headers, topic, \
                       available_at";
        let one = format!(
            "INSERT INTO {{outbox}} ({columns}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (id) DO NOTHING RETURNING sequence"
        );
        // The numbers are drawn above the sort, so that they ascend in the order given.
        let many = format!(
            "INSERT INTO {{outbox}} ({columns}) SELECT {columns} FROM unnest($1::uuid[], $2::text[], $3::text[], \
             $4::text[], $5::integer[], $6::bytea[], $7::text[], $8::jsonb[], $9::text[], $10::timestamptz[]) \
             WITH ORDINALITY AS event ({columns}, place) ORDER BY place \
             ON CONFLICT (id) DO NOTHING RETURNING id, sequence"
        );
        Self {
            one: config.tables.text(&one).into(),
            many: config.tables.text(&many).into(),
            payload_bytes_max: config.payload_bytes_max,
            prepare: config.prepare,
        }
    }

    async fn insert(
        &self,
        connection: &mut PgConnection,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        let mut columns = Columns::default();
        events.iter().for_each(|event| columns.push(event));
        let mut rows: Vec<(Uuid, Sequence)> = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.many)))
            .bind(columns.ids)
            .bind(columns.aggregate_types)
            .bind(columns.aggregate_ids)
            .bind(columns.event_types)
            .bind(columns.versions)
            .bind(columns.payloads)
            .bind(columns.content_types)
            .bind(columns.headers)
            .bind(columns.topics)
            .bind(columns.available_ats)
            .persistent(self.prepare)
            .fetch_all(connection)
            .await
            .map_err(|error| store_error("write events into the outbox", error))?;
        if rows.len() < events.len() {
            return Err(EnqueueError::Duplicate(first_duplicate(events, &rows)));
        }
        rows.sort_unstable_by_key(|(_, sequence)| *sequence);
        Ok(rows.into_iter().map(|(_, sequence)| sequence).collect())
    }

    async fn insert_chunks(
        &self,
        connection: &mut PgConnection,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        let mut sequences = Vec::with_capacity(events.len());
        let mut rest = events;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_len(rest));
            sequences.extend(self.insert(&mut *connection, chunk).await?);
            rest = later;
        }
        Ok(sequences)
    }
}

impl Enqueue<PgConnection> for PostgresOutbox {
    async fn enqueue(&self, transaction: &mut PgConnection, event: &Event) -> Result<Sequence, EnqueueError> {
        event.check_payload(self.payload_bytes_max)?;
        // Both in one simple query, so in one round trip. In the implicit transaction of such a query a
        // savepoint is refused as it is outside any.
        savepoint(transaction, "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue").await?;
        sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.one)))
            .bind(event.id())
            .bind(event.aggregate_type())
            .bind(event.aggregate_id())
            .bind(event.event_type())
            .bind(event.version())
            .bind(&event.payload()[..])
            .bind(content_type(event))
            .bind(headers(event))
            .bind(event.topic())
            .bind(event.available_at())
            .persistent(self.prepare)
            .fetch_optional(transaction)
            .await
            .map_err(|error| store_error("write an event into the outbox", error))?
            .ok_or_else(|| EnqueueError::Duplicate(event.id()))
    }

    async fn enqueue_all(
        &self,
        transaction: &mut PgConnection,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        // All or none: a duplicate takes back those that were written before it, and nothing of the caller's.
        savepoint(transaction, "SAVEPOINT outbox_enqueue").await?;
        let result = self.insert_chunks(transaction, events).await;
        let end = match &result {
            Ok(_) => "RELEASE SAVEPOINT outbox_enqueue",
            Err(_) => "ROLLBACK TO SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue",
        };
        let ended = savepoint(transaction, end).await;
        let sequences = result?;
        ended.map(|()| sequences)
    }
}

async fn savepoint(connection: &mut PgConnection, sql: &'static str) -> Result<(), EnqueueError> {
    match sqlx::raw_sql(sql).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("25P01")) => {
            Err(EnqueueError::NoTransaction)
        }
        Err(error) => Err(store_error("write into the outbox in this transaction", error).into()),
    }
}

/// The default is stored as no content type, which saves its bytes in every row.
fn content_type(event: &Event) -> Option<&str> {
    Some(event.content_type()).filter(|content_type| *content_type != CONTENT_TYPE_DEFAULT)
}

fn headers(event: &Event) -> Option<Json<&BTreeMap<String, String>>> {
    (!event.headers().is_empty()).then(|| Json(event.headers()))
}

/// How many of these one statement carries: at least one.
fn chunk_len(events: &[Event]) -> usize {
    let mut bytes = 0;
    events
        .iter()
        .take(EVENTS_PER_STATEMENT)
        .take_while(|event| {
            let fits = bytes == 0 || bytes + event.payload().len() <= BYTES_PER_STATEMENT;
            bytes += event.payload().len();
            fits
        })
        .count()
        .max(1)
}

/// The first event that was not written, or that was given twice.
fn first_duplicate(events: &[Event], written: &[(Uuid, Sequence)]) -> Uuid {
    let mut written: std::collections::HashSet<Uuid> = written.iter().map(|(id, _)| *id).collect();
    events.iter().map(Event::id).find(|id| !written.remove(id)).unwrap_or_default()
}

#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    aggregate_types: Vec<&'a str>,
    aggregate_ids: Vec<&'a str>,
    event_types: Vec<&'a str>,
    versions: Vec<i32>,
    payloads: Vec<&'a [u8]>,
    content_types: Vec<Option<&'a str>>,
    headers: Vec<Option<Json<&'a BTreeMap<String, String>>>>,
    topics: Vec<Option<&'a str>>,
    available_ats: Vec<Option<DateTime<Utc>>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, event: &'a Event) {
        self.ids.push(event.id());
        self.aggregate_types.push(event.aggregate_type());
        self.aggregate_ids.push(event.aggregate_id());
        self.event_types.push(event.event_type());
        self.versions.push(event.version());
        self.payloads.push(event.payload());
        self.content_types.push(content_type(event));
        self.headers.push(headers(event));
        self.topics.push(event.topic());
        self.available_ats.push(event.available_at());
    }
}
