//! Who is alive and who owns what. Every comparison of times is the server's.

use std::time::Duration;

use outbox_core::{
    StoreError,
    store::{Claimed, Epoch, Lease, Membership, Owner, Partition, PartitionView, RelayId},
};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    codec::{lease_arrays, millis, partition_code, partition_of},
    database::Database,
    error::within,
};

/// A row that says it is alive. One that expires later than any beat can have set is a clock's that has
/// stepped back since, and counts as expired.
pub(super) const ALIVE: &str =
    "r.expires_at > clock_timestamp() AND r.expires_at <= clock_timestamp() + 2 * r.lease_ttl";

pub(super) async fn join(database: &Database, ttl: Duration) -> Result<RelayId, StoreError> {
    let what = "join as a relay";
    let relay = Uuid::now_v7();
    let sql = "INSERT INTO {relays} (relay_id, expires_at, lease_ttl) SELECT $1, clock_timestamp() + ttl, ttl \
               FROM (SELECT $2::bigint * interval '1 ms' AS ttl) t";
    let query = sqlx::query(database.tables().sql(sql)).bind(relay).bind(millis(ttl));
    within(what, query.execute(&mut *database.connection(what).await?)).await?;
    Ok(RelayId(relay))
}

pub(super) async fn beat(database: &Database, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
    let what = "keep the relay alive";
    let mut connection = database.connection(what).await?;
    let sql = format!(
        "UPDATE {{relays}} r SET expires_at = clock_timestamp() + $2::bigint * interval '1 ms', \
         lease_ttl = $2::bigint * interval '1 ms' WHERE r.relay_id = $1 AND {ALIVE}"
    );
    let query = sqlx::query(database.tables().sql(&sql)).bind(relay.0).bind(millis(ttl));
    let alive = within(what, query.execute(&mut *connection)).await?.rows_affected() == 1;
    // Skipping rows that are locked, since the transaction that holds the lock is removing or prolonging that
    // row.
    let bury = format!(
        "DELETE FROM {{relays}} WHERE relay_id IN \
         (SELECT r.relay_id FROM {{relays}} r WHERE NOT ({ALIVE}) FOR UPDATE SKIP LOCKED)"
    );
    within(what, sqlx::query(database.tables().sql(&bury)).execute(&mut *connection)).await?;
    Ok(alive)
}

pub(super) async fn membership(database: &Database, relay: RelayId) -> Result<Membership, StoreError> {
    let what = "read the membership";
    let sql = format!(
        "WITH alive AS MATERIALIZED (SELECT r.relay_id FROM {{relays}} r WHERE {ALIVE}) \
         SELECT (SELECT count(*) FROM alive) AS live, \
                ARRAY(SELECT topic FROM {{topics}} ORDER BY topic) AS topics, \
                array_agg(p.partition ORDER BY p.partition) AS parts, \
                array_agg(p.epoch ORDER BY p.partition) AS epochs, \
                array_agg(CASE WHEN p.owner IS NULL OR p.owner NOT IN (SELECT relay_id FROM alive) THEN 0 \
                               WHEN p.owner = $1 THEN 1 ELSE 2 END ORDER BY p.partition) AS owners \
         FROM {{partitions}} p"
    );
    let query = sqlx::query(database.tables().sql(&sql)).bind(relay.0);
    let connection = &mut *database.connection(what).await?;
    within(what, async {
        let row = query.fetch_one(connection).await?;
        let parts: Option<Vec<i16>> = row.try_get("parts")?;
        let epochs: Option<Vec<Epoch>> = row.try_get("epochs")?;
        let owners: Option<Vec<i32>> = row.try_get("owners")?;
        let parts = parts.unwrap_or_default().into_iter().zip(epochs.unwrap_or_default());
        let partitions = parts.zip(owners.unwrap_or_default()).map(|((partition, epoch), owner)| {
            PartitionView::new(
                partition_of(partition),
                epoch,
                match owner {
                    0 => Owner::Free,
                    1 => Owner::Mine,
                    _ => Owner::Other,
                },
            )
        });
        Ok(Membership::default()
            .with_relays_live(u32::try_from(row.try_get::<i64, _>("live")?).unwrap_or(u32::MAX))
            .with_partitions(partitions.collect())
            .with_paused_topics(row.try_get("topics")?))
    })
    .await
}

pub(super) async fn claim(
    database: &Database,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> Result<Vec<Claimed>, StoreError> {
    let what = "claim partitions";
    let parts: Vec<i16> = seen.iter().map(|(partition, _)| partition_code(*partition)).collect();
    let epochs: Vec<Epoch> = seen.iter().map(|(_, epoch)| *epoch).collect();
    // The rows are locked in one order by everybody, so that two claims cannot deadlock; after the wait for a
    // lock the epoch is compared again, with the newest version of the row.
    let sql = format!(
        "WITH alive AS MATERIALIZED (SELECT r.relay_id FROM {{relays}} r WHERE {ALIVE}), \
         free AS MATERIALIZED ( \
            SELECT p.partition, p.owner IS NOT NULL AS died \
            FROM {{partitions}} p \
            JOIN unnest($2::smallint[], $3::bigint[]) s (partition, epoch) ON p.partition = s.partition \
            WHERE p.epoch = s.epoch AND $1 IN (SELECT relay_id FROM alive) \
              AND (p.owner IS NULL OR p.owner NOT IN (SELECT relay_id FROM alive)) \
            ORDER BY p.partition FOR NO KEY UPDATE OF p) \
         UPDATE {{partitions}} p SET owner = $1, epoch = p.epoch + 1 FROM free \
         WHERE p.partition = free.partition RETURNING p.partition, p.epoch, free.died"
    );
    let query = sqlx::query_as::<_, (i16, Epoch, bool)>(database.tables().sql(&sql))
        .bind(relay.0)
        .bind(parts)
        .bind(epochs);
    let rows = within(what, query.fetch_all(&mut *database.connection(what).await?)).await?;
    let claimed = rows.into_iter().map(|(partition, epoch, owner_died)| {
        Claimed::new(Lease { partition: partition_of(partition), epoch }, owner_died)
    });
    Ok(claimed.collect())
}

pub(super) async fn release(database: &Database, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
    let what = "release partitions";
    let (parts, epochs) = lease_arrays(leases);
    let sql = "WITH mine AS MATERIALIZED ( \
                  SELECT p.partition FROM {partitions} p \
                  JOIN unnest($2::smallint[], $3::bigint[]) s (partition, epoch) ON p.partition = s.partition \
                  WHERE p.owner = $1 AND p.epoch = s.epoch ORDER BY p.partition FOR NO KEY UPDATE OF p) \
               UPDATE {partitions} p SET owner = NULL FROM mine WHERE p.partition = mine.partition";
    let query = sqlx::query(database.tables().sql(sql)).bind(relay.0).bind(parts).bind(epochs);
    within(what, query.execute(&mut *database.connection(what).await?)).await.map(drop)
}

pub(super) async fn leave(database: &Database, relay: RelayId) -> Result<(), StoreError> {
    let what = "leave as a relay";
    // Released first and in a statement of its own: a relay that is gone and still owns something has died.
    let sql = "WITH mine AS MATERIALIZED (SELECT partition FROM {partitions} WHERE owner = $1 \
                  ORDER BY partition FOR NO KEY UPDATE) \
               UPDATE {partitions} p SET owner = NULL FROM mine WHERE p.partition = mine.partition";
    let mut connection = database.connection(what).await?;
    let query = sqlx::query(database.tables().sql(sql)).bind(relay.0);
    within(what, query.execute(&mut *connection)).await?;
    let query = sqlx::query(database.tables().sql("DELETE FROM {relays} WHERE relay_id = $1")).bind(relay.0);
    within(what, query.execute(&mut *connection)).await.map(drop)
}
