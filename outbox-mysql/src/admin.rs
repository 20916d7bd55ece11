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
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let what = "list events";
        let times = ["created_at", "available_at", "sent_at"];
        let times: Vec<String> = times
            .iter()
            .map(|time| format!("{} AS {time}_micros", micros_of(&format!("o.{time}"))))
            .collect();
        let times = times.join(", ");
        // The archive keeps no partition.
        let part = part_of("o.aggregate_type", "o.aggregate_id");
        let text = match filter.archived {
            true => format!(
                "SELECT o.*, CAST({part} AS UNSIGNED) AS partition_code, {times} FROM {{archive}} o WHERE TRUE"
            ),
            false => format!(
                "SELECT o.*, CAST(o.part AS UNSIGNED) AS partition_code, {times} FROM {{outbox}} o WHERE TRUE"
            ),
        };
        let mut query = QueryBuilder::<MySql>::new(self.database().tables().text(&text));
        push_filter(&mut query, filter);
        query.push(" ORDER BY o.sequence LIMIT ").push_bind(rows_max);
        let connection = &mut *self.database().connection(what).await?;
        within(what, async { query.build().fetch_all(connection).await?.iter().map(record).collect() }).await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        let what = "list holds";
        // Without end comes last.
        let sql = "SELECT part, aggregate_type, aggregate_id, sequence, reason, paused_at IS NOT NULL AS paused, \
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
        let sql = self.database().tables().sql("SELECT topic FROM {topics} ORDER BY topic");
        let query = sqlx::query_scalar(sql);
        let topics: Vec<Vec<u8>> =
            within(what, query.fetch_all(&mut *self.database().connection(what).await?)).await?;
        Ok(topics.iter().map(|topic| String::from_utf8_lossy(topic).into_owned()).collect())
    }
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
    Ok(EventRecord::new(sequence, partition, key, status, created_at)
        .with_id(row.try_get("id")?)
        .with_event_type(text("event_type")?.unwrap_or_default())
        .with_version(row.try_get("version")?)
        .with_payload(bytes("payload")?.map(Bytes::copy_from_slice))
        .with_content_type(text("content_type")?)
        .with_headers(bytes("headers")?.map(readable_headers).unwrap_or_default())
        .with_topic(text("topic")?)
        .with_available_at(time("available_at_micros")?)
        .with_attempts(u32::try_from(attempts).unwrap_or_default())
        .with_last_error(text("last_error")?)
        .with_cause(text("cause")?.and_then(|cause| FailureCause::parse(&cause)))
        .with_sent_at(time("sent_at_micros")?))
}

fn hold(row: &MySqlRow) -> Result<HoldRecord, sqlx::Error> {
    let due: Option<i64> = row.try_get("due")?;
    let reason: String = row.try_get("reason")?;
    let (part, key) = held_key(row, 0)?;
    Ok(HoldRecord::new(key, Partition::from(part), row.try_get("sequence")?, HoldReason::of(&reason))
        .with_due_in(due.map(|micros| if micros > 0 { duration(micros) } else { Duration::ZERO }))
        .with_paused(row.try_get("paused")?))
}
