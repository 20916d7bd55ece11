//! Who is alive and who owns what. Every comparison of times is the server's.

use std::{collections::HashSet, time::Duration};

use outbox_core::{
    StoreError,
    store::{Claimed, Epoch, Lease, Membership, Owner, PARTITIONS, Partition, PartitionView, RelayId},
};
use sqlx::{AssertSqlSafe, MySqlConnection};
use uuid::Uuid;

use crate::{
    codec::{json, micros, partition_code, rows},
    database::{Database, begin, commit},
    error::{again, within},
};

/// A row that says it is alive. One that expires later than any beat can have set is a clock's that has
/// stepped back since, and counts as expired.
pub(super) const ALIVE: &str = "(r.expires_at > UTC_TIMESTAMP(6) \
     AND r.expires_at <= UTC_TIMESTAMP(6) + INTERVAL 2 * r.ttl_ms * 1000 MICROSECOND)";

/// A lease, in the rows of a parameter.
pub(super) const LEASE_COLUMNS: &str = "part SMALLINT UNSIGNED, epoch BIGINT";

pub(super) async fn join(database: &Database, ttl: Duration) -> Result<RelayId, StoreError> {
    let what = "join as a relay";
    let relay = Uuid::now_v7();
    let sql = "INSERT INTO {relays} (relay_id, expires_at, ttl_ms) \
               VALUES (?, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, ?)";
    let query = sqlx::query(database.tables().sql(sql)).bind(relay).bind(micros(ttl)).bind(ttl_millis(ttl));
    within(what, query.execute(&mut *database.connection(what).await?)).await?;
    Ok(RelayId(relay))
}

pub(super) async fn beat(database: &Database, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
    let what = "keep the relay alive";
    again(|| async {
        let mut connection = database.connection(what).await?;
        let sql = format!(
            "UPDATE {{relays}} r SET r.expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, r.ttl_ms = ? \
             WHERE r.relay_id = ? AND {ALIVE}"
        );
        let query =
            sqlx::query(database.tables().sql(&sql)).bind(micros(ttl)).bind(ttl_millis(ttl)).bind(relay.0);
        let alive = within(what, query.execute(&mut *connection)).await?.rows_affected() == 1;
        let find = format!("SELECT r.relay_id FROM {{relays}} r WHERE NOT {ALIVE}");
        let dead: Vec<Uuid> =
            within(what, sqlx::query_scalar(database.tables().sql(&find)).fetch_all(&mut *connection))
                .await?;
        let bury = format!("DELETE r FROM {{relays}} r WHERE r.relay_id = ? AND NOT {ALIVE}");
        for relay in dead {
            let query = sqlx::query(database.tables().sql(&bury)).bind(relay);
            within(what, query.execute(&mut *connection)).await?;
        }
        Ok(alive)
    })
    .await
}

pub(super) async fn membership(database: &Database, relay: RelayId) -> Result<Membership, StoreError> {
    let what = "read the membership";
    let mut connection = database.connection(what).await?;
    // Partitions and relays in one statement and so in one snapshot. Bounded: a few rows each.
    let sql = format!(
        "SELECT p.part, p.epoch, CASE WHEN r.relay_id IS NULL THEN 0 WHEN p.owner = ? THEN 1 ELSE 2 END, \
                (SELECT COUNT(*) FROM {{relays}} r WHERE {ALIVE}) \
         FROM {{partitions}} p LEFT JOIN {{relays}} r ON r.relay_id = p.owner AND {ALIVE} ORDER BY p.part"
    );
    let query = sqlx::query_as(database.tables().sql(&sql)).bind(relay.0);
    let rows: Vec<(u8, Epoch, i32, i64)> = within(what, query.fetch_all(&mut *connection)).await?;
    let topics = sqlx::query_scalar(database.tables().sql("SELECT topic FROM {topics} ORDER BY topic"));
    let topics: Vec<Vec<u8>> = within(what, topics.fetch_all(&mut *connection)).await?;
    let live = rows.first().map_or(0, |(.., live)| *live);
    let view = |(part, epoch, owner, _): &(u8, Epoch, i32, i64)| {
        PartitionView::new(
            Partition::from(*part),
            *epoch,
            match owner {
                0 => Owner::Free,
                1 => Owner::Mine,
                _ => Owner::Other,
            },
        )
    };
    Ok(Membership::default()
        .with_relays_live(u32::try_from(live).unwrap_or(u32::MAX))
        .with_partitions(rows.iter().map(view).collect())
        .with_paused_topics(topics.iter().map(|topic| String::from_utf8_lossy(topic).into_owned()).collect()))
}

pub(super) async fn claim(
    database: &Database,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> Result<Vec<Claimed>, StoreError> {
    let what = "claim partitions";
    again(|| async {
        let mut connection = database.connection(what).await?;
        let mut transaction = begin(&mut connection, what).await?;
        let claimed = within(what, claim_locked(database, &mut transaction, relay, seen)).await?;
        commit(transaction, what).await?;
        Ok(claimed)
    })
    .await
}

/// The rows are locked in one order by everybody, and compared after the lock; who is alive is read after
/// that.
async fn claim_locked(
    database: &Database,
    connection: &mut MySqlConnection,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> Result<Vec<Claimed>, sqlx::Error> {
    let leases: Vec<_> =
        seen.iter().map(|(partition, epoch)| Lease { partition: *partition, epoch: *epoch }).collect();
    let sql = format!(
        "SELECT p.part, p.epoch, p.owner FROM {} STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) \
         ON p.part = l.part AND p.epoch = l.epoch FOR UPDATE",
        rows("l", LEASE_COLUMNS)
    );
    let query = sqlx::query_as(database.tables().sql(&sql)).bind(lease_rows(leases));
    let locked: Vec<(u8, Epoch, Option<Uuid>)> = query.fetch_all(&mut *connection).await?;
    let sql = format!("SELECT r.relay_id FROM {{relays}} r WHERE {ALIVE}");
    let alive: Vec<Uuid> =
        sqlx::query_scalar(database.tables().sql(&sql)).fetch_all(&mut *connection).await?;
    let alive: HashSet<Uuid> = alive.into_iter().collect();
    if !alive.contains(&relay.0) {
        return Ok(Vec::new());
    }
    let free = locked.iter().filter(|(.., owner)| owner.is_none_or(|owner| !alive.contains(&owner)));
    let claimed: Vec<Claimed> = free
        .map(|(part, epoch, owner)| {
            Claimed::new(Lease { partition: Partition::from(*part), epoch: epoch + 1 }, owner.is_some())
        })
        .collect();
    let sql = format!(
        "UPDATE {} STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) ON p.part = l.part SET p.owner = ?, p.epoch = l.epoch",
        rows("l", LEASE_COLUMNS)
    );
    let leases = lease_rows(claimed.iter().map(|claimed| claimed.lease));
    sqlx::query(database.tables().sql(&sql)).bind(leases).bind(relay.0).execute(connection).await?;
    Ok(claimed)
}

pub(super) async fn release(database: &Database, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
    let what = "release partitions";
    let sql = format!(
        "UPDATE {} STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) ON p.part = l.part AND p.epoch = l.epoch \
         SET p.owner = NULL WHERE p.owner = ?",
        rows("l", LEASE_COLUMNS)
    );
    let leases = lease_rows(leases.iter().copied());
    again(|| async {
        let query = sqlx::query(database.tables().sql(&sql)).bind(&leases).bind(relay.0);
        within(what, query.execute(&mut *database.connection(what).await?)).await.map(drop)
    })
    .await
}

pub(super) async fn leave(database: &Database, relay: RelayId) -> Result<(), StoreError> {
    let what = "leave as a relay";
    // Released first and in a statement of its own: a relay that is gone and still owns something has died.
    let sql = "SELECT part, epoch FROM {partitions} WHERE owner = ?";
    let query = sqlx::query_as(database.tables().sql(sql)).bind(relay.0);
    let owned: Vec<(u8, Epoch)> =
        within(what, query.fetch_all(&mut *database.connection(what).await?)).await?;
    let lease = |(part, epoch)| Lease { partition: Partition::from(part), epoch };
    let leases: Vec<Lease> = owned.into_iter().map(lease).collect();
    release(database, relay, &leases).await?;
    let sql = AssertSqlSafe(database.tables().text("DELETE FROM {relays} WHERE relay_id = ?"));
    let query = sqlx::query(sql).bind(relay.0);
    within(what, query.execute(&mut *database.connection(what).await?)).await.map(drop)
}

/// Leases as the rows of a parameter, by partition: everybody locks in that order.
pub(super) fn lease_rows(leases: impl IntoIterator<Item = Lease>) -> String {
    let mut leases: Vec<(u8, Epoch)> = leases
        .into_iter()
        .filter(|lease| lease.partition < PARTITIONS)
        .map(|lease| (partition_code(lease.partition), lease.epoch))
        .collect();
    leases.sort_unstable();
    json(leases)
}

fn ttl_millis(ttl: Duration) -> i64 {
    micros(ttl).div_euclid(1000).max(1)
}
