//! The relay's side: [`SqliteStore`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox_core::{
    Claimed, Disposal, Epoch, Finding, Lease, Membership, OutboxReader, OutboxStore, Owner, Partition,
    PartitionView, PurgeRequest, Purged, RelayId, Sequence, SettleRequest, Settled, StoreCapabilities,
    StoreError, StoreStats,
    store::{COUNT_MAX, Count, QuickStats},
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use crate::{
    SqliteConfig, SqliteOutbox,
    connection::Worker,
    error::Context,
    reader::SqliteReader,
    row::{micros, to_micros},
    schema, settle,
};

/// A relay's row `r` is alive. One whose expiry is further ahead than it can have been set is left over from before the
/// clock was set back.
const ALIVE: &str = "r.expires_at > {now} AND r.expires_at <= {now} + 2 * r.ttl";

/// How many of the oldest pending events are asked for their age: sequences ascend nearly as times do.
const OLDEST_OF: u32 = 1_000;

/// The outbox of one database file, as relays and operators use it. Cheap to clone.
///
/// It has two connections, each on a thread of its own: one that writes, one that reads; each reader has another.
/// They are opened when they are first used, and again after an error.
#[derive(Debug, Clone)]
pub struct SqliteStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: SqliteConfig,
    writer: Worker,
    reader: Worker,
}

impl SqliteStore {
    /// The outbox of this configuration. The file is opened by the first call that needs it, so that
    /// [`check`](OutboxStore::check) can say what is wrong with it.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn open(config: SqliteConfig) -> Result<Self, StoreError> {
        let writer = Worker::spawn(&config, "outbox-sqlite-write")?;
        let reader = Worker::spawn(&config, "outbox-sqlite-read")?;
        Ok(Self(Arc::new(Shared { config, writer, reader })))
    }

    /// The configuration.
    pub fn config(&self) -> &SqliteConfig {
        &self.0.config
    }

    /// The writer's side of the same outbox.
    pub fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox::new(&self.0.config)
    }

    /// Makes the tables: [`migrate`](crate::migrate) on a thread of its own.
    ///
    /// # Errors
    /// As [`migrate`](crate::migrate).
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // The worker's own connection would insist on a file that is there already.
        let config = self.0.config.clone();
        Worker::spawn(&config, "outbox-sqlite-migrate")?.detached(move || schema::migrate(&config)).await
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&SqliteConfig, &Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let config = self.0.config.clone();
        self.0.writer.write(what, move |transaction| work(&config, transaction)).await
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&SqliteConfig, &Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let config = self.0.config.clone();
        self.0
            .reader
            .run(move |connection| {
                // A transaction that only reads, so that all its statements see the same rows.
                let transaction = connection.transaction().doing(what)?;
                work(&config, &transaction).doing(what)
            })
            .await
    }
}

#[async_trait]
impl OutboxStore for SqliteStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new(1)
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        let config = self.0.config.clone();
        // On its own connection: the worker's may be to a file that has been replaced since.
        self.0.reader.detached(move || schema::check(&config)).await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        let relay = RelayId(Uuid::now_v7());
        self.write("enter a relay", move |config, transaction| {
            let sql =
                config.sql("INSERT INTO {p}_relays (relay_id, expires_at, ttl) VALUES (?1, {now} + ?2, ?2)");
            transaction
                .execute(&sql, params![relay.0.to_string(), ttl_micros(ttl)])
                .doing("enter a relay")?;
            Ok(relay)
        })
        .await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        const WHAT: &str = "keep a relay alive";
        self.write(WHAT, move |config, transaction| {
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

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        self.read("read the membership", move |config, connection| membership(config, connection, relay))
            .await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        let seen = seen.to_vec();
        self.write("claim a partition", move |config, transaction| {
            claim(config, transaction, relay, &seen).doing("claim a partition")
        })
        .await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        const WHAT: &str = "release a partition";
        let leases = leases.to_vec();
        self.write(WHAT, move |config, transaction| {
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

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        const WHAT: &str = "remove a relay";
        self.write(WHAT, move |config, transaction| {
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

    async fn reader(&self, _relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        Ok(Box::new(SqliteReader::new(&self.0.config)?))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        const WHAT: &str = "record an attempt";
        self.write(WHAT, move |config, transaction| {
            if !settle::holds_lease(config, transaction, relay, lease).doing(WHAT)? {
                return Ok(false);
            }
            let sql = config.sql("UPDATE {p} SET attempts = ?2 WHERE sequence = ?1 AND status = 0");
            transaction.execute(&sql, params![sequence, attempts]).doing(WHAT)?;
            Ok(true)
        })
        .await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        let request = request.clone();
        self.write("settle events", move |config, transaction| {
            settle::settle(config, transaction, &request).doing("settle events")
        })
        .await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        self.write("purge events", move |config, transaction| {
            purge(config, transaction, request).doing("purge events")
        })
        .await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        self.read("count what waits", quick_stats).await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.read("count events", stats).await
    }
}

/// A time to live, such that twice of it is still a number.
fn ttl_micros(ttl: Duration) -> i64 {
    to_micros(ttl).min(i64::MAX / 8)
}

fn membership(
    config: &SqliteConfig,
    connection: &Connection,
    relay: RelayId,
) -> rusqlite::Result<Membership> {
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
        Ok(PartitionView { partition: row.get(0)?, epoch: row.get(1)?, owner })
    })?;
    let partitions = partitions.collect::<rusqlite::Result<_>>()?;
    Ok(Membership { relays_live, partitions, paused_topics: paused_topics(config, connection)? })
}

/// The topics that are paused.
pub(crate) fn paused_topics(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        connection.prepare_cached(&config.sql("SELECT topic FROM {p}_topics ORDER BY topic"))?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn claim(
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
            claimed.push(Claimed { lease: Lease { partition, epoch }, owner_died });
        }
    }
    Ok(claimed)
}

fn purge(
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
                settle::copy_to_archive(config, transaction, sequence)?;
            }
            let delete = format!("DELETE FROM {{p}} WHERE sequence = ?1 AND status = {status}");
            removed += transaction.prepare_cached(&config.sql(&delete))?.execute([sequence])?;
        }
        Ok(removed as u64)
    };
    Ok(Purged { sent: remove(1, "sent_at", request.sent)?, failed: remove(2, "failed_at", request.failed)? })
}

fn quick_stats(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<QuickStats> {
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

/// Live relays, and the partitions that they own.
fn members(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<(u32, u32)> {
    let members = membership(config, connection, RelayId(Uuid::nil()))?;
    let owned = members.partitions.iter().filter(|view| view.owner != Owner::Free).count();
    Ok((members.relays_live, u32::try_from(owned).unwrap_or(u32::MAX)))
}

fn stats(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<StoreStats> {
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
