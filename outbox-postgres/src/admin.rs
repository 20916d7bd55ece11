//! The operator's side. Every call is one transaction, and needs no relay to be running.
//!
//! A statement that makes a hold locks the lease row first and reads its floor afterwards: a settle that
//! removes a hold of the same aggregate lowers that floor, and the new hold must begin no later than the old
//! one did.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{EventRecord, FailureCause, HoldReason, HoldRecord, Sequence, Status, readable_headers},
};
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::{
    PostgresStore,
    codec::{Micros, partition_of},
    database::{Database, begin},
    error::within,
    schema::partition_expression,
};

/// The most events that the archive is asked for beyond a page.
const TWICE_MAX: u32 = 1_000;

#[async_trait]
impl OutboxAdmin for PostgresStore {
    /// Failed events of the table are found by their index, ids by theirs; any other condition reads the
    /// table or the archive from `after` on until it has found enough, which on a large one takes its time.
    ///
    /// The archive may have a sequence more than once, after the table's sequence was set back. Pages are
    /// told apart by the sequence, so a page of the archive goes on, beyond `rows_max`, to the last event of
    /// its last sequence.
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let what = "list events";
        let connection = &mut *self.database().connection(what).await?;
        within(what, async {
            let mut records = list(self.database(), connection, filter, (None, rows_max)).await?;
            if filter.archived
                && records.len() >= usize::try_from(rows_max).unwrap_or(usize::MAX)
                && let Some((sequence, Some(id))) = records.last().map(|last| (last.sequence, last.id))
            {
                let rest = (Some((sequence, id)), TWICE_MAX);
                records.extend(list(self.database(), connection, filter, rest).await?);
            }
            Ok(records)
        })
        .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        let what = "list holds";
        let sql = "SELECT partition, aggregate_type, aggregate_id, sequence, reason, paused, \
                     CASE WHEN until < 'infinity' AND NOT paused \
                       THEN greatest((extract(epoch FROM until - clock_timestamp()) * 1000)::bigint, 0) END AS due_ms \
                   FROM {holds} ORDER BY until, partition, aggregate_type, aggregate_id LIMIT $1";
        let query = sqlx::query(self.database().tables().sql(sql)).bind(i64::from(rows_max));
        let connection = &mut *self.database().connection(what).await?;
        within(what, async { query.fetch_all(connection).await?.iter().map(hold).collect() }).await
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        let what = "requeue events";
        let mut connection = database.connection(what).await?;
        let mut transaction = begin(&mut connection, what).await?;
        let count = within(what, requeue(database, &mut transaction, filter)).await?;
        within(what, transaction.commit()).await?;
        Ok(count)
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        let what = "discard events";
        let mut connection = database.connection(what).await?;
        let mut transaction = begin(&mut connection, what).await?;
        let count = within(what, discard(database, &mut transaction, filter)).await?;
        within(what, transaction.commit()).await?;
        Ok(count)
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let what = "pause an aggregate";
        let sql = format!(
            "WITH l AS MATERIALIZED ( \
                SELECT partition, floor FROM {{partitions}} WHERE partition = {} FOR SHARE) \
             INSERT INTO {{holds}} AS h \
                (partition, aggregate_type, aggregate_id, from_sequence, until, reason, paused) \
             SELECT partition, $1, $2, floor + 1, 'infinity', 'paused', true FROM l \
             ON CONFLICT (partition, aggregate_type, aggregate_id) DO UPDATE SET \
                paused = true, until = 'infinity', \
                from_sequence = least(h.from_sequence, excluded.from_sequence), changed_at = excluded.changed_at",
            partition_expression("$1::text", "$2::text")
        );
        let query = sqlx::query(self.database().tables().sql(&sql));
        let query = query.bind(key.aggregate_type()).bind(key.aggregate_id());
        within(what, query.execute(&mut *self.database().connection(what).await?)).await.map(drop)
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let what = "resume an aggregate";
        let sql = format!(
            "UPDATE {{holds}} SET paused = false, until = clock_timestamp(), changed_at = clock_timestamp() \
             WHERE partition = {} AND aggregate_type = $1 AND aggregate_id = $2",
            partition_expression("$1::text", "$2::text")
        );
        let query = sqlx::query(self.database().tables().sql(&sql));
        let query = query.bind(key.aggregate_type()).bind(key.aggregate_id());
        let done = within(what, query.execute(&mut *self.database().connection(what).await?)).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        let what = "pause a topic";
        let sql = "INSERT INTO {topics} (topic) VALUES ($1) ON CONFLICT (topic) DO NOTHING";
        let query = sqlx::query(self.database().tables().sql(sql)).bind(topic);
        within(what, query.execute(&mut *self.database().connection(what).await?)).await.map(drop)
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let what = "resume a topic";
        let sql = "WITH t AS (DELETE FROM {topics} WHERE topic = $1 RETURNING 1), \
                   h AS (UPDATE {holds} SET until = clock_timestamp() WHERE reason = 'topic' AND NOT paused) \
                   SELECT EXISTS (SELECT 1 FROM t)";
        let query = sqlx::query_scalar(self.database().tables().sql(sql)).bind(topic);
        within(what, query.fetch_one(&mut *self.database().connection(what).await?)).await
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        let what = "list paused topics";
        let query =
            sqlx::query_scalar(self.database().tables().sql("SELECT topic FROM {topics} ORDER BY topic"));
        within(what, query.fetch_all(&mut *self.database().connection(what).await?)).await
    }
}

/// Events in the order of their sequences, or those of one sequence after an id.
async fn list(
    database: &Database,
    connection: &mut PgConnection,
    filter: &EventFilter,
    (after, rows_max): (Option<(Sequence, Uuid)>, u32),
) -> Result<Vec<EventRecord>, sqlx::Error> {
    let by_failed = filter.status == Some(Status::Failed) || filter.cause.is_some();
    let text = match filter.archived {
        // The archive keeps no partition.
        true => {
            let partition = partition_expression("o.aggregate_type", "o.aggregate_id");
            format!("SELECT o.*, {partition} AS partition FROM {{archive}} o")
        }
        false => {
            "SELECT o.*, (SELECT f.failed_at FROM {failed} f WHERE f.sequence = o.sequence AND o.status = 2) \
                    AS failed_at FROM {outbox} o"
                .to_owned()
        }
    };
    let mut query = QueryBuilder::<Postgres>::new(database.tables().text(&text));
    if by_failed && filter.ids.is_empty() && !filter.archived {
        query.push(database.tables().text(" JOIN {failed} f ON f.sequence = o.sequence"));
    }
    query.push(" WHERE true");
    push_filter(&mut query, filter);
    if let Some((sequence, id)) = after {
        query.push(" AND o.sequence = ").push_bind(sequence).push(" AND o.id > ").push_bind(id);
    }
    // The table has each sequence once, and no index that begins with both.
    let order = if filter.archived { "o.sequence, o.id" } else { "o.sequence" };
    query.push(" ORDER BY ").push(order).push(" LIMIT ").push_bind(i64::from(rows_max));
    let rows = query.build().persistent(false).fetch_all(connection).await?;
    rows.iter().map(record).collect()
}

fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    if !filter.ids.is_empty() {
        query.push(" AND o.id = ANY (").push_bind(filter.ids.clone()).push(")");
    }
    if let Some(status) = filter.status {
        query.push(" AND o.status = ").push_bind(status.code());
    }
    if let Some(cause) = filter.cause {
        query.push(" AND o.cause = ").push_bind(cause.as_str());
    }
    let texts = [
        (" AND o.aggregate_type = ", &filter.aggregate_type),
        (" AND o.aggregate_id = ", &filter.aggregate_id),
        (" AND o.event_type = ", &filter.event_type),
    ];
    for (condition, text) in texts {
        if let Some(text) = text {
            query.push(condition).push_bind(text.clone());
        }
    }
    if let Some(from) = filter.created_from {
        query.push(" AND o.created_at >= ").push_bind(from);
    }
    if let Some(before) = filter.created_before {
        query.push(" AND o.created_at < ").push_bind(before);
    }
    if let Some(after) = filter.after {
        query.push(" AND o.sequence > ").push_bind(after);
    }
}

async fn requeue(
    database: &Database,
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<u64, sqlx::Error> {
    lock_floors(database, connection).await?;
    // The rows of the index are locked first, as retention does.
    let text =
        "SELECT o.sequence FROM {failed} f JOIN {outbox} o ON o.sequence = f.sequence WHERE o.status = 2";
    let mut query = QueryBuilder::<Postgres>::new(database.tables().text(text));
    push_filter(&mut query, filter);
    query.push(" ORDER BY o.sequence FOR UPDATE OF f");
    let sequences: Vec<Sequence> =
        query.build_query_scalar().persistent(false).fetch_all(&mut *connection).await?;
    if sequences.is_empty() {
        return Ok(0);
    }
    // The rule of `Hold::requeued`: a hold of one of these events waits for nothing else than this, and a
    // pause stays a pause.
    let sql = "WITH u AS (UPDATE {outbox} SET status = 0, attempts = 0, cause = NULL \
                 WHERE sequence = ANY ($1::bigint[]) AND status = 2 \
                 RETURNING sequence, partition, aggregate_type, aggregate_id), \
               d AS (DELETE FROM {failed} WHERE sequence = ANY ($1)), \
               k AS (SELECT partition, aggregate_type, aggregate_id, min(sequence) AS first \
                 FROM u GROUP BY 1, 2, 3), \
               h AS (INSERT INTO {holds} AS h \
                   (partition, aggregate_type, aggregate_id, sequence, from_sequence, until, reason) \
                 SELECT k.partition, k.aggregate_type, k.aggregate_id, k.first, least(k.first, p.floor + 1), \
                        clock_timestamp(), 'requeued' \
                 FROM k JOIN {partitions} p ON p.partition = k.partition \
                 ON CONFLICT (partition, aggregate_type, aggregate_id) DO UPDATE SET \
                   sequence = least(h.sequence, excluded.sequence), \
                   from_sequence = least(h.from_sequence, excluded.from_sequence), \
                   until = CASE WHEN h.paused THEN h.until \
                                WHEN h.sequence IS NULL OR h.sequence = ANY ($1) THEN excluded.until \
                                ELSE h.until END, \
                   reason = CASE WHEN h.sequence IS NULL OR h.sequence = ANY ($1) THEN excluded.reason \
                                 ELSE h.reason END, \
                   changed_at = excluded.changed_at) \
               SELECT count(*) FROM u";
    let query = sqlx::query_scalar(database.tables().sql(sql)).bind(sequences);
    let count: i64 = query.fetch_one(connection).await?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Waits for settles that are removing holds, so that the floors that are read next are those they leave
/// behind.
async fn lock_floors(database: &Database, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT partition FROM {partitions} ORDER BY partition FOR SHARE";
    sqlx::query(database.tables().sql(sql)).execute(connection).await.map(drop)
}

async fn discard(
    database: &Database,
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<u64, sqlx::Error> {
    // The successors of a parked event, which its hold names, have nothing to wait for any more.
    let text = "WITH u AS (UPDATE {outbox} o SET cause = 'discarded' FROM {failed} f \
                  WHERE f.sequence = o.sequence AND o.status = 2";
    let mut query = QueryBuilder::<Postgres>::new(database.tables().text(text));
    push_filter(&mut query, filter);
    let text = " RETURNING o.sequence, o.partition), \
               h AS (UPDATE {holds} h SET until = clock_timestamp() FROM u \
                  WHERE h.partition = u.partition AND h.sequence = u.sequence AND NOT h.paused) \
               SELECT count(*) FROM u";
    query.push(database.tables().text(text));
    let failed: i64 = query.build_query_scalar().persistent(false).fetch_one(&mut *connection).await?;
    // Of those that wait only the event that a hold names: another one may be on its way.
    let text = "WITH u AS (UPDATE {outbox} o SET status = 2, cause = 'discarded' FROM {holds} h \
                  WHERE h.partition = o.partition AND h.sequence = o.sequence AND o.status = 0";
    let mut query = QueryBuilder::<Postgres>::new(database.tables().text(text));
    push_filter(&mut query, filter);
    let text = " RETURNING o.sequence, o.partition), \
               f AS (INSERT INTO {failed} (sequence) SELECT sequence FROM u ON CONFLICT (sequence) DO NOTHING), \
               h AS (UPDATE {holds} h SET until = clock_timestamp() FROM u \
                  WHERE h.partition = u.partition AND h.sequence = u.sequence AND NOT h.paused) \
               SELECT count(*) FROM u";
    query.push(database.tables().text(text));
    let held: i64 = query.build_query_scalar().persistent(false).fetch_one(connection).await?;
    Ok(u64::try_from(failed + held).unwrap_or_default())
}

fn record(row: &PgRow) -> Result<EventRecord, sqlx::Error> {
    let time = |name: &str| row.try_get::<Option<Micros>, _>(name).map(|t| t.map(nearest));
    let count = |name: &str| row.try_get::<i32, _>(name).map(|n| u32::try_from(n).unwrap_or_default());
    let headers: Option<serde_json::Value> = row.try_get("headers")?;
    let cause: Option<String> = row.try_get("cause")?;
    let key = AggregateKey::new(row.try_get("aggregate_type")?, row.try_get("aggregate_id")?);
    // An unknown status is neither pending nor sent.
    let status = Status::from_code(row.try_get("status")?).unwrap_or(Status::Failed);
    let (sequence, partition) = (row.try_get("sequence")?, partition_of(row.try_get("partition")?));
    let created_at = time("created_at")?.unwrap_or_default();
    Ok(EventRecord::new(sequence, partition, key, status, created_at)
        .with_id(row.try_get("id")?)
        .with_event_type(row.try_get("event_type")?)
        .with_version(row.try_get("version")?)
        .with_payload(payload(row)?)
        .with_content_type(row.try_get("content_type")?)
        .with_headers(headers.map(|json| readable_headers(json.to_string().as_bytes())).unwrap_or_default())
        .with_topic(row.try_get("topic")?)
        .with_available_at(time("available_at")?)
        .with_attempts(count("attempts")?)
        .with_last_error(row.try_get("last_error")?)
        .with_cause(cause.and_then(|cause| FailureCause::parse(&cause)))
        .with_sent_at(time("sent_at")?)
        .with_failed_at(time("failed_at")?))
}

/// The text, where both columns are set.
fn payload(row: &PgRow) -> Result<Option<Bytes>, sqlx::Error> {
    Ok(match row.try_get::<Option<String>, _>("payload")? {
        Some(text) => Some(text.into()),
        None => row.try_get::<Option<Vec<u8>>, _>("payload_binary")?.map(Bytes::from),
    })
}

/// An infinity is the end of the calendar.
fn nearest(time: Micros) -> DateTime<Utc> {
    time.utc().unwrap_or(if time < Micros(0) { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC })
}

fn hold(row: &PgRow) -> Result<HoldRecord, sqlx::Error> {
    let due_ms: Option<i64> = row.try_get("due_ms")?;
    let reason: String = row.try_get("reason")?;
    Ok(HoldRecord::new(
        AggregateKey::new(row.try_get("aggregate_type")?, row.try_get("aggregate_id")?),
        partition_of(row.try_get("partition")?),
        row.try_get("sequence")?,
        HoldReason::of(&reason),
    )
    .with_due_in(due_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default())))
    .with_paused(row.try_get("paused")?))
}
