//! Relays and the partition that they own.

use std::time::Duration;

use outbox_core::{
    StoreError,
    store::{Claimed, Epoch, Lease, Membership, Owner, Partition, PartitionView, RelayId},
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use crate::{SqliteConfig, codec::to_micros, database::Database, error::Context};

/// A relay's row `r` is alive. One whose expiry is further ahead than it can have been set is left over from
/// before the clock was set back.
const ALIVE: &str = "r.expires_at > {now} AND r.expires_at <= {now} + 2 * r.ttl";

pub(super) async fn join(database: &Database, ttl: Duration) -> Result<RelayId, StoreError> {
    let relay = RelayId(Uuid::now_v7());
    database
        .write("enter a relay", move |config, transaction| {
            let sql =
                config.sql("INSERT INTO {p}_relays (relay_id, expires_at, ttl) VALUES (?1, {now} + ?2, ?2)");
            transaction
                .execute(&sql, params![relay.0.to_string(), ttl_micros(ttl)])
                .doing("enter a relay")?;
            Ok(relay)
        })
        .await
}

pub(super) async fn beat(database: &Database, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
    const WHAT: &str = "keep a relay alive";
    database
        .write(WHAT, move |config, transaction| {
            let bury = format!("DELETE FROM {{p}}_relays AS r WHERE NOT ({ALIVE})");
            transaction.execute(&config.sql(&bury), []).doing(WHAT)?;
            let sql =
                config.sql("UPDATE {p}_relays SET expires_at = {now} + ?2, ttl = ?2 WHERE relay_id = ?1");
            let alive =
                transaction.execute(&sql, params![relay.0.to_string(), ttl_micros(ttl)]).doing(WHAT)?;
            Ok(alive == 1)
        })
        .await
}

pub(super) async fn membership(database: &Database, relay: RelayId) -> Result<Membership, StoreError> {
    database.read("read the membership", move |config, connection| view(config, connection, relay)).await
}

pub(super) async fn claim(
    database: &Database,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> Result<Vec<Claimed>, StoreError> {
    let seen = seen.to_vec();
    database
        .write("claim a partition", move |config, transaction| {
            take(config, transaction, relay, &seen).doing("claim a partition")
        })
        .await
}

pub(super) async fn release(database: &Database, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
    const WHAT: &str = "release a partition";
    let leases = leases.to_vec();
    database
        .write(WHAT, move |config, transaction| {
            let sql = config.sql(
                "UPDATE {p}_partitions SET owner = NULL WHERE partition = ?1 AND epoch = ?2 AND owner = ?3",
            );
            for lease in leases {
                let parameters = params![lease.partition, lease.epoch, relay.0.to_string()];
                transaction.execute(&sql, parameters).doing(WHAT)?;
            }
            Ok(())
        })
        .await
}

pub(super) async fn leave(database: &Database, relay: RelayId) -> Result<(), StoreError> {
    const WHAT: &str = "remove a relay";
    database
        .write(WHAT, move |config, transaction| {
            for sql in [
                "UPDATE {p}_partitions SET owner = NULL WHERE owner = ?1",
                "DELETE FROM {p}_relays WHERE relay_id = ?1",
            ] {
                transaction.execute(&config.sql(sql), [relay.0.to_string()]).doing(WHAT)?;
            }
            Ok(())
        })
        .await
}

/// A time to live, such that twice of it is still a number.
fn ttl_micros(ttl: Duration) -> i64 {
    to_micros(ttl).min(i64::MAX / 8)
}

fn view(config: &SqliteConfig, connection: &Connection, relay: RelayId) -> rusqlite::Result<Membership> {
    let me = relay.0.to_string();
    let live = format!("SELECT count(*) FROM {{p}}_relays r WHERE {ALIVE}");
    let relays_live = connection.query_row(&config.sql(&live), [], |row| row.get(0))?;
    let view = format!(
        "SELECT partition, epoch, EXISTS(SELECT 1 FROM {{p}}_relays r WHERE r.relay_id = p.owner AND {ALIVE}), \
         p.owner IS ?1 FROM {{p}}_partitions p ORDER BY partition"
    );
    let mut statement = connection.prepare_cached(&config.sql(&view))?;
    let partitions = statement.query_map([me], |row| {
        let owner = match (row.get(2)?, row.get(3)?) {
            (false, _) => Owner::Free,
            (true, true) => Owner::Mine,
            (true, false) => Owner::Other,
        };
        Ok(PartitionView::new(row.get(0)?, row.get(1)?, owner))
    })?;
    let partitions = partitions.collect::<rusqlite::Result<_>>()?;
    Ok(Membership::default()
        .with_relays_live(relays_live)
        .with_partitions(partitions)
        .with_paused_topics(paused_topics(config, connection)?))
}

/// The topics that are paused.
pub(crate) fn paused_topics(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        connection.prepare_cached(&config.sql("SELECT topic FROM {p}_topics ORDER BY topic"))?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn take(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    relay: RelayId,
    seen: &[(Partition, Epoch)],
) -> rusqlite::Result<Vec<Claimed>> {
    let me = relay.0.to_string();
    let alive = format!("SELECT EXISTS(SELECT 1 FROM {{p}}_relays r WHERE r.relay_id = ?1 AND {ALIVE})");
    if !transaction.query_row(&config.sql(&alive), [&me], |row| row.get(0))? {
        return Ok(Vec::new());
    }
    let free = format!(
        "SELECT p.owner IS NOT NULL FROM {{p}}_partitions p WHERE p.partition = ?1 AND p.epoch = ?2 AND \
         NOT EXISTS (SELECT 1 FROM {{p}}_relays r WHERE r.relay_id = p.owner AND {ALIVE})"
    );
    let (free, take) = (
        config.sql(&free),
        config.sql(
            "UPDATE {p}_partitions SET owner = ?2, epoch = epoch + 1 WHERE partition = ?1 RETURNING epoch",
        ),
    );
    let mut claimed = Vec::new();
    for &(partition, epoch) in seen {
        let found = transaction.query_row(&free, params![partition, epoch], |row| row.get(0)).optional()?;
        if let Some(owner_died) = found {
            let epoch = transaction.query_row(&take, params![partition, me], |row| row.get(0))?;
            claimed.push(Claimed::new(Lease { partition, epoch }, owner_died));
        }
    }
    Ok(claimed)
}

/// Live relays, and the partitions that they own.
pub(super) fn members(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<(u32, u32)> {
    let members = view(config, connection, RelayId(Uuid::nil()))?;
    let owned = members.partitions.iter().filter(|view| view.owner != Owner::Free).count();
    Ok((members.relays_live, u32::try_from(owned).unwrap_or(u32::MAX)))
}
