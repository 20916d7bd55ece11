//! Removing rows of a final state, and counting.

use std::time::Duration;

use outbox_core::{
    Disposal, StoreError,
    store::{COUNT_MAX, Count, PurgeRequest, Purged, QuickStats, Sequence, StoreStats},
};
use rusqlite::{Connection, Transaction, params};

use super::{membership::members, settle::copy_to_archive};
use crate::{
    SqliteConfig,
    codec::{micros, to_micros},
    database::Database,
    error::Context,
};

/// How many of the oldest pending events are asked for their age: sequences ascend nearly as times do.
const OLDEST_OF: u32 = 1_000;

pub(super) async fn purge(database: &Database, request: PurgeRequest) -> Result<Purged, StoreError> {
    const WHAT: &str = "purge events";
    database
        .write(WHAT, move |config, transaction| remove_old(config, transaction, request).doing(WHAT))
        .await
}

pub(super) async fn quick_stats(database: &Database) -> Result<QuickStats, StoreError> {
    database.read("count events", count_quickly).await
}

pub(super) async fn stats(database: &Database) -> Result<StoreStats, StoreError> {
    database.read("count events", count).await
}

fn remove_old(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    request: PurgeRequest,
) -> rusqlite::Result<Purged> {
    let remove = |status: u8, column: &str, rule: Option<(Duration, Disposal)>| -> rusqlite::Result<u64> {
        let Some((age, disposal)) = rule else { return Ok(0) };
        let oldest = format!(
            "SELECT sequence FROM {{p}} WHERE status = {status} AND {column} < {{now}} - ?1 ORDER BY {column} LIMIT ?2"
        );
        let mut statement = transaction.prepare_cached(&config.sql(&oldest))?;
        let sequences = statement.query_map(params![to_micros(age), request.rows_max], |row| row.get(0))?;
        let mut removed = 0;
        for sequence in sequences.collect::<rusqlite::Result<Vec<Sequence>>>()? {
            if disposal == Disposal::Archive {
                copy_to_archive(config, transaction, sequence)?;
            }
            let delete = format!("DELETE FROM {{p}} WHERE sequence = ?1 AND status = {status}");
            removed += transaction.prepare_cached(&config.sql(&delete))?.execute([sequence])?;
        }
        Ok(removed as u64)
    };
    Ok(Purged::default().with_sent(remove(1, "sent_at", request.sent)?).with_failed(remove(
        2,
        "failed_at",
        request.failed,
    )?))
}

fn count_quickly(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<QuickStats> {
    let count = |rows: &str| {
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT ?1)");
        let counted = connection.query_row(&config.sql(&sql), [COUNT_MAX as i64 + 1], |row| row.get(0));
        counted.map(|counted: i64| Count::up_to_max(counted.unsigned_abs()))
    };
    let oldest = "SELECT {now} - min(created_at) FROM (SELECT created_at FROM {p} INDEXED BY {p}_pending \
                  WHERE status = 0 ORDER BY sequence LIMIT ?1) WHERE typeof(created_at) = 'integer'";
    let oldest: Option<i64> = connection.query_row(&config.sql(oldest), [OLDEST_OF], |row| row.get(0))?;
    let mut stats = QuickStats::default();
    stats.pending = count("{p} INDEXED BY {p}_pending WHERE status = 0")?;
    stats.oldest_pending_age = oldest.map(micros);
    stats.failed = count("{p} INDEXED BY {p}_failed WHERE status = 2")?;
    stats.holds = count("{p}_holds")?;
    (stats.relays_live, stats.partitions_owned) = members(config, connection)?;
    Ok(stats)
}

fn count(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<StoreStats> {
    let number = |sql: &str| connection.query_row(&config.sql(sql), [], |row| row.get::<_, i64>(0));
    let oldest: Option<i64> = connection.query_row(
        &config.sql(
            "SELECT {now} - min(created_at) FROM {p} WHERE status = 0 AND typeof(created_at) = 'integer'",
        ),
        [],
        |row| row.get(0),
    )?;
    let mut stats = StoreStats::default();
    stats.pending = number("SELECT count(*) FROM {p} WHERE status = 0")?.unsigned_abs();
    stats.oldest_pending_age = oldest.map(micros);
    stats.sent = number("SELECT count(*) FROM {p} WHERE status = 1")?.unsigned_abs();
    stats.failed = number("SELECT count(*) FROM {p} WHERE status = 2")?.unsigned_abs();
    stats.holds = number("SELECT count(*) FROM {p}_holds")?.unsigned_abs();
    (stats.relays_live, stats.partitions_owned) = members(config, connection)?;
    Ok(stats)
}
