//! Recording outcomes: the rules of `OutboxStore::settle`, one function each.

use outbox_core::{
    HoldReason, Outcome, Partition, RelayId, SettleRequest, Settled, Settlement, Status, Successors, Unhold,
    WhenSent,
};
use redb::{ReadableTable, Table, WriteTransaction};

use crate::{
    now,
    record::{Hold, Record, after},
    tables::{IDS, PARTITIONS, Tables, event},
};

/// Whether the relay has this lease, by owner and epoch.
pub(crate) fn has_lease(
    partitions: &impl ReadableTable<u16, (i64, u128)>,
    relay: RelayId,
    lease: outbox_core::Lease,
) -> Result<bool, redb::Error> {
    let row = partitions.get(lease.partition)?.map(|row| row.value());
    Ok(row == Some((lease.epoch, relay.0.as_u128())))
}

pub(crate) fn settle(
    transaction: &WriteTransaction,
    request: &SettleRequest,
) -> Result<Settled, redb::Error> {
    let now = now();
    let fenced = fenced(transaction, request)?;
    let mut tables = Tables::open(transaction)?;
    let mut ids = transaction.open_table(IDS)?;
    let mut settlements: Vec<_> = request.settlements.iter().collect();
    settlements.sort_by_key(|settlement| settlement.sequence);
    for settlement in settlements.into_iter().filter(|s| !fenced.contains(&s.partition)) {
        let Some(mut record) = event(&tables.events, settlement.sequence)? else { continue };
        if record.status != Status::Pending {
            continue;
        }
        record_outcome(&mut record, settlement, now);
        tables.put(settlement.sequence, &record)?;
        match &settlement.outcome {
            Outcome::Sent | Outcome::Failed { successors: Successors::Release, .. } => {
                end_hold(&mut tables, settlement)?;
            }
            Outcome::Failed { successors: Successors::Park, .. } => {
                hold(&mut tables, settlement, None, HoldReason::Parked)?;
            }
            Outcome::Retry { after: wait, reason, .. } => {
                hold(&mut tables, settlement, Some(after(now, *wait)), *reason)?;
            }
        }
        if settlement.outcome == Outcome::Sent && request.when_sent != WhenSent::Keep {
            dispose(&mut tables, &mut ids, settlement, &record, request.when_sent)?;
        }
    }
    for entry in request.unholds.iter().filter(|unhold| !fenced.contains(&unhold.partition)) {
        unhold(&mut tables, entry, now)?;
    }
    Ok(Settled { fenced })
}

/// The partitions that the request names without holding their lease.
fn fenced(transaction: &WriteTransaction, request: &SettleRequest) -> Result<Vec<Partition>, redb::Error> {
    let partitions = transaction.open_table(PARTITIONS)?;
    let mut held = Vec::new();
    for lease in &request.leases {
        if has_lease(&partitions, request.relay, *lease)? {
            held.push(lease.partition);
        }
    }
    let leases = request.leases.iter().map(|lease| lease.partition);
    let settlements = request.settlements.iter().map(|settlement| settlement.partition);
    let named = leases.chain(settlements).chain(request.unholds.iter().map(|unhold| unhold.partition));
    let mut fenced: Vec<_> = named.filter(|partition| !held.contains(partition)).collect();
    fenced.sort_unstable();
    fenced.dedup();
    Ok(fenced)
}

fn record_outcome(record: &mut Record, settlement: &Settlement, now: i64) {
    record.attempts = settlement.attempts;
    match &settlement.outcome {
        Outcome::Sent => (record.status, record.done_at) = (Status::Sent, Some(now)),
        Outcome::Retry { error, .. } => record.last_error = Some(error.clone()),
        Outcome::Failed { cause, error, .. } => {
            (record.status, record.done_at) = (Status::Failed, Some(now));
            record.cause = Some(*cause);
            record.last_error = Some(error.clone());
        }
    }
}

fn hold(
    tables: &mut Tables<'_>,
    settlement: &Settlement,
    until: Option<i64>,
    reason: HoldReason,
) -> Result<(), redb::Error> {
    let new = Hold::new(Some(settlement.sequence), until, reason);
    let Some(before) = tables.hold(&settlement.key)? else {
        return tables.set_hold(&settlement.key, Some(&new));
    };
    let is_its_own = before.sequence == new.sequence;
    let is_later = before.until.is_some_and(|before| until.is_none_or(|until| until > before));
    // The reason goes with the time: it says what the aggregate waits for.
    let reason = if is_its_own || is_later || before.sequence.is_none() { reason } else { before.reason() };
    let until = if is_its_own || is_later { until } else { before.until };
    let sequence = [before.sequence, new.sequence].into_iter().flatten().min();
    let hold = Hold { paused: before.paused, ..Hold::new(sequence, until, reason) };
    tables.set_hold(&settlement.key, Some(&hold))
}

fn end_hold(tables: &mut Tables<'_>, settlement: &Settlement) -> Result<(), redb::Error> {
    match tables.hold(&settlement.key)? {
        Some(hold) if hold.sequence == Some(settlement.sequence) => {
            let pause = Hold { paused: true, ..Hold::new(None, None, HoldReason::Paused) };
            tables.set_hold(&settlement.key, hold.paused.then_some(&pause))
        }
        _ => Ok(()),
    }
}

fn unhold(tables: &mut Tables<'_>, unhold: &Unhold, now: i64) -> Result<(), redb::Error> {
    let Some(hold) = tables.hold(&unhold.key)? else { return Ok(()) };
    let held = hold.sequence.map(|sequence| event(&tables.events, sequence)).transpose()?.flatten();
    let holds_something = held.is_some_and(|record| record.is_pending_and_due(now));
    if hold.sequence == unhold.sequence && hold.is_due(now) && !holds_something {
        tables.set_hold(&unhold.key, None)?;
    }
    Ok(())
}

fn dispose(
    tables: &mut Tables<'_>,
    ids: &mut Table<'_, u128, i64>,
    settlement: &Settlement,
    record: &Record,
    when_sent: WhenSent,
) -> Result<(), redb::Error> {
    tables.remove(ids, settlement.sequence, record, when_sent == WhenSent::Archive)
}
