//! The operator's side. Every call is one transaction, and needs no relay to be running.
//!
//! A transaction that changes a hold locks the row of its partition first: see `store::holds`.

mod changes;
mod filter;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{EventRecord, FailureCause, HoldReason, HoldRecord, Partition, Status, readable_headers},
};
use sqlx::{MySql, QueryBuilder, Row as _, mysql::MySqlRow};

use self::{
    changes::{change_hold, discard, held_key, requeue, resume_topic},
    filter::push_filter,
};
use crate::{
    MysqlStore,
    codec::{duration, micros_of},
    database::{begin, commit},
    error::{again, within},
    schema::part_of,
    store::Hold,
};

#[async_trait]
impl OutboxAdmin for MysqlStore {
    /// Events of the table with a status are found by an index, ids by theirs; any other condition reads the
    /// table or the archive from `after` on until it has found enough, which on a large one takes its time.
    ///
    /// A page of the archive ends behind all the events of its last sequence, even if they are more than
    /// `rows_max`: else the next page would begin behind those that are left.
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let what = "list events";
        let connection = &mut *self.database().connection(what).await?;
        let tables = self.database().tables();
        within(what, async {
            let mut query = QueryBuilder::<MySql>::new(tables.text(&list_sql(filter.archived)));
            push_filter(&mut query, filter);
            query.push(" ORDER BY o.sequence, o.id LIMIT ").push_bind(rows_max);
            let rows = query.build().fetch_all(&mut *connection).await?;
            let mut records = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
            if let Some(last) = records.last().map(|last| last.sequence)
                && filter.archived
                && records.len() >= rows_max as usize
            {
                records.retain(|record| record.sequence != last);
                let mut query = QueryBuilder::<MySql>::new(tables.text(&list_sql(true)));
                push_filter(&mut query, filter);
                query.push(" AND o.sequence = ").push_bind(last).push(" ORDER BY o.id");
                let rows = query.build().fetch_all(connection).await?;
                records.extend(rows.iter().map(record).collect::<Result<Vec<_>, _>>()?);
            }
            Ok(records)
        })
        .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        let what = "list holds";
        // Without end comes last.
        let sql = "SELECT part, CAST(aggregate_type AS BINARY), CAST(aggregate_id AS BINARY), sequence, reason, \
                     paused_at IS NOT NULL AS paused, \
                     IF(paused_at IS NULL, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), until), NULL) AS due \
                   FROM {holds} ORDER BY until IS NULL, until, part, aggregate_type, aggregate_id LIMIT ?";
        let query = sqlx::query(self.database().tables().sql(sql)).bind(rows_max);
        let connection = &mut *self.database().connection(what).await?;
        within(what, async { query.fetch_all(connection).await?.iter().map(hold).collect() }).await
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        let what = "requeue events";
        again(|| async {
            let mut connection = database.connection(what).await?;
            let mut transaction = begin(&mut connection, what).await?;
            let count = within(what, requeue(database, &mut transaction, filter)).await?;
            commit(transaction, what).await?;
            Ok(count)
        })
        .await
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let database = self.database();
        let what = "discard events";
        again(|| async {
            let mut connection = database.connection(what).await?;
            let mut transaction = begin(&mut connection, what).await?;
            let count = within(what, discard(database, &mut transaction, filter)).await?;
            commit(transaction, what).await?;
            Ok(count)
        })
        .await
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let pause = |hold, now| Some(Hold::paused(hold, now));
        change_hold(self.database(), "pause an aggregate", key, pause).await.map(drop)
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let resume = |hold: Option<Hold>, now| Some(hold?.resumed(now));
        change_hold(self.database(), "resume an aggregate", key, resume).await
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        let what = "pause a topic";
        let sql = "INSERT INTO {topics} (topic) VALUES (?) ON DUPLICATE KEY UPDATE topic = topic";
        let query = sqlx::query(self.database().tables().sql(sql)).bind(topic.as_bytes());
        within(what, query.execute(&mut *self.database().connection(what).await?)).await.map(drop)
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let database = self.database();
        let what = "resume a topic";
        again(|| async {
            let mut connection = database.connection(what).await?;
            let mut transaction = begin(&mut connection, what).await?;
            let paused = within(what, resume_topic(database, &mut transaction, topic)).await?;
            commit(transaction, what).await?;
            Ok(paused)
        })
        .await
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        let what = "list paused topics";
        let sql = self.database().tables().sql("SELECT CAST(topic AS BINARY) FROM {topics} ORDER BY topic");
        let query = sqlx::query_scalar(sql);
        let topics: Vec<Vec<u8>> =
            within(what, query.fetch_all(&mut *self.database().connection(what).await?)).await?;
        Ok(topics.iter().map(|topic| String::from_utf8_lossy(topic).into_owned()).collect())
    }
}

/// Events with all that is known of them, whatever stands in them. Texts are read as their bytes, since the
/// server gives them in the character set of the connection, which is the caller's.
fn list_sql(archived: bool) -> String {
    let texts =
        ["aggregate_type", "aggregate_id", "event_type", "payload", "content_type", "topic", "last_error"];
    let texts = texts.map(|text| format!("CAST(o.{text} AS BINARY) AS {text}")).join(", ");
    let times = ["created_at", "available_at", "sent_at", "failed_at"];
    let times = times.map(|time| format!("{} AS {time}_micros", micros_of(&format!("o.{time}")))).join(", ");
    // The archive keeps no partition.
    let (part, from) = match archived {
        true => (part_of("o.aggregate_type", "o.aggregate_id"), "{archive}"),
        false => ("o.partition".to_owned(), "{outbox}"),
    };
    format!(
        "SELECT o.sequence, o.id, o.version, o.payload_binary, o.status, o.attempts, o.cause, {texts}, {times}, \
           CAST(CAST(o.headers AS CHAR CHARACTER SET utf8mb4) AS BINARY) AS headers, \
           CAST({part} AS UNSIGNED) AS partition_code FROM {from} o WHERE TRUE"
    )
}

fn record(row: &MySqlRow) -> Result<EventRecord, sqlx::Error> {
    let bytes = |name: &str| row.try_get_unchecked::<Option<&[u8]>, _>(name);
    let text =
        |name: &str| bytes(name).map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
    let time = |name: &str| -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        Ok(row.try_get::<Option<i64>, _>(name)?.and_then(DateTime::from_timestamp_micros))
    };
    let attempts: i32 = row.try_get("attempts")?;
    let status: i16 = row.try_get::<i8, _>("status")?.into();
    let key = AggregateKey::new(
        &text("aggregate_type")?.unwrap_or_default(),
        &text("aggregate_id")?.unwrap_or_default(),
    );
    // An unknown status is neither pending nor sent.
    let status = Status::from_code(status).unwrap_or(Status::Failed);
    let created_at = time("created_at_micros")?.unwrap_or_default();
    let (sequence, partition) = (row.try_get("sequence")?, row.try_get("partition_code")?);
    // One of two where both are set, and never none, which a replay of the archive would send as a tombstone.
    let payload = bytes("payload")?.or(bytes("payload_binary")?);
    Ok(EventRecord::new(sequence, partition, key, status, created_at)
        .with_id(row.try_get("id")?)
        .with_event_type(text("event_type")?.unwrap_or_default())
        .with_version(row.try_get("version")?)
        .with_payload(payload.map(Bytes::copy_from_slice))
        .with_content_type(text("content_type")?)
        .with_headers(bytes("headers")?.map(readable_headers).unwrap_or_default())
        .with_topic(text("topic")?)
        .with_available_at(time("available_at_micros")?)
        .with_attempts(u32::try_from(attempts).unwrap_or_default())
        .with_last_error(text("last_error")?)
        .with_cause(text("cause")?.and_then(|cause| FailureCause::parse(&cause)))
        .with_sent_at(time("sent_at_micros")?)
        .with_failed_at(time("failed_at_micros")?))
}

fn hold(row: &MySqlRow) -> Result<HoldRecord, sqlx::Error> {
    let due: Option<i64> = row.try_get("due")?;
    let reason: String = row.try_get("reason")?;
    let (part, key) = held_key(row, 0)?;
    Ok(HoldRecord::new(key, Partition::from(part), row.try_get("sequence")?, HoldReason::of(&reason))
        .with_due_in(due.map(|micros| if micros > 0 { duration(micros) } else { Duration::ZERO }))
        .with_paused(row.try_get("paused")?))
}
