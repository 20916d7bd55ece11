//! What an operator changes: events that failed, events that wait, and holds. Each in the caller's
//! transaction.

use std::collections::{BTreeMap, BTreeSet};

use outbox_core::{
    AggregateKey, EventFilter, StoreError,
    store::{Sequence, Status},
};
use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _, mysql::MySqlRow};

use super::filter::push_filter;
use crate::{
    codec::{NOW_MICROS, json, rows},
    database::{Database, begin, commit},
    error::{again, within},
    schema::part_of,
    store::{HeldKey, Hold, Holds},
};

/// How many events one statement of a requeue or a discard takes: a bound of its parameter, not of the call.
const EVENTS_PER_STATEMENT: usize = 10_000;

/// An event that an operator means.
type Found = (Sequence, HeldKey);

/// The next events of a state that the filter means, above a sequence; not locked.
async fn find(
    database: &Database,
    connection: &mut MySqlConnection,
    (from, filter): (&str, &EventFilter),
    after: Sequence,
) -> Result<Vec<Found>, sqlx::Error> {
    let text = format!(
        "SELECT o.sequence, o.partition, CAST(o.aggregate_type AS BINARY), CAST(o.aggregate_id AS BINARY) FROM {from}"
    );
    let mut query = QueryBuilder::<MySql>::new(database.tables().text(&text));
    push_filter(&mut query, filter);
    query.push(" AND o.sequence > ").push_bind(after);
    query
        .push(" ORDER BY o.sequence LIMIT ")
        .push_bind(u64::try_from(EVENTS_PER_STATEMENT).unwrap_or(u64::MAX));
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, held_key(row, 1)?))).collect()
}

/// The aggregate of a row, whose names were cast to bytes: a text would come in the character set of the
/// connection.
pub(super) fn held_key(row: &MySqlRow, index: usize) -> Result<HeldKey, sqlx::Error> {
    let text = |index| row.try_get::<&[u8], _>(index).map(String::from_utf8_lossy);
    Ok((row.try_get(index)?, AggregateKey::new(&text(index + 1)?, &text(index + 2)?)))
}

/// Locks the rows of partitions, and returns the server's clock.
async fn lock_parts(
    database: &Database,
    connection: &mut MySqlConnection,
    parts: impl IntoIterator<Item = u8>,
) -> Result<i64, sqlx::Error> {
    let parts: BTreeSet<u8> = parts.into_iter().collect();
    let sql = format!(
        "SELECT {NOW_MICROS} FROM {} STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) ON p.part = l.part FOR UPDATE",
        rows("l", "part SMALLINT UNSIGNED")
    );
    let parts: Vec<_> = parts.into_iter().map(|part| (part,)).collect();
    let query = sqlx::query_scalar(database.tables().sql(&sql)).bind(json(parts));
    let now: Vec<i64> = query.fetch_all(connection).await?;
    Ok(now.first().copied().unwrap_or_default())
}

/// Locks those of the events that still have the status.
async fn lock_events(
    database: &Database,
    connection: &mut MySqlConnection,
    found: &[Found],
    status: Status,
) -> Result<Vec<Found>, sqlx::Error> {
    let sql = format!(
        "SELECT o.sequence, o.partition, CAST(o.aggregate_type AS BINARY), CAST(o.aggregate_id AS BINARY) FROM {} \
         STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence WHERE o.status = ? FOR UPDATE",
        rows("s", "sequence BIGINT")
    );
    let query = sqlx::query(database.tables().sql(&sql)).bind(sequences(found)).bind(status.code());
    let rows = query.fetch_all(connection).await?;
    let mut found: Vec<Found> = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, held_key(row, 1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    found.sort_unstable();
    Ok(found)
}

fn sequences(found: &[Found]) -> String {
    json(found.iter().map(|(sequence, _)| (sequence,)).collect::<Vec<_>>())
}

async fn update(
    database: &Database,
    connection: &mut MySqlConnection,
    found: &[Found],
    set: &str,
) -> Result<(), sqlx::Error> {
    let from = rows("s", "sequence BIGINT");
    let sql = format!(
        "UPDATE {from} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence SET {set}"
    );
    let query = sqlx::query(database.tables().sql(&sql)).bind(sequences(found));
    query.execute(connection).await.map(drop)
}

const FAILED: &str = "{outbox} o FORCE INDEX (pending) WHERE o.status = 2";

pub(super) async fn requeue(
    database: &Database,
    connection: &mut MySqlConnection,
    filter: &EventFilter,
) -> Result<u64, sqlx::Error> {
    let (mut count, mut after) = (0, filter.after.unwrap_or(Sequence::MIN));
    // The hold of each aggregate as it was, and the events that are requeued: the rule takes all of them at
    // once, and the locks of this transaction keep what was read true.
    let mut requeued: BTreeMap<HeldKey, (Option<Hold>, Vec<Sequence>)> = BTreeMap::new();
    loop {
        let found = find(database, connection, (FAILED, filter), after).await?;
        let Some((last, _)) = found.last() else { return Ok(count) };
        after = *last;
        let now = lock_parts(database, connection, found.iter().map(|(_, key)| key.0)).await?;
        let found = lock_events(database, connection, &found, Status::Failed).await?;
        let set = "o.status = 0, o.attempts = 0, o.cause = NULL, o.failed_at = NULL";
        update(database, connection, &found, set).await?;
        count += u64::try_from(found.len()).unwrap_or_default();
        let keys: BTreeSet<HeldKey> = found.iter().map(|(_, key)| key.clone()).collect();
        let mut holds = Holds::read(database, connection, keys.iter().cloned(), now).await?;
        for (sequence, key) in found {
            let before = holds.get(&key);
            requeued.entry(key).or_insert((before, Vec::new())).1.push(sequence);
        }
        for key in keys {
            if let Some((before, sequences)) = requeued.get(&key) {
                holds.change(key, |_| Hold::requeued(*before, sequences, now));
            }
        }
        holds.write(database, connection).await?;
    }
}

pub(super) async fn discard(
    database: &Database,
    connection: &mut MySqlConnection,
    filter: &EventFilter,
) -> Result<u64, sqlx::Error> {
    // Of those that wait only the event that a hold names: another one may be on its way.
    let held = "{holds} h STRAIGHT_JOIN {outbox} o FORCE INDEX (PRIMARY) ON o.sequence = h.sequence AND o.partition = h.part WHERE o.status = 0";
    let set_failed = "o.cause = 'discarded'";
    let set_held = "o.status = 2, o.cause = 'discarded', o.failed_at = UTC_TIMESTAMP(6)";
    let mut count = 0;
    for (from, status, set) in [(FAILED, Status::Failed, set_failed), (held, Status::Pending, set_held)] {
        let mut after = filter.after.unwrap_or(Sequence::MIN);
        loop {
            let found = find(database, connection, (from, filter), after).await?;
            let Some((last, _)) = found.last() else { break };
            after = *last;
            let now = lock_parts(database, connection, found.iter().map(|(_, key)| key.0)).await?;
            let mut found = lock_events(database, connection, &found, status).await?;
            let keys = found.iter().map(|(_, key)| key.clone());
            let mut holds = Holds::read(database, connection, keys, now).await?;
            if status == Status::Pending {
                found.retain(|(sequence, key)| {
                    holds.get(key).is_some_and(|hold| hold.sequence == Some(*sequence))
                });
            }
            update(database, connection, &found, set).await?;
            count += u64::try_from(found.len()).unwrap_or_default();
            for (sequence, key) in found {
                holds.change(key, |hold| Some(hold?.discarded(sequence, now)));
            }
            holds.write(database, connection).await?;
        }
    }
    Ok(count)
}

/// Changes the hold of one aggregate; true if there was one.
pub(super) async fn change_hold(
    database: &Database,
    what: &str,
    key: &AggregateKey,
    change: impl Fn(Option<Hold>, i64) -> Option<Hold> + Send + Sync,
) -> Result<bool, StoreError> {
    again(|| async {
        let mut connection = database.connection(what).await?;
        let mut transaction = begin(&mut connection, what).await?;
        let found = within(what, change_hold_locked(database, &mut transaction, key, &change)).await?;
        commit(transaction, what).await?;
        Ok(found)
    })
    .await
}

async fn change_hold_locked(
    database: &Database,
    connection: &mut MySqlConnection,
    key: &AggregateKey,
    change: &(impl Fn(Option<Hold>, i64) -> Option<Hold> + Send + Sync),
) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT part FROM {{partitions}} WHERE part = {}", part_of("?", "?"));
    let query = sqlx::query_scalar(database.tables().sql(&sql));
    let query = query.bind(key.aggregate_type().as_bytes()).bind(key.aggregate_id().as_bytes());
    let part: u8 = query.fetch_one(&mut *connection).await?;
    let now = lock_parts(database, connection, [part]).await?;
    let held: HeldKey = (part, key.clone());
    let mut holds = Holds::read(database, connection, [held.clone()], now).await?;
    let found = holds.get(&held).is_some();
    holds.change(held, |hold| change(hold, now));
    holds.write(database, connection).await?;
    Ok(found)
}

pub(super) async fn resume_topic(
    database: &Database,
    connection: &mut MySqlConnection,
    topic: &str,
) -> Result<bool, sqlx::Error> {
    let sql = "DELETE FROM {topics} WHERE topic = ?";
    let query = sqlx::query(database.tables().sql(sql)).bind(topic.as_bytes());
    let paused = query.execute(&mut *connection).await?.rows_affected() > 0;
    let sql = "SELECT part, CAST(aggregate_type AS BINARY), CAST(aggregate_id AS BINARY) FROM {holds} WHERE reason = 'topic'";
    let rows = sqlx::query(database.tables().sql(sql)).fetch_all(&mut *connection).await?;
    let keys: Vec<HeldKey> = rows.iter().map(|row| held_key(row, 0)).collect::<Result<_, _>>()?;
    for keys in keys.chunks(EVENTS_PER_STATEMENT) {
        let now = lock_parts(database, connection, keys.iter().map(|key| key.0)).await?;
        let mut holds = Holds::read(database, connection, keys.iter().cloned(), now).await?;
        for key in keys {
            holds.change(key.clone(), |hold| Some(hold?.topic_resumed(now)));
        }
        holds.write(database, connection).await?;
    }
    Ok(paused)
}
