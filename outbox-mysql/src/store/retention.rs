//! Removing rows of a final state, and counting.

use std::time::Duration;

use outbox_core::{
    Disposal, StoreError,
    store::{COUNT_MAX, Count, PurgeRequest, Purged, QuickStats, Sequence, Status, StoreStats},
};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::membership::ALIVE;
use crate::{
    codec::{duration, json, micros, rows},
    database::{Database, begin, commit},
    error::{again, within},
    schema::ARCHIVED,
};

/// The most rows that one purge looks at for each row that it may remove, and at all, from the lowest
/// sequence on. An event that was sent or given up long after it was written keeps those behind it for as
/// long as it is kept itself.
const LOOKED_AT_PER_ROW: u32 = 10;
const LOOKED_AT_MIN: u32 = 1_000;
const LOOKED_AT_MAX: u32 = 50_000;

/// How many of the oldest pending events are asked for their age: sequences ascend nearly as times do.
const OLDEST_OF: u32 = 1_000;

pub(super) async fn purge(database: &Database, request: PurgeRequest) -> Result<Purged, StoreError> {
    let mut purged = Purged::default();
    if let Some((age, disposal)) = request.sent {
        let state = (Status::Sent, "sent_at");
        purged.sent = purge_state(database, state, age, disposal, request.rows_max).await?;
    }
    if let Some((age, disposal)) = request.failed {
        let state = (Status::Failed, "failed_at");
        purged.failed = purge_state(database, state, age, disposal, request.rows_max).await?;
    }
    Ok(purged)
}

async fn purge_state(
    database: &Database,
    (status, since): (Status, &str),
    age: Duration,
    disposal: Disposal,
    rows_max: u32,
) -> Result<u64, StoreError> {
    let what = "purge events";
    again(|| async {
        let mut connection = database.connection(what).await?;
        let find = format!(
            "SELECT sequence FROM (SELECT sequence, {since} AS since FROM {{outbox}} FORCE INDEX (pending) \
                WHERE status = ? ORDER BY sequence LIMIT ?) seen \
             WHERE since <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND ORDER BY sequence LIMIT ?"
        );
        let looked_at = rows_max.saturating_mul(LOOKED_AT_PER_ROW).clamp(LOOKED_AT_MIN, LOOKED_AT_MAX);
        let query = sqlx::query_scalar(database.tables().sql(&find)).bind(status.code()).bind(looked_at);
        let query = query.bind(micros(age)).bind(rows_max);
        let old: Vec<Sequence> = within(what, query.fetch_all(&mut *connection)).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let mut transaction = begin(&mut connection, what).await?;
        let removed = within(what, remove(database, &mut transaction, status, disposal, old)).await?;
        commit(transaction, what).await?;
        Ok(removed)
    })
    .await
}

/// Removes those that still have the status.
async fn remove(
    database: &Database,
    connection: &mut MySqlConnection,
    status: Status,
    disposal: Disposal,
    old: Vec<Sequence>,
) -> Result<u64, sqlx::Error> {
    let join = format!(
        "{} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence AND o.status = ?",
        rows("s", "sequence BIGINT")
    );
    let old = json(old.into_iter().map(|sequence| (sequence,)).collect::<Vec<_>>());
    if disposal == Disposal::Archive {
        let lock = format!("SELECT o.sequence FROM {join} FOR UPDATE");
        let query = sqlx::query(database.tables().sql(&lock)).bind(&old).bind(status.code());
        query.fetch_all(&mut *connection).await?;
        let columns = ARCHIVED.replace(", ", ", o.");
        let copy = format!("REPLACE INTO {{archive}} ({ARCHIVED}) SELECT o.{columns} FROM {join}");
        let query = sqlx::query(database.tables().sql(&copy)).bind(&old).bind(status.code());
        query.execute(&mut *connection).await?;
    }
    let delete = format!("DELETE o FROM {join}");
    let query = sqlx::query(database.tables().sql(&delete)).bind(&old).bind(status.code());
    Ok(query.execute(connection).await?.rows_affected())
}

pub(super) async fn quick_stats(database: &Database) -> Result<QuickStats, StoreError> {
    let what = "count what waits";
    let counted = COUNT_MAX + 1;
    let sql = format!(
        "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM {{outbox}} FORCE INDEX (pending) \
                   WHERE status = 0 LIMIT {counted}) n) AS pending, \
                (SELECT COUNT(*) FROM (SELECT 1 FROM {{outbox}} FORCE INDEX (pending) \
                   WHERE status = 2 LIMIT {counted}) n) AS failed, \
                (SELECT COUNT(*) FROM (SELECT 1 FROM {{holds}} LIMIT {counted}) n) AS holds, {}",
        oldest_and_members()
    );
    let connection = &mut *database.connection(what).await?;
    within(what, async {
        let row = sqlx::query(database.tables().sql(&sql)).fetch_one(connection).await?;
        let mut stats = QuickStats::default();
        stats.pending = Count::up_to_max(count(&row, "pending")?);
        stats.failed = Count::up_to_max(count(&row, "failed")?);
        stats.holds = Count::up_to_max(count(&row, "holds")?);
        stats.oldest_pending_age = row.try_get::<Option<i64>, _>("oldest")?.map(duration);
        (stats.relays_live, stats.partitions_owned) = members(&row)?;
        Ok(stats)
    })
    .await
}

fn count(row: &MySqlRow, name: &str) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or_default())
}

/// Live relays, and the partitions that they own.
fn members(row: &MySqlRow) -> Result<(u32, u32), sqlx::Error> {
    let small = |name: &str| count(row, name).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok((small("relays")?, small("owned")?))
}

pub(super) async fn stats(database: &Database) -> Result<StoreStats, StoreError> {
    let what = "count the outbox";
    let sql = format!(
        "SELECT (SELECT COUNT(*) FROM {{outbox}} WHERE status = 0) AS pending, \
                (SELECT COUNT(*) FROM {{outbox}} WHERE status = 1) AS sent, \
                (SELECT COUNT(*) FROM {{outbox}} WHERE status = 2) AS failed, \
                (SELECT COUNT(*) FROM {{holds}}) AS holds, {}",
        oldest_and_members()
    );
    let connection = &mut *database.connection(what).await?;
    within(what, async {
        let row = sqlx::query(database.tables().sql(&sql)).fetch_one(connection).await?;
        let mut stats = StoreStats::default();
        (stats.pending, stats.sent, stats.failed) =
            (count(&row, "pending")?, count(&row, "sent")?, count(&row, "failed")?);
        stats.oldest_pending_age = row.try_get::<Option<i64>, _>("oldest")?.map(duration);
        stats.holds = count(&row, "holds")?;
        (stats.relays_live, stats.partitions_owned) = members(&row)?;
        Ok(stats)
    })
    .await
}

/// The columns of both statistics that cost the same in each.
fn oldest_and_members() -> String {
    format!(
        "(SELECT TIMESTAMPDIFF(MICROSECOND, MIN(created_at), UTC_TIMESTAMP(6)) \
            FROM (SELECT created_at FROM {{outbox}} FORCE INDEX (pending) \
                  WHERE status = 0 ORDER BY sequence LIMIT {OLDEST_OF}) oldest) AS oldest, \
         (SELECT COUNT(*) FROM {{relays}} r WHERE {ALIVE}) AS relays, \
         (SELECT COUNT(*) FROM {{partitions}} p JOIN {{relays}} r ON r.relay_id = p.owner WHERE {ALIVE}) AS owned"
    )
}
