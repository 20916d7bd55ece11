//! Recording outcomes, as `OutboxStore::settle` asks.

use outbox_core::{
    WhenSent,
    store::{Lease, Outcome, Partition, RelayId, SettleRequest, Settled, Settlement, Status},
};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    now,
    record::{Hold, Record, after},
    tables::{IDS, PARTITIONS, Tables, event},
};

/// Whether the relay has this lease, by owner and epoch.
pub(crate) fn has_lease(
    partitions: &impl ReadableTable<u16, (i64, u128)>,
    relay: RelayId,
    lease: Lease,
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
    for settlement in request.settlements_in_order(&fenced) {
        let Some(mut record) = event(&tables.events, settlement.sequence)? else { continue };
        if record.status != Status::Pending {
            continue;
        }
        record_outcome(&mut record, settlement, now);
        tables.put(settlement.sequence, &record)?;
        tables.change_hold(&settlement.key, |hold| Hold::settled(hold, settlement, now, after))?;
        if settlement.outcome == Outcome::Sent && request.when_sent != WhenSent::Keep {
            let to_archive = request.when_sent == WhenSent::Archive;
            tables.remove(&mut ids, settlement.sequence, &record, to_archive)?;
        }
    }
    for unhold in request.unholds_of(&fenced) {
        let held = unhold.sequence.map(|sequence| event(&tables.events, sequence)).transpose()?.flatten();
        let pending = |_| held.is_some_and(|record| record.is_pending_and_due(now));
        tables.change_hold(&unhold.key, |hold| hold?.unheld(unhold, now, pending))?;
    }
    Ok(Settled::default().with_fenced(fenced))
}

fn fenced(transaction: &WriteTransaction, request: &SettleRequest) -> Result<Vec<Partition>, redb::Error> {
    let partitions = transaction.open_table(PARTITIONS)?;
    let mut held = Vec::new();
    for lease in &request.leases {
        if has_lease(&partitions, request.relay, *lease)? {
            held.push(*lease);
        }
    }
    Ok(request.fenced(|lease| held.contains(&lease)))
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
