//! The operator's side.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError, StoreErrorKind,
    store::{EventRecord, HoldReason, HoldRecord, Sequence},
};
use rusqlite::{Connection, Transaction, params, params_from_iter, types::Value};

use crate::{
    SqliteConfig, SqliteStore,
    codec::{PARTITION, lossy, micros, record},
    database::now,
    error::Context,
    schema::columns,
    store::paused_topics,
};

/// The most ids of one filter: each takes three parameters, for the three ways in which a writer may have
/// stored it, and SQLite takes 32,766 of them (`SQLITE_MAX_VARIABLE_NUMBER`).
const FILTER_IDS_MAX: usize = 10_000;

#[async_trait]
impl OutboxAdmin for SqliteStore {
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let condition = Condition::of(filter)?;
        let archived = filter.archived;
        self.database()
            .read("list events", move |config, connection| {
                if archived {
                    return list_archived(config, connection, condition, rows_max);
                }
                list(config, connection, "{p}", &condition, rows_max)
            })
            .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        self.database()
            .read("list holds", move |config, connection| holds(config, connection, rows_max))
            .await
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let condition = Condition::of(filter)?;
        self.database()
            .write("requeue events", move |config, transaction| {
                requeue(config, transaction, condition).doing("requeue events")
            })
            .await
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        if filter.archived {
            return Ok(0);
        }
        let condition = Condition::of(filter)?;
        self.database()
            .write("discard events", move |config, transaction| {
                discard(config, transaction, &condition).doing("discard events")
            })
            .await
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        // The event and the reason stay beneath the pause, the time does not: see `Hold::paused`.
        let sql = "INSERT INTO {p}_holds (aggregate_type, aggregate_id, reason, paused_at) \
             VALUES (?1, ?2, 'paused', {now}) ON CONFLICT DO UPDATE SET paused_at = excluded.paused_at, \
             until = NULL";
        self.change("pause an aggregate", sql, names(key)).await.map(drop)
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let sql = "UPDATE {p}_holds SET paused_at = NULL, until = {now} WHERE aggregate_type = ?1 AND aggregate_id = ?2";
        self.change("resume an aggregate", sql, names(key)).await
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        let sql = "INSERT OR IGNORE INTO {p}_topics (topic) VALUES (?1)";
        self.change("pause a topic", sql, vec![topic.to_owned()]).await.map(drop)
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        const WHAT: &str = "resume a topic";
        let topic = topic.to_owned();
        self.database()
            .write(WHAT, move |config, transaction| {
                // A hold does not say of which topic it is: those of another one that is still paused are
                // held again.
                let due = config.sql(
                    "UPDATE {p}_holds SET until = iif(paused_at IS NULL, {now}, NULL) WHERE reason = ?1",
                );
                transaction.execute(&due, [HoldReason::Topic.as_str()]).doing(WHAT)?;
                let resume = config.sql("DELETE FROM {p}_topics WHERE topic = ?1");
                Ok(transaction.execute(&resume, [topic]).doing(WHAT)? > 0)
            })
            .await
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        self.database().read("list paused topics", paused_topics).await
    }
}

impl SqliteStore {
    /// Runs one statement; whether it changed a row.
    async fn change(
        &self,
        what: &'static str,
        sql: &'static str,
        values: Vec<String>,
    ) -> Result<bool, StoreError> {
        self.database()
            .write(what, move |config, transaction| {
                Ok(transaction.execute(&config.sql(sql), params_from_iter(values)).doing(what)? > 0)
            })
            .await
    }
}

fn names(key: &AggregateKey) -> Vec<String> {
    vec![key.aggregate_type().to_owned(), key.aggregate_id().to_owned()]
}

/// A filter as a condition with its values.
struct Condition {
    sql: String,
    values: Vec<Value>,
}

impl Condition {
    fn of(filter: &EventFilter) -> Result<Self, StoreError> {
        if filter.ids.len() > FILTER_IDS_MAX {
            let problem =
                format!("{} ids in one filter: give at most {FILTER_IDS_MAX} at a time", filter.ids.len());
            return Err(StoreError::new(StoreErrorKind::Misuse, problem));
        }
        let mut condition = Self { sql: "true".to_owned(), values: Vec::new() };
        if !filter.ids.is_empty() {
            for id in &filter.ids {
                condition.values.push(Value::Text(id.hyphenated().to_string()));
                condition.values.push(Value::Text(id.simple().to_string()));
                condition.values.push(Value::Blob(id.as_bytes().to_vec()));
            }
            condition.sql.push_str(&format!(" AND id IN (?{})", ", ?".repeat(condition.values.len() - 1)));
        }
        let mut and = |column: &str, value: Option<Value>| {
            if let Some(value) = value {
                condition.sql.push_str(&format!(" AND {column} ?"));
                condition.values.push(value);
            }
        };
        let text = |value: &Option<String>| value.clone().map(Value::Text);
        and("status =", filter.status.map(|status| Value::Integer(status.code().into())));
        and("cause =", filter.cause.map(|cause| Value::Text(cause.as_str().to_owned())));
        and("aggregate_type =", text(&filter.aggregate_type));
        and("aggregate_id =", text(&filter.aggregate_id));
        and("event_type =", text(&filter.event_type));
        let time = |time: Option<DateTime<Utc>>| time.map(|time| Value::Integer(time.timestamp_micros()));
        and("created_at >=", time(filter.created_from));
        and("created_at <", time(filter.created_before));
        and("sequence >", filter.after.map(Value::Integer));
        Ok(condition)
    }

    /// The same with one sequence.
    fn with_sequence(mut self, sequence: Sequence) -> Self {
        self.sql.push_str(" AND sequence = ?");
        self.values.push(Value::Integer(sequence));
        self
    }
}

fn list(
    config: &SqliteConfig,
    connection: &Connection,
    table: &str,
    condition: &Condition,
    rows_max: u32,
) -> rusqlite::Result<Vec<EventRecord>> {
    let (columns, sql) = (columns(), &condition.sql);
    let sql = format!("SELECT {columns} FROM {table} WHERE {sql} ORDER BY sequence LIMIT {rows_max}");
    let mut statement = connection.prepare(&config.sql(&sql))?;
    statement.query_map(params_from_iter(&condition.values), record)?.collect()
}

/// The same of the archive, where several events can have one number. The next page begins behind the last
/// number, so that a page has all of that one, and may be longer than was asked for.
fn list_archived(
    config: &SqliteConfig,
    connection: &Connection,
    condition: Condition,
    rows_max: u32,
) -> rusqlite::Result<Vec<EventRecord>> {
    let columns = columns();
    let both =
        format!("(SELECT {columns} FROM {{p}}_archive UNION ALL SELECT {columns} FROM {{p}}_archive_again)");
    let mut records = list(config, connection, &both, &condition, rows_max)?;
    let last = records.last().map(|record| record.sequence).filter(|_| records.len() == rows_max as usize);
    if let Some(last) = last {
        records.retain(|record| record.sequence < last);
        records.extend(list(config, connection, &both, &condition.with_sequence(last), u32::MAX)?);
    }
    Ok(records)
}

fn holds(config: &SqliteConfig, connection: &Connection, rows_max: u32) -> rusqlite::Result<Vec<HoldRecord>> {
    let now = now(config, connection)?;
    let mut statement = connection.prepare_cached(&config.sql(
        "SELECT aggregate_type, aggregate_id, sequence, reason, paused_at IS NOT NULL AS paused, \
         CASE WHEN paused_at IS NULL THEN until END AS due_at FROM {p}_holds \
         ORDER BY due_at IS NULL, due_at, aggregate_type, aggregate_id LIMIT ?1",
    ))?;
    let holds = statement.query_map([rows_max], |row| {
        let (reason, paused, due_at) = (row.get::<_, String>(3)?, row.get(4)?, row.get::<_, Option<i64>>(5)?);
        Ok(HoldRecord::new(
            AggregateKey::new(&lossy(row.get_ref(0)?), &lossy(row.get_ref(1)?)),
            PARTITION,
            row.get(2)?,
            HoldReason::of(&reason),
        )
        .with_due_in(due_at.map(|at| micros(at.saturating_sub(now))))
        .with_paused(paused))
    })?;
    holds.collect()
}

fn requeue(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    condition: Condition,
) -> rusqlite::Result<u64> {
    let sql = format!(
        "UPDATE {{p}} SET status = 0, attempts = 0, cause = NULL, failed_at = NULL WHERE {} AND status = 2 \
         RETURNING aggregate_type, aggregate_id, sequence",
        condition.sql
    );
    let mut statement = transaction.prepare(&config.sql(&sql))?;
    let requeued = statement.query_map(params_from_iter(condition.values), |row| {
        Ok((lossy(row.get_ref(0)?), lossy(row.get_ref(1)?), row.get::<_, Sequence>(2)?))
    })?;
    // The rule of `Hold::requeued`: a hold of one of these events waits for nothing else than this.
    let mut due = transaction.prepare_cached(&config.sql(
        "UPDATE {p}_holds SET until = iif(paused_at IS NULL, {now}, NULL), reason = 'requeued' \
         WHERE aggregate_type = ?1 AND aggregate_id = ?2 AND sequence = ?3",
    ))?;
    let (mut count, mut first) = (0, BTreeMap::new());
    for event in requeued {
        let (aggregate_type, aggregate_id, sequence) = event?;
        count += 1;
        due.execute(params![aggregate_type, aggregate_id, sequence])?;
        let least = first.entry((aggregate_type, aggregate_id)).or_insert(sequence);
        *least = sequence.min(*least);
    }
    // A hold of another event keeps its own time and reason; one of this event, or of none, is due now.
    let mut hold = transaction.prepare_cached(&config.sql(
        "INSERT INTO {p}_holds AS h (aggregate_type, aggregate_id, sequence, until, reason) \
         VALUES (?1, ?2, ?3, ?4, 'requeued') ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE SET \
         until = CASE WHEN h.paused_at IS NOT NULL THEN NULL \
           WHEN coalesce(h.sequence, excluded.sequence) = excluded.sequence THEN excluded.until ELSE h.until END, \
         reason = iif(coalesce(h.sequence, excluded.sequence) = excluded.sequence, excluded.reason, h.reason), \
         sequence = min(coalesce(h.sequence, excluded.sequence), excluded.sequence)",
    ))?;
    let now = now(config, transaction)?;
    for ((aggregate_type, aggregate_id), sequence) in first {
        hold.execute(params![aggregate_type, aggregate_id, sequence, now])?;
    }
    Ok(count)
}

fn discard(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    condition: &Condition,
) -> rusqlite::Result<u64> {
    // The age of a failed event, which retention counts, is that of its failure, not of giving it up.
    let failed = format!(
        "UPDATE {{p}} SET cause = 'discarded' WHERE {} AND status = 2 RETURNING sequence",
        condition.sql
    );
    let mut failed = transaction.prepare(&config.sql(&failed))?;
    let failed = failed.query_map(params_from_iter(&condition.values), |row| row.get::<_, Sequence>(0))?;
    let mut discarded = failed.collect::<rusqlite::Result<Vec<_>>>()?;
    let held = format!(
        "UPDATE {{p}} SET status = 2, cause = 'discarded', failed_at = {{now}} WHERE {} AND status = 0 \
         AND EXISTS (SELECT 1 FROM {{p}}_holds h WHERE h.sequence = {{p}}.sequence \
         AND h.aggregate_type = {{p}}.aggregate_type AND h.aggregate_id = {{p}}.aggregate_id) RETURNING sequence",
        condition.sql
    );
    let mut statement = transaction.prepare(&config.sql(&held))?;
    let sequences =
        statement.query_map(params_from_iter(&condition.values), |row| row.get::<_, Sequence>(0))?;
    discarded.extend(sequences.collect::<rusqlite::Result<Vec<_>>>()?);
    let mut due = transaction.prepare_cached(&config.sql(
        "UPDATE {p}_holds AS h SET until = iif(h.paused_at IS NULL, {now}, NULL) FROM {p} AS o WHERE o.sequence = ?1 AND h.sequence = o.sequence \
         AND h.aggregate_type = o.aggregate_type AND h.aggregate_id = o.aggregate_id",
    ))?;
    for sequence in &discarded {
        due.execute([sequence])?;
    }
    Ok(discarded.len() as u64)
}
