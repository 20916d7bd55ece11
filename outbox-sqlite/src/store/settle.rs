//! Recording what became of events, and the rules of holds.

use outbox_core::{
    AggregateKey, StoreError, WhenSent,
    store::{
        FailureCause, HoldReason, Lease, Outcome, RelayId, Sequence, SettleRequest, Settled, Settlement,
        Successors, Unhold,
    },
};
use rusqlite::{Transaction, params};

use crate::{
    SqliteConfig,
    codec::to_micros,
    database::{Database, now},
    error::Context,
    schema::columns,
};

/// Whether the lease is the relay's. The caller's transaction is `IMMEDIATE`: it has the write lock of the
/// whole database, which includes the lease row, so that reading the row is enough here.
fn holds_lease(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    relay: RelayId,
    lease: Lease,
) -> rusqlite::Result<bool> {
    let sql = config.sql(
        "SELECT EXISTS(SELECT 1 FROM {p}_partitions WHERE partition = ?1 AND epoch = ?2 AND owner = ?3)",
    );
    let parameters = params![lease.partition, lease.epoch, relay.0.to_string()];
    transaction.query_row(&sql, parameters, |row| row.get(0))
}

pub(super) async fn begin_attempt(
    database: &Database,
    relay: RelayId,
    lease: Lease,
    sequence: Sequence,
    attempts: u32,
) -> Result<bool, StoreError> {
    const WHAT: &str = "record an attempt";
    database
        .write(WHAT, move |config, transaction| {
            if !holds_lease(config, transaction, relay, lease).doing(WHAT)? {
                return Ok(false);
            }
            let sql = config.sql("UPDATE {p} SET attempts = ?2 WHERE sequence = ?1 AND status = 0");
            transaction.execute(&sql, params![sequence, attempts]).doing(WHAT)?;
            Ok(true)
        })
        .await
}

/// Records a request: see `OutboxStore::settle`.
pub(super) async fn settle(database: &Database, request: &SettleRequest) -> Result<Settled, StoreError> {
    const WHAT: &str = "settle events";
    let request = request.clone();
    database.write(WHAT, move |config, transaction| record(config, transaction, &request).doing(WHAT)).await
}

fn record(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    request: &SettleRequest,
) -> rusqlite::Result<Settled> {
    let mut held = Vec::new();
    for lease in &request.leases {
        if holds_lease(config, transaction, request.relay, *lease)? {
            held.push(*lease);
        }
    }
    let fenced = request.fenced(|lease| held.contains(&lease));
    let mut settling = Settling::new(config, transaction, request.when_sent)?;
    for settlement in request.settlements_in_order(&fenced) {
        settling.settlement(settlement)?;
    }
    for unhold in request.unholds_of(&fenced) {
        settling.unhold(unhold)?;
    }
    Ok(Settled::default().with_fenced(fenced))
}

/// Copies a row to the archive; the caller deletes it. The same event, which is there after a restore of the
/// table, is replaced. Another one with that number, which is there after a reset of the numbers, stays.
pub(super) fn copy_to_archive(
    config: &SqliteConfig,
    transaction: &Transaction<'_>,
    sequence: Sequence,
) -> rusqlite::Result<()> {
    let columns = columns();
    let of_another = "EXISTS (SELECT 1 FROM {p}_archive a WHERE a.sequence = o.sequence AND a.id <> o.id)";
    for (table, condition) in [("", "NOT "), ("_again", "")] {
        let sql = format!(
            "INSERT OR REPLACE INTO {{p}}_archive{table} ({columns}) SELECT {columns} FROM {{p}} o \
             WHERE o.sequence = ?1 AND {condition}{of_another}"
        );
        if transaction.prepare_cached(&config.sql(&sql))?.execute([sequence])? == 1 {
            break;
        }
    }
    Ok(())
}

struct Settling<'a> {
    config: &'a SqliteConfig,
    transaction: &'a Transaction<'a>,
    now: i64,
    when_sent: WhenSent,
    /// There are holds at all: without one, an event that was sent has none to look for.
    any_hold: bool,
    sent: String,
}

impl<'a> Settling<'a> {
    fn new(
        config: &'a SqliteConfig,
        transaction: &'a Transaction<'a>,
        when_sent: WhenSent,
    ) -> rusqlite::Result<Self> {
        let any_hold = config.sql("SELECT EXISTS(SELECT 1 FROM {p}_holds)");
        Ok(Self {
            config,
            transaction,
            now: now(config, transaction)?,
            when_sent,
            any_hold: transaction.query_row(&any_hold, [], |row| row.get(0))?,
            sent: config.sql(match when_sent {
                WhenSent::Delete => "DELETE FROM {p} WHERE sequence = ?1 AND status = 0",
                WhenSent::Keep | WhenSent::Archive => {
                    "UPDATE {p} SET status = 1, attempts = ?2, sent_at = ?3 WHERE sequence = ?1 AND status = 0"
                }
            }),
        })
    }

    fn settlement(&mut self, settlement: &Settlement) -> rusqlite::Result<()> {
        let Settlement { sequence, attempts, ref key, ref outcome, .. } = *settlement;
        match outcome {
            Outcome::Sent => {
                if self.sent(sequence, attempts)? && self.any_hold {
                    self.remove_hold(key, sequence)?;
                }
            }
            Outcome::Retry { after, error, reason } => {
                let sql = "UPDATE {p} SET attempts = ?2, last_error = ?3 WHERE sequence = ?1 AND status = 0";
                if self.execute(sql, params![sequence, attempts, error])? == 1 {
                    let until = self.now.saturating_add(to_micros(*after));
                    self.hold(key, sequence, Some(until), *reason)?;
                }
            }
            Outcome::Failed { cause, error, successors } => {
                if self.failed(sequence, attempts, *cause, error)? {
                    match successors {
                        Successors::Release => self.remove_hold(key, sequence)?,
                        Successors::Park => self.hold(key, sequence, None, HoldReason::Parked)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// False: the event is not pending any more.
    fn sent(&self, sequence: Sequence, attempts: u32) -> rusqlite::Result<bool> {
        let mut statement = self.transaction.prepare_cached(&self.sent)?;
        let changed = match self.when_sent {
            WhenSent::Delete => statement.execute([sequence])?,
            WhenSent::Keep | WhenSent::Archive => statement.execute(params![sequence, attempts, self.now])?,
        };
        if changed == 1 && self.when_sent == WhenSent::Archive {
            copy_to_archive(self.config, self.transaction, sequence)?;
            self.execute("DELETE FROM {p} WHERE sequence = ?1 AND status = 1", [sequence])?;
        }
        Ok(changed == 1)
    }

    fn failed(
        &self,
        sequence: Sequence,
        attempts: u32,
        cause: FailureCause,
        error: &str,
    ) -> rusqlite::Result<bool> {
        let sql = "UPDATE {p} SET status = 2, attempts = ?2, cause = ?3, last_error = ?4, failed_at = ?5 \
                   WHERE sequence = ?1 AND status = 0";
        Ok(self.execute(sql, params![sequence, attempts, cause.as_str(), error, self.now])? == 1)
    }

    /// The hold goes if this event is what it holds; a pause stays, as a plain one.
    fn remove_hold(&self, key: &AggregateKey, sequence: Sequence) -> rusqlite::Result<()> {
        const WHERE: &str = "WHERE aggregate_type = ?1 AND aggregate_id = ?2 AND sequence = ?3";
        let parameters = params![key.aggregate_type(), key.aggregate_id(), sequence];
        self.execute(&format!("DELETE FROM {{p}}_holds {WHERE} AND paused_at IS NULL"), parameters)?;
        let plain =
            format!("UPDATE {{p}}_holds SET sequence = NULL, until = NULL, reason = 'paused' {WHERE}");
        self.execute(&plain, parameters)?;
        Ok(())
    }

    /// Holds the aggregate behind the event. `until` without a value is without end.
    fn hold(
        &mut self,
        key: &AggregateKey,
        sequence: Sequence,
        until: Option<i64>,
        reason: HoldReason,
    ) -> rusqlite::Result<()> {
        self.any_hold = true;
        // The rule of `Hold::retried` and `Hold::parked`: the hold of the same event takes the new time and
        // reason. Of two events the lower one is held and the later time counts, with its reason. A pause has
        // no time, and so what is beneath it takes none, nor the reason of another event.
        let sql = "INSERT INTO {p}_holds AS h (aggregate_type, aggregate_id, sequence, until, reason) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE SET \
             sequence = min(coalesce(h.sequence, excluded.sequence), excluded.sequence), \
             until = CASE WHEN h.paused_at IS NOT NULL THEN NULL \
                 WHEN coalesce(h.sequence, excluded.sequence) = excluded.sequence OR excluded.until IS NULL \
                 OR excluded.until > h.until \
               THEN excluded.until ELSE h.until END, \
             reason = CASE WHEN coalesce(h.sequence, excluded.sequence) = excluded.sequence OR (h.paused_at IS NULL \
                 AND ((excluded.until IS NULL AND h.until IS NOT NULL) OR excluded.until > h.until)) \
               THEN excluded.reason ELSE h.reason END";
        let parameters = params![key.aggregate_type(), key.aggregate_id(), sequence, until, reason.as_str()];
        self.execute(sql, parameters)?;
        Ok(())
    }

    /// Removes a hold that holds nothing: it has not changed since it was read, and its event is not one to
    /// deliver.
    fn unhold(&self, unhold: &Unhold) -> rusqlite::Result<()> {
        let sql = "DELETE FROM {p}_holds AS h WHERE aggregate_type = ?1 AND aggregate_id = ?2 AND sequence IS ?3 \
             AND paused_at IS NULL AND until <= ?4 AND NOT EXISTS (SELECT 1 FROM {p} AS o WHERE \
             o.sequence = h.sequence AND o.status = 0 AND o.aggregate_type = h.aggregate_type \
             AND o.aggregate_id = h.aggregate_id AND (o.available_at IS NULL OR o.available_at <= ?4 \
             OR typeof(o.available_at) <> 'integer'))";
        let key = &unhold.key;
        let parameters = params![key.aggregate_type(), key.aggregate_id(), unhold.sequence, self.now];
        self.execute(sql, parameters)?;
        Ok(())
    }

    fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<usize> {
        self.transaction.prepare_cached(&self.config.sql(sql))?.execute(parameters)
    }
}
