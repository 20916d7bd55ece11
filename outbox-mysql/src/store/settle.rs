//! Recording what became of events, under the leases of their partitions.
//!
//! The usual case, everything sent and nothing held, is one statement of constant text. Everything else is a
//! transaction. Everybody takes locks in this order: rows of partitions, events, holds.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use outbox_core::{
    StoreError, WhenSent,
    store::{
        Epoch, Lease, Outcome, PARTITIONS, Partition, RelayId, Sequence, SettleRequest, Settled, Settlement,
        storable_error,
    },
};
use sqlx::MySqlConnection;

use super::{
    Holds,
    membership::{LEASE_COLUMNS, lease_rows},
};
use crate::{
    codec::{NOW_MICROS, ROWS_MAX, json, partition_code, rows},
    database::{Database, begin, commit, open},
    error::{CALL_TIMEOUT, again, silent, store_error, within},
    schema::ARCHIVED,
};

pub(super) async fn begin_attempt(
    database: &Database,
    relay: RelayId,
    lease: Lease,
    sequence: Sequence,
    attempts: u32,
) -> Result<bool, StoreError> {
    let what = "record an attempt";
    let part = partition_code(lease.partition);
    let sql = "UPDATE {partitions} p FORCE INDEX (PRIMARY) STRAIGHT_JOIN {outbox} o FORCE INDEX (PRIMARY) ON o.partition = p.part SET o.attempts = ? \
               WHERE p.part = ? AND p.owner = ? AND p.epoch = ? AND o.sequence = ? AND o.status = 0";
    let changed = again(|| async {
        let query = sqlx::query(database.tables().sql(sql)).bind(attempts_code(attempts)).bind(part);
        let query = query.bind(relay.0).bind(lease.epoch).bind(sequence);
        within(what, query.execute(&mut *database.connection(what).await?)).await
    });
    if changed.await?.rows_affected() > 0 {
        return Ok(true);
    }
    // Fenced, or not pending any more.
    let sql = "SELECT EXISTS (SELECT 1 FROM {partitions} WHERE part = ? AND owner = ? AND epoch = ?)";
    let query = sqlx::query_scalar(database.tables().sql(sql)).bind(part).bind(relay.0).bind(lease.epoch);
    within(what, query.fetch_one(&mut *database.connection(what).await?)).await
}

pub(super) async fn settle(database: &Database, request: &SettleRequest) -> Result<Settled, StoreError> {
    if request.partitions().is_empty() {
        return Ok(Settled::default());
    }
    let mut slot = database.settling.lock().await;
    // Taken out while it works: if this future is dropped, so is the connection with whatever it was doing.
    let mut connection = match slot.take() {
        Some(connection) => connection,
        None => open(&database.pool).await?,
    };
    let (settled, connection) = match tokio::time::timeout(CALL_TIMEOUT, async {
        // Not by `again`, whose closure cannot lend the connection.
        for _ in 0..3 {
            match settle_on(database, &mut connection, request).await {
                Err(error) if error.kind() == outbox_core::StoreErrorKind::Conflict => {}
                other => return (other, connection),
            }
        }
        (settle_on(database, &mut connection, request).await, connection)
    })
    .await
    {
        Ok((result, connection)) => (result?, connection),
        Err(_) => return Err(silent("settle")),
    };
    *slot = Some(connection);
    Ok(settled)
}

async fn settle_on(
    database: &Database,
    connection: &mut MySqlConnection,
    request: &SettleRequest,
) -> Result<Settled, StoreError> {
    if let Some(attempts) = all_sent(request)
        && settle_sent(database, connection, request, attempts).await?
    {
        return Ok(Settled::default());
    }
    let mut transaction = begin(connection, "settle").await?;
    let settled = Settling { database, connection: &mut transaction, now: 0 }.run(request).await;
    let settled = settled.map_err(|error| store_error("settle", error))?;
    commit(transaction, "settle").await?;
    Ok(settled)
}

/// The number of attempts, if everything was sent after the same number of them, nothing else is asked (not
/// even of a lease that no event needs), and the rows stay in their table or go.
fn all_sent(request: &SettleRequest) -> Option<u32> {
    let attempts = request.settlements.first()?.attempts;
    let alike = |s: &Settlement| s.outcome == Outcome::Sent && s.attempts == attempts;
    let named = |lease: &Lease| request.settlements.iter().any(|s| s.partition == lease.partition);
    let plain = request.unholds.is_empty()
        && request.when_sent != WhenSent::Archive
        && request.leases.iter().all(named);
    (plain && request.settlements.iter().all(alike)).then_some(attempts)
}

/// Settles sent events in one statement; true if it found every one of them pending, under its lease and
/// without a hold. What it did not find is left to the general way, which finds what it did find done.
///
/// A hold that names an event in flight was there before the event was read, so that looking for one in this
/// statement is enough.
async fn settle_sent(
    database: &Database,
    connection: &mut MySqlConnection,
    request: &SettleRequest,
    attempts: u32,
) -> Result<bool, StoreError> {
    let (base, sent) = sent_rows(request);
    let sql = sent_sql(request.when_sent);
    let query = sqlx::query(database.tables().sql(&sql)).bind(base).bind(sent).bind(request.relay.0);
    let query = match request.when_sent {
        WhenSent::Keep | WhenSent::Archive => query.bind(attempts_code(attempts)),
        WhenSent::Delete => query,
    };
    let done = query.execute(connection).await.map_err(|error| store_error("settle sent events", error))?;
    Ok(done.rows_affected() == u64::try_from(request.settlements.len()).unwrap_or(u64::MAX))
}

/// The events as the parameters of [`sent_sql`]: the lowest sequence, and for each lease how far its events
/// are above it.
fn sent_rows(request: &SettleRequest) -> (Sequence, String) {
    let leases = leases(request);
    let base = request.settlements.iter().map(|settlement| settlement.sequence).min().unwrap_or_default();
    // In the order of the lease rows, which everybody locks in that order.
    let mut sent: BTreeMap<(u8, Epoch), Vec<Sequence>> = BTreeMap::new();
    for settlement in &request.settlements {
        let Some(epoch) = leases.get(&settlement.partition) else { continue };
        let lease = (partition_code(settlement.partition), *epoch);
        sent.entry(lease).or_default().push(settlement.sequence - base);
    }
    sent.values_mut().for_each(|above| above.sort_unstable());
    let sent: Vec<_> = sent.into_iter().map(|((part, epoch), above)| (part, epoch, above)).collect();
    (base, json(&sent))
}

/// Parameters: a sequence; the leases, each with how far its events are above that; the relay, and the
/// attempts where rows are kept. The rows of partitions are locked by it, as those of every table that an
/// update or a delete of several tables reads.
///
/// So written, a thousand events are a few kilobytes, whatever their sequences: sqlx 0.9.0 leaves TCP's delay
/// on, and a message of more than the 16 KiB of a TLS record would wait 40 ms for it.
///
/// That there is no hold is asked of a column that may be empty: MariaDB 10.11 takes `IS NULL` of any other
/// for impossible when it explains the statement a second time, outer join or not.
pub(crate) fn sent_sql(when: WhenSent) -> String {
    let from = format!(
        "(SELECT j.part, j.epoch, ? + j.above AS sequence FROM JSON_TABLE(?, '$[*]' COLUMNS ( \
             part SMALLINT UNSIGNED PATH '$[0]', epoch BIGINT PATH '$[1]', \
             NESTED PATH '$[2][*]' COLUMNS (above BIGINT PATH '$'))) j LIMIT {ROWS_MAX}) s \
         STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) ON p.part = s.part AND p.epoch = s.epoch AND p.owner = ? \
         STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence AND o.partition = p.part AND o.status = 0 \
         LEFT JOIN {{holds}} h FORCE INDEX (sequence) ON h.sequence = s.sequence"
    );
    match when {
        WhenSent::Delete => format!("DELETE o FROM {from} WHERE h.sequence IS NULL"),
        WhenSent::Keep | WhenSent::Archive => format!(
            "UPDATE {from} SET o.status = 1, o.attempts = ?, o.sent_at = UTC_TIMESTAMP(6) WHERE h.sequence IS NULL"
        ),
    }
}

/// The general way.
struct Settling<'a> {
    database: &'a Database,
    connection: &'a mut MySqlConnection,
    now: i64,
}

impl Settling<'_> {
    async fn run(&mut self, request: &SettleRequest) -> Result<Settled, sqlx::Error> {
        let held = self.lock_leases(request).await?;
        let fenced = request.fenced(|lease| held.contains(&lease));
        let mut mine = request.settlements_in_order(&fenced);
        let pending = self.lock_events(&mine).await?;
        mine.retain(|settlement| pending.contains(&settlement.sequence));
        self.sent(&mine, request.when_sent).await?;
        self.others(&mine).await?;

        let unholds: Vec<_> = request.unholds_of(&fenced).collect();
        let keys = mine.iter().map(|settlement| (settlement.partition, &settlement.key));
        let keys = keys.chain(unholds.iter().map(|unhold| (unhold.partition, &unhold.key)));
        let keys = keys.map(|(partition, key)| (partition_code(partition), key.clone()));
        let mut holds = Holds::read(self.database, self.connection, keys, self.now).await?;
        mine.iter().for_each(|settlement| holds.settle(settlement));
        let waits = self.waiting(unholds.iter().filter_map(|unhold| unhold.sequence).collect()).await?;
        unholds.iter().for_each(|unhold| holds.unhold(unhold, &waits));
        holds.write(self.database, self.connection).await?;

        Ok(Settled::default().with_fenced(fenced))
    }

    /// Locks the rows of the partitions whose lease is held, and returns the leases.
    async fn lock_leases(&mut self, request: &SettleRequest) -> Result<Vec<Lease>, sqlx::Error> {
        let sql = format!(
            "SELECT p.part, p.epoch, {NOW_MICROS} FROM {} STRAIGHT_JOIN {{partitions}} p FORCE INDEX (PRIMARY) \
             ON p.part = l.part AND p.epoch = l.epoch WHERE p.owner = ? FOR UPDATE",
            rows("l", LEASE_COLUMNS)
        );
        let leases = leases(request).into_iter().map(|(partition, epoch)| Lease { partition, epoch });
        let query = sqlx::query_as(self.database.tables().sql(&sql)).bind(lease_rows(leases));
        let rows: Vec<(u8, Epoch, i64)> =
            query.bind(request.relay.0).fetch_all(&mut *self.connection).await?;
        self.now = rows.first().map_or(0, |(_, _, now)| *now);
        let lease = |(part, epoch, _)| Lease { partition: Partition::from(part), epoch };
        Ok(rows.into_iter().map(lease).collect())
    }

    /// Locks the events that are still pending, and returns their sequences.
    async fn lock_events(&mut self, mine: &[&Settlement]) -> Result<BTreeSet<Sequence>, sqlx::Error> {
        if mine.is_empty() {
            return Ok(BTreeSet::new());
        }
        let sql = format!(
            "SELECT o.sequence FROM {} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) \
             ON o.sequence = s.sequence AND o.partition = s.part WHERE o.status = 0 FOR UPDATE",
            rows("s", "sequence BIGINT, part SMALLINT UNSIGNED")
        );
        let events: Vec<_> = mine.iter().map(|s| (s.sequence, partition_code(s.partition))).collect();
        let query = sqlx::query_scalar(self.database.tables().sql(&sql)).bind(json(events));
        Ok(query.fetch_all(&mut *self.connection).await?.into_iter().collect())
    }

    async fn sent(&mut self, mine: &[&Settlement], when: WhenSent) -> Result<(), sqlx::Error> {
        let sent: Vec<(Sequence, i32)> = mine
            .iter()
            .filter(|settlement| settlement.outcome == Outcome::Sent)
            .map(|settlement| (settlement.sequence, attempts_code(settlement.attempts)))
            .collect();
        if sent.is_empty() {
            return Ok(());
        }
        let sent = json(sent);
        let from = rows("s", "sequence BIGINT, attempts INT");
        let join =
            format!("{from} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence");
        let mut statements = Vec::new();
        if when != WhenSent::Delete {
            statements.push(format!(
                "UPDATE {join} SET o.status = 1, o.attempts = s.attempts, o.sent_at = UTC_TIMESTAMP(6)"
            ));
        }
        if when == WhenSent::Archive {
            let columns = ARCHIVED.replace(", ", ", o.");
            statements.push(format!("REPLACE INTO {{archive}} ({ARCHIVED}) SELECT o.{columns} FROM {join}"));
        }
        if when != WhenSent::Keep {
            statements.push(format!("DELETE o FROM {join}"));
        }
        for sql in statements {
            let query = sqlx::query(self.database.tables().sql(&sql)).bind(&sent);
            query.execute(&mut *self.connection).await?;
        }
        Ok(())
    }

    /// Retried and failed events.
    async fn others(&mut self, mine: &[&Settlement]) -> Result<(), sqlx::Error> {
        let mut others: Vec<(Sequence, i32, Cow<'_, str>, Option<&str>)> = Vec::new();
        for settlement in mine {
            let (error, cause) = match &settlement.outcome {
                Outcome::Sent => continue,
                Outcome::Retry { error, .. } => (error, None),
                Outcome::Failed { error, cause, .. } => (error, Some(cause.as_str())),
            };
            // The server refuses what is longer than its column.
            let error = storable_error(error);
            others.push((settlement.sequence, attempts_code(settlement.attempts), error, cause));
        }
        if others.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE {} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence \
             SET o.status = IF(s.cause IS NULL, 0, 2), o.attempts = s.attempts, o.last_error = s.error, \
                 o.cause = s.cause, o.failed_at = IF(s.cause IS NULL, NULL, UTC_TIMESTAMP(6))",
            rows("s", "sequence BIGINT, attempts INT, error TEXT, cause VARCHAR(16)")
        );
        let query = sqlx::query(self.database.tables().sql(&sql)).bind(json(others));
        query.execute(&mut *self.connection).await.map(drop)
    }

    /// Which of these events are pending and due.
    async fn waiting(&mut self, sequences: Vec<Sequence>) -> Result<BTreeSet<Sequence>, sqlx::Error> {
        if sequences.is_empty() {
            return Ok(BTreeSet::new());
        }
        let sql = format!(
            "SELECT o.sequence FROM {} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence \
             WHERE o.status = 0 AND (o.available_at IS NULL OR o.available_at <= UTC_TIMESTAMP(6)) FOR UPDATE",
            rows("s", "sequence BIGINT")
        );
        let sequences: Vec<_> = sequences.into_iter().map(|sequence| (sequence,)).collect();
        let query = sqlx::query_scalar(self.database.tables().sql(&sql)).bind(json(sequences));
        Ok(query.fetch_all(&mut *self.connection).await?.into_iter().collect())
    }
}

fn leases(request: &SettleRequest) -> BTreeMap<Partition, Epoch> {
    let leases = request.leases.iter().filter(|lease| lease.partition < PARTITIONS);
    leases.map(|lease| (lease.partition, lease.epoch)).collect()
}

fn attempts_code(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So much fits into one record of TLS; what does not waits 40 ms. The rest is left to what stands around
    /// the rows.
    const TLS_RECORD_BYTES: usize = 16 * 1024;

    #[test]
    fn a_settle_of_the_largest_size_fits_into_one_tls_record() {
        let count = i64::try_from(crate::store::SETTLE_EVENTS_MAX).unwrap();
        let partition = |n: i64| Partition::try_from(n % i64::from(PARTITIONS)).unwrap();
        let settlements = (0..count).map(|n| {
            // Far along, and apart as among the events of many other relays.
            let sequence = (1 << 52) + n * 10_000;
            let key = outbox_core::AggregateKey::new("order", "1");
            Settlement::new(sequence, partition(n), key, 1, Outcome::Sent)
        });
        let leases = (0..i64::from(PARTITIONS)).map(|n| Lease { partition: partition(n), epoch: 1 << 32 });
        let request = SettleRequest::new(RelayId(uuid::Uuid::nil()), leases.collect())
            .with_settlements(settlements.collect());
        let (base, rows) = sent_rows(&request);
        assert_eq!(base, 1 << 52);
        let read: Vec<(u8, Epoch, Vec<Sequence>)> = serde_json::from_str(&rows).unwrap();
        assert_eq!(read.iter().map(|(_, _, above)| above.len()).sum::<usize>(), request.settlements.len());
        assert!(rows.len() < TLS_RECORD_BYTES - 1_024, "{} bytes", rows.len());
    }
}
