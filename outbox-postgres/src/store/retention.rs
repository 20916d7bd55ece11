//! Removing rows of a final state, and counting.

use std::time::Duration;

use outbox_core::{
    Disposal, StoreError,
    store::{COUNT_MAX, Count, PurgeRequest, Purged, QuickStats, Sequence, StoreStats},
};
use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::membership::ALIVE;
use crate::{
    codec::millis,
    database::{Database, begin},
    error::{store_error, within},
    schema::{ARCHIVED, ARCHIVED_TWICE},
};

/// The most rows that one purge looks at for each row that it may remove, and at all. Without an index on the
/// status sent rows are found by walking the table; this bounds the walk of one call to some 20 ms.
const LOOKED_AT_PER_ROW: i64 = 10;
const LOOKED_AT_MAX: i64 = 50_000;

pub(super) async fn purge(database: &Database, request: PurgeRequest) -> Result<Purged, StoreError> {
    let what = "purge the outbox";
    let mut connection = database.connection(what).await?;
    let rows_max = i64::from(request.rows_max);
    let mut purged = Purged::default();
    if let Some((age, disposal)) = request.sent {
        purged.sent = purge_sent(database, &mut connection, age, disposal, rows_max).await?;
    }
    if let Some((age, disposal)) = request.failed {
        let call = purge_failed(database, &mut connection, age, disposal, rows_max);
        purged.failed = within(what, call).await?;
    }
    Ok(purged)
}

/// Walks the table in the order of the sequence, from where the previous purge stopped, round and round. The
/// place is kept in the database, so that the low end, where the dead rows are, is not read again each time.
async fn purge_sent(
    database: &Database,
    connection: &mut PgConnection,
    age: Duration,
    disposal: Disposal,
    rows_max: i64,
) -> Result<u64, StoreError> {
    let what = "purge sent events";
    let fail = |error| store_error(what, error);
    let mut transaction = begin(connection, what).await?;
    // One purge at a time; another relay that finds the row locked has nothing to do.
    let position = "SELECT value FROM {meta} WHERE key = 'purge_position' FOR UPDATE SKIP LOCKED";
    let position = sqlx::query_scalar(database.tables().sql(position)).fetch_optional(&mut *transaction);
    let Some(start): Option<Sequence> = within(what, position).await? else {
        return Ok(0);
    };
    let mut walk = Walk { position: start, wrapped: false, left: looked_at(rows_max), removed: 0 };
    while walk.left > 0 && walk.removed < rows_max {
        let step = purge_step(database, &mut transaction, &mut walk, (start, age, disposal, rows_max));
        if within(what, step).await? {
            break;
        }
    }
    let sql = "UPDATE {meta} SET value = $1 WHERE key = 'purge_position'";
    let query = sqlx::query(database.tables().sql(sql)).bind(walk.position);
    within(what, query.execute(&mut *transaction)).await?;
    transaction.commit().await.map_err(fail)?;
    Ok(u64::try_from(walk.removed).unwrap_or_default())
}

struct Walk {
    position: Sequence,
    /// It has come to the end and begun again.
    wrapped: bool,
    left: i64,
    removed: i64,
}

fn looked_at(rows_max: i64) -> i64 {
    (rows_max * LOOKED_AT_PER_ROW).clamp(1_000, LOOKED_AT_MAX)
}

/// Looks at one stretch of the table; true if the walk has come round.
async fn purge_step(
    database: &Database,
    connection: &mut PgConnection,
    walk: &mut Walk,
    (start, age, disposal, rows_max): (Sequence, Duration, Disposal, i64),
) -> Result<bool, sqlx::Error> {
    // The condition is repeated on the statement that removes. The walk goes on after the last row that it
    // looked at, or after the last that it removed, if there are more than it may remove.
    let which = "o.sequence = ANY (ARRAY(SELECT sequence FROM old)) AND o.status = 1";
    let remove = match disposal {
        Disposal::Delete => format!("gone AS (DELETE FROM {{outbox}} o WHERE {which} RETURNING o.sequence)"),
        Disposal::Archive => format!(
            "gone AS (DELETE FROM {{outbox}} o WHERE {which} RETURNING o.*), \
             a AS (INSERT INTO {{archive}} ({ARCHIVED}, status, attempts, cause, sent_at, archived_at) \
                SELECT {ARCHIVED}, status, attempts, cause, sent_at, clock_timestamp() FROM gone {ARCHIVED_TWICE})"
        ),
    };
    let sql = format!(
        "WITH seen AS MATERIALIZED (SELECT sequence, status, sent_at FROM {{outbox}} \
            WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3), \
         old AS MATERIALIZED (SELECT sequence FROM seen \
            WHERE status = 1 AND sent_at <= clock_timestamp() - $4::bigint * interval '1 ms' \
            ORDER BY sequence LIMIT $5), \
         {remove} \
         SELECT (SELECT count(*) FROM seen) AS seen, (SELECT max(sequence) FROM seen) AS last, \
                (SELECT max(sequence) FROM old) AS last_old, (SELECT count(*) FROM gone) AS gone"
    );
    let end = if walk.wrapped { start } else { Sequence::MAX };
    let limit = walk.left.min(5_000);
    let left = rows_max - walk.removed;
    let row = sqlx::query(database.tables().sql(&sql))
        .bind(walk.position)
        .bind(end)
        .bind(limit)
        .bind(millis(age))
        .bind(left)
        .fetch_one(connection)
        .await?;
    let (seen, gone): (i64, i64) = (row.try_get("seen")?, row.try_get("gone")?);
    let last: Option<Sequence> = row.try_get(if gone < left { "last" } else { "last_old" })?;
    walk.position = last.unwrap_or(walk.position);
    walk.left -= seen.max(1);
    walk.removed += gone;
    if seen < limit && gone < left {
        if walk.wrapped || start == 0 {
            walk.position = if walk.wrapped { walk.position } else { 0 };
            return Ok(true);
        }
        (walk.wrapped, walk.position) = (true, 0);
    }
    Ok(false)
}

async fn purge_failed(
    database: &Database,
    connection: &mut PgConnection,
    age: Duration,
    disposal: Disposal,
    rows_max: i64,
) -> Result<u64, sqlx::Error> {
    let which = "o.sequence = ANY (ARRAY(SELECT sequence FROM old)) AND o.status = 2";
    let remove = match disposal {
        Disposal::Delete => format!("gone AS (DELETE FROM {{outbox}} o WHERE {which} RETURNING o.sequence)"),
        Disposal::Archive => format!(
            "gone AS (DELETE FROM {{outbox}} o WHERE {which} RETURNING o.*), \
             a AS (INSERT INTO {{archive}} \
                ({ARCHIVED}, status, attempts, cause, sent_at, failed_at, archived_at) \
                SELECT {ARCHIVED}, status, attempts, cause, sent_at, failed_at, clock_timestamp() \
                FROM gone JOIN old USING (sequence) {ARCHIVED_TWICE})"
        ),
    };
    // A row of the index whose event is not failed any more goes with the others.
    let sql = format!(
        "WITH old AS MATERIALIZED (SELECT sequence, failed_at FROM {{failed}} \
            WHERE failed_at <= clock_timestamp() - $1::bigint * interval '1 ms' \
            ORDER BY failed_at LIMIT $2 FOR UPDATE SKIP LOCKED), \
         {remove}, \
         f AS (DELETE FROM {{failed}} WHERE sequence = ANY (ARRAY(SELECT sequence FROM old))) \
         SELECT count(*) FROM gone"
    );
    let query = sqlx::query_scalar(database.tables().sql(&sql)).bind(millis(age)).bind(rows_max);
    let gone: i64 = query.fetch_one(connection).await?;
    Ok(u64::try_from(gone).unwrap_or_default())
}

/// No index names the status, since every settle would have to touch it. So pending rows are counted in three
/// stretches of at most so many rows each: from where the first of them can be, in the order of the table;
/// what is scheduled for later; and what was scheduled and became due lately, which may lie below the first
/// stretch.
pub(super) async fn quick_stats(database: &Database) -> Result<QuickStats, StoreError> {
    let what = "count what waits";
    let within_bounds = |rows: &str| format!("(SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT $1) n)");
    let sql = format!(
        "WITH low AS MATERIALIZED (SELECT least((SELECT min(floor) FROM {{partitions}}), \
                                               (SELECT min(from_sequence) - 1 FROM {{holds}})) AS sequence, \
                                         clock_timestamp() AS now), \
              looked AS MATERIALIZED (SELECT status, created_at, available_at FROM {{outbox}} \
                        WHERE sequence > (SELECT sequence FROM low) ORDER BY sequence LIMIT $1), \
              later AS MATERIALIZED (SELECT created_at FROM {{outbox}} WHERE available_at IS NOT NULL \
                        AND available_at > (SELECT now FROM low) AND status = 0 LIMIT $1), \
              lately AS MATERIALIZED (SELECT status, sequence, created_at FROM {{outbox}} \
                        WHERE available_at IS NOT NULL AND available_at <= (SELECT now FROM low) \
                        ORDER BY available_at DESC, sequence DESC LIMIT $1), \
              pending AS (SELECT l.created_at FROM looked l, low WHERE l.status = 0 \
                            AND (l.available_at IS NULL OR l.available_at <= low.now) \
                          UNION ALL SELECT created_at FROM later \
                          UNION ALL SELECT l.created_at FROM lately l, low \
                            WHERE l.status = 0 AND l.sequence <= low.sequence) \
         SELECT (SELECT count(*) FROM pending) AS pending, \
                (SELECT count(*) FROM looked) AS looked, (SELECT count(*) FROM later) AS later, \
                (SELECT count(*) FROM lately) AS lately, \
                {} AS failed, {} AS holds, {}, \
                (SELECT (extract(epoch FROM low.now - min(p.created_at)) * 1000)::bigint \
                   FROM pending p, low WHERE isfinite(p.created_at) GROUP BY low.now) AS oldest_ms",
        within_bounds("{failed}"),
        within_bounds("{holds}"),
        members_columns(),
    );
    let connection = &mut *database.connection(what).await?;
    within(what, async {
        let query = sqlx::query(database.tables().sql(&sql)).bind(COUNT_MAX as i64 + 1);
        let row = query.fetch_one(connection).await?;
        let (looked, later) = (count(&row, "looked")?, count(&row, "later")?);
        let is_all = looked.max(later).max(count(&row, "lately")?) <= COUNT_MAX;
        let pending = count(&row, "pending")?;
        let mut stats = QuickStats::default();
        stats.pending =
            if is_all { Count::up_to_max(pending) } else { Count::at_least(pending.min(COUNT_MAX)) };
        stats.oldest_pending_age = oldest(&row)?;
        stats.failed = Count::up_to_max(count(&row, "failed")?);
        stats.holds = Count::up_to_max(count(&row, "holds")?);
        (stats.relays_live, stats.partitions_owned) = members(&row)?;
        Ok(stats)
    })
    .await
}

/// Columns: the relays that live, and the partitions that one of them owns.
fn members_columns() -> String {
    format!(
        "(SELECT count(*) FROM {{relays}} r WHERE {ALIVE}) AS relays, \
         (SELECT count(*) FROM {{partitions}} p JOIN {{relays}} r ON r.relay_id = p.owner WHERE {ALIVE}) AS owned"
    )
}

fn members(row: &PgRow) -> Result<(u32, u32), sqlx::Error> {
    let small = |name: &str| count(row, name).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok((small("relays")?, small("owned")?))
}

fn count(row: &PgRow, name: &str) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or_default())
}

fn oldest(row: &PgRow) -> Result<Option<Duration>, sqlx::Error> {
    let oldest: Option<i64> = row.try_get("oldest_ms")?;
    Ok(oldest.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default())))
}

pub(super) async fn stats(database: &Database) -> Result<StoreStats, StoreError> {
    let what = "count the outbox";
    let sql = format!(
        "SELECT o.*, (SELECT count(*) FROM {{holds}}) AS holds, {} \
         FROM (SELECT count(*) FILTER (WHERE status = 0) AS pending, \
                      count(*) FILTER (WHERE status = 1) AS sent, \
                      count(*) FILTER (WHERE status = 2) AS failed, \
                      (extract(epoch FROM clock_timestamp() - min(created_at) FILTER \
                         (WHERE status = 0 AND isfinite(created_at))) * 1000)::bigint AS oldest_ms \
               FROM {{outbox}}) o",
        members_columns()
    );
    let connection = &mut *database.connection(what).await?;
    within(what, async {
        let row = sqlx::query(database.tables().sql(&sql)).fetch_one(connection).await?;
        let mut stats = StoreStats::default();
        (stats.pending, stats.sent, stats.failed) =
            (count(&row, "pending")?, count(&row, "sent")?, count(&row, "failed")?);
        stats.oldest_pending_age = oldest(&row)?;
        stats.holds = count(&row, "holds")?;
        (stats.relays_live, stats.partitions_owned) = members(&row)?;
        Ok(stats)
    })
    .await
}
