//! The writer's side: events in the caller's own transaction.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use outbox_core::{
    Enqueue, EnqueueError, Event,
    store::{CONTENT_TYPE_DEFAULT, Sequence},
};
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, mysql::MySqlArguments, query::Query};
use uuid::Uuid;

use crate::{
    MysqlConfig,
    error::{DUPLICATE, NO_SAVEPOINT, number, store_error},
};

const COLUMNS: &str = "id, aggregate_type, aggregate_id, event_type, version, payload, content_type, headers, topic, \
                       available_at";
const PLACES: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

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
/// autocommit are all accepted. That costs one short statement an `enqueue`, since sqlx itself knows only of
/// the transactions it began.
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
            find: config.tables.text("SELECT 1 FROM {outbox} WHERE id = ? LOCK IN SHARE MODE").into(),
            payload_bytes_max: config.payload_bytes_max,
        }
    }

    /// Writes the events of one statement, and returns the sequence of the first. The others follow at the
    /// distance of `auto_increment_increment`: InnoDB draws the numbers of such an insert at once, in every
    /// lock mode.
    async fn insert(
        &self,
        connection: &mut MySqlConnection,
        statement: usize,
        events: &[Event],
    ) -> Result<Sequence, sqlx::Error> {
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(&self.inserts[statement])));
        for event in events {
            query = bind(query, event);
        }
        let first = query.execute(connection).await?.last_insert_id();
        Sequence::try_from(first).map_err(|error| sqlx::Error::Decode(error.into()))
    }

    async fn insert_all(
        &self,
        connection: &mut MySqlConnection,
        events: &[Event],
        increment: Sequence,
    ) -> Result<Vec<Sequence>, sqlx::Error> {
        let mut sequences = Vec::with_capacity(events.len());
        let mut rest = events;
        while !rest.is_empty() {
            let statement = statement_of(rest);
            let (chunk, later) = rest.split_at(EVENTS_PER_STATEMENT[statement]);
            let mut sequence = self.insert(connection, statement, chunk).await?;
            for _ in chunk {
                sequences.push(sequence);
                sequence += increment;
            }
            rest = later;
        }
        Ok(sequences)
    }

    /// The first event whose id is there already or was given twice; asked after a statement has failed by
    /// it.
    async fn duplicate(
        &self,
        connection: &mut MySqlConnection,
        events: &[Event],
    ) -> Result<Option<Uuid>, sqlx::Error> {
        let mut seen = HashSet::new();
        if let Some(twice) = events.iter().map(Event::id).find(|id| !seen.insert(*id)) {
            return Ok(Some(twice));
        }
        for event in events {
            // Locking, because the transaction's snapshot may be older than the row.
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.find))).bind(event.id());
            if query.fetch_optional(&mut *connection).await?.is_some() {
                return Ok(Some(event.id()));
            }
        }
        Ok(None)
    }

    async fn failed(
        &self,
        connection: &mut MySqlConnection,
        events: &[Event],
        error: sqlx::Error,
    ) -> EnqueueError {
        let duplicate = match number(&error) {
            Some(DUPLICATE) => self.duplicate(connection, events).await,
            _ => Ok(None),
        };
        match duplicate {
            Ok(Some(id)) => EnqueueError::Duplicate(id),
            _ => store_error("write into the outbox", error).into(),
        }
    }
}

impl Enqueue<MySqlConnection> for MysqlOutbox {
    async fn enqueue(
        &self,
        transaction: &mut MySqlConnection,
        event: &Event,
    ) -> Result<Sequence, EnqueueError> {
        event.check_payload(self.payload_bytes_max)?;
        // Outside a transaction the savepoint ends with the statement that made it, and cannot be released.
        let sql = "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue";
        sqlx::raw_sql(sql).execute(&mut *transaction).await.map_err(no_transaction)?;
        let event = std::slice::from_ref(event);
        match self.insert(transaction, EVENTS_PER_STATEMENT.len() - 1, event).await {
            Ok(sequence) => Ok(sequence),
            Err(error) => Err(self.failed(transaction, event, error).await),
        }
    }

    async fn enqueue_all(
        &self,
        transaction: &mut MySqlConnection,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        for event in events {
            event.check_payload(self.payload_bytes_max)?;
        }
        // All or none: a duplicate takes back those that were written before it, and nothing of the caller's.
        let sql = "SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue; SAVEPOINT outbox_enqueue; \
                   SELECT @@SESSION.auto_increment_increment";
        let increment: i64 = match sqlx::raw_sql(sql).fetch_one(&mut *transaction).await {
            Ok(row) => {
                increment(&row).map_err(|error| store_error("read auto_increment_increment", error))?
            }
            Err(error) => return Err(no_transaction(error)),
        };
        let error = match self.insert_all(transaction, events, increment).await {
            Ok(sequences) => {
                let sql = "RELEASE SAVEPOINT outbox_enqueue";
                sqlx::raw_sql(sql).execute(&mut *transaction).await.map_err(no_transaction)?;
                return Ok(sequences);
            }
            Err(error) => error,
        };
        let sql = "ROLLBACK TO SAVEPOINT outbox_enqueue; RELEASE SAVEPOINT outbox_enqueue";
        match sqlx::raw_sql(sql).execute(&mut *transaction).await {
            Ok(_) => Err(self.failed(transaction, events, error).await),
            // A deadlock, or a connection that is gone, has taken the whole transaction back.
            Err(_) => Err(store_error("write events into the outbox", error).into()),
        }
    }
}

fn increment(row: &sqlx::mysql::MySqlRow) -> Result<i64, sqlx::Error> {
    use sqlx::Row as _;
    row.try_get_unchecked(0)
}

fn no_transaction(error: sqlx::Error) -> EnqueueError {
    match number(&error) {
        Some(NO_SAVEPOINT) => EnqueueError::NoTransaction,
        _ => store_error("write into the outbox in this transaction", error).into(),
    }
}

fn bind<'q>(query: Query<'q, MySql, MySqlArguments>, event: &'q Event) -> Query<'q, MySql, MySqlArguments> {
    query
        .bind(event.id())
        .bind(event.aggregate_type().as_bytes())
        .bind(event.aggregate_id().as_bytes())
        .bind(event.event_type().as_bytes())
        .bind(event.version())
        .bind(&event.payload()[..])
        // The default is stored as no content type, which saves its bytes in every row.
        .bind(Some(event.content_type()).filter(|text| *text != CONTENT_TYPE_DEFAULT).map(str::as_bytes))
        .bind((!event.headers().is_empty()).then(|| sqlx::types::Json(event.headers())))
        .bind(event.topic().map(str::as_bytes))
        .bind(event.available_at().map(storable))
}

/// The nearest time that the type DATETIME has: from the year 1000 to the end of 9999.
pub(crate) fn storable(at: DateTime<Utc>) -> NaiveDateTime {
    let day = |year, month, day| NaiveDate::from_ymd_opt(year, month, day).unwrap_or_default();
    let first = day(1000, 1, 1).and_time(NaiveTime::MIN);
    let end = day(9999, 12, 31).and_time(NaiveTime::MIN);
    at.naive_utc().clamp(first, end)
}

/// Which statement carries the next events: the largest that they fill and whose payloads are not too many.
fn statement_of(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fitting = events
        .iter()
        .take(EVENTS_PER_STATEMENT[0])
        .take_while(|event| {
            let fits = bytes == 0 || bytes + event.payload().len() <= BYTES_PER_STATEMENT;
            bytes += event.payload().len();
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
