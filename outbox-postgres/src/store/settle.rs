//! Recording what became of events, under the leases of their partitions.
//!
//! The usual case, everything sent and nothing held, is one statement. Whatever touches a hold is a
//! transaction that locks the lease rows more strongly, since it may have to lower the floor of a partition:
//! see [`general`].
//!
//! Everybody takes locks in this order: lease rows by partition, failed rows, events, holds.

mod general;

use std::sync::atomic::{AtomicI32, Ordering};

use outbox_core::{
    StoreError, WhenSent,
    store::{Lease, Outcome, Partition, RelayId, Sequence, SettleRequest, Settled, Settlement},
};
use sqlx::{PgConnection, Row as _};

use crate::{
    codec::{attempts_code, lease_arrays, partition_of},
    database::{Database, Purpose, Session},
    error::{CALL_TIMEOUT, silent, store_error, within},
    schema::{ARCHIVED, ARCHIVED_TWICE},
};

/// The lease rows, locked in one order until the statement ends. Reading them without a lock was found to
/// write stale rows.
const LEASES: &str = "l AS MATERIALIZED ( \
      SELECT p.partition FROM {partitions} p \
      JOIN unnest($1::smallint[], $2::bigint[]) s (partition, epoch) ON p.partition = s.partition \
      WHERE p.owner = $3 AND p.epoch = s.epoch ORDER BY p.partition FOR SHARE OF p)";

pub(super) async fn begin_attempt(
    database: &Database,
    relay: RelayId,
    lease: Lease,
    sequence: Sequence,
    attempts: u32,
) -> Result<bool, StoreError> {
    let what = "record an attempt";
    let sql = format!(
        "WITH {LEASES}, u AS (UPDATE {{outbox}} SET attempts = $5 \
           WHERE sequence = $4 AND status = 0 AND partition = ANY (ARRAY(SELECT partition FROM l)) RETURNING 1) \
         SELECT EXISTS (SELECT 1 FROM l) FROM (SELECT count(*) FROM u) done"
    );
    let (parts, epochs) = lease_arrays([&lease]);
    let query = sqlx::query_scalar(database.tables().sql(&sql))
        .bind(parts)
        .bind(epochs)
        .bind(relay.0)
        .bind(sequence)
        .bind(attempts_code(attempts));
    within(what, query.fetch_one(&mut *database.connection(what).await?)).await
}

pub(super) async fn settle(database: &Database, request: &SettleRequest) -> Result<Settled, StoreError> {
    if request.partitions().is_empty() {
        return Ok(Settled::default());
    }
    let mut slot = database.settling.lock().await;
    // Taken out while it works: if this future is dropped, so is the connection with whatever it was doing.
    let mut session = match slot.take() {
        Some(session) => session,
        None => Session::open(&database.pool, Purpose::Settle).await?,
    };
    let running = Running::start(&database.settling_pid, session.pid);
    let call = settle_on(database, &mut session.connection, request);
    let settled = match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(result) => result?,
        Err(_) => return Err(silent("settle")),
    };
    drop(running);
    *slot = Some(session);
    Ok(settled)
}

/// While a settle runs, its server process is known to the reader, which must not take it for a writer. Only
/// then: an idle connection may have died unseen, and the system may have given its number to a writer.
struct Running<'a>(&'a AtomicI32);

impl<'a> Running<'a> {
    fn start(pid: &'a AtomicI32, value: i32) -> Self {
        pid.store(value, Ordering::Release);
        Self(pid)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

async fn settle_on(
    database: &Database,
    connection: &mut PgConnection,
    request: &SettleRequest,
) -> Result<Settled, StoreError> {
    if let Some(attempts) = all_sent(request)
        && let Some(held) = settle_sent(database, connection, request, attempts).await?
    {
        return Ok(fenced(request, &held));
    }
    let held = general::settle(database, connection, request).await?;
    Ok(fenced(request, &held))
}

/// The number of attempts, if everything was sent after the same number of them and nothing else is asked.
fn all_sent(request: &SettleRequest) -> Option<u32> {
    let attempts = request.settlements.first()?.attempts;
    let alike = |s: &Settlement| s.outcome == Outcome::Sent && s.attempts == attempts;
    (request.unholds.is_empty() && request.settlements.iter().all(alike)).then_some(attempts)
}

/// Settles sent events in one statement and returns the partitions whose lease is held; `None`, having
/// changed nothing, if one of the events has a hold.
///
/// A hold that names an event in flight was there before the event was read, so that looking for one in the
/// same snapshot is enough.
async fn settle_sent(
    database: &Database,
    connection: &mut PgConnection,
    request: &SettleRequest,
    attempts: u32,
) -> Result<Option<Vec<Partition>>, StoreError> {
    let sql = sent_sql(request.when_sent);
    let (parts, epochs) = lease_arrays(&request.leases);
    let sequences: Vec<Sequence> = request.settlements.iter().map(|s| s.sequence).collect();
    let query = sqlx::query(database.tables().sql(&sql))
        .bind(parts)
        .bind(epochs)
        .bind(request.relay.0)
        .bind(sequences)
        .bind(attempts_code(attempts));
    let fail = |error| store_error("settle sent events", error);
    let row = query.fetch_one(connection).await.map_err(fail)?;
    if row.try_get("found").map_err(fail)? {
        return Ok(None);
    }
    let held: Vec<i16> = row.try_get("held").map_err(fail)?;
    Ok(Some(held.into_iter().map(partition_of).collect()))
}

/// `$1` and `$2` the leases, `$3` the relay, `$4` the sequences, `$5` the attempts, of which a deletion keeps
/// nothing.
///
/// What is done for each row is what counts: partitions as the bits of a number instead of an array of up to
/// 64, and no `RETURNING` whose rows are not read, took a fifth off the server's time.
pub(crate) fn sent_sql(when: WhenSent) -> String {
    // `= ANY` and never a join: a join planned with the statistics of an empty table stalls on a full one.
    let which = "o.sequence = ANY ($4::bigint[]) AND o.status = 0 AND NOT (SELECT found FROM h) \
                 AND ((SELECT bit_or(1::bigint << partition) FROM l) >> o.partition) & 1 = 1";
    let change = match when {
        WhenSent::Delete => format!("u AS (DELETE FROM {{outbox}} o WHERE {which})"),
        WhenSent::Keep => format!(
            "u AS (UPDATE {{outbox}} o SET status = 1, attempts = $5, sent_at = clock_timestamp() WHERE {which})"
        ),
        WhenSent::Archive => format!(
            "d AS (DELETE FROM {{outbox}} o WHERE {which} RETURNING {ARCHIVED}), \
             u AS (INSERT INTO {{archive}} ({ARCHIVED}, status, attempts, sent_at, archived_at) \
                   SELECT d.*, 1, $5::integer, clock_timestamp(), clock_timestamp() FROM d {ARCHIVED_TWICE})"
        ),
    };
    format!(
        "WITH {LEASES}, \
         h AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM {{holds}} WHERE sequence = ANY ($4::bigint[])) AS found), \
         {change} \
         SELECT (SELECT found FROM h) AS found, ARRAY(SELECT partition FROM l) AS held"
    )
}

fn fenced(request: &SettleRequest, held: &[Partition]) -> Settled {
    Settled::default().with_fenced(request.fenced(|lease| held.contains(&lease.partition)))
}
