//! One relay's way through the events: the plain scan from the lowest pending one.

use std::collections::BTreeSet;

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, StoreError,
    store::{DueHold, FetchRequest, Fetched, Lease, OutboxReader, Page, Row, Sequence},
};
use redb::{ReadTransaction, ReadableTable};

use crate::{
    RedbStore, now,
    record::{Hold, PARTITION, Record, micros},
    tables::{EVENTS, HOLDS, PAYLOADS, PENDING, event, holds, payload},
};

pub(crate) struct RedbReader {
    store: RedbStore,
    lease: Option<Lease>,
    /// The aggregates whose due hold was returned and has not been dealt with.
    out: BTreeSet<AggregateKey>,
}

impl RedbReader {
    pub(crate) fn new(store: RedbStore) -> Self {
        Self { store, lease: None, out: BTreeSet::new() }
    }
}

#[async_trait]
impl OutboxReader for RedbReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        let lease = request.leases.iter().find(|lease| lease.partition == PARTITION).copied();
        if lease != self.lease {
            self.out.clear();
            self.lease = lease;
        }
        for end in &request.ended_holds {
            self.out.remove(&end.key);
        }
        if lease.is_none() {
            return Ok(Fetched::default());
        }
        let out = self.out.clone();
        let read = move |transaction: &ReadTransaction| read(transaction, &request, &out);
        let fetched = self.store.read("fetch events", read).await?;
        self.out.extend(fetched.due_holds.iter().map(|hold| hold.key.clone()));
        Ok(fetched)
    }
}

fn read(
    transaction: &ReadTransaction,
    request: &FetchRequest,
    out: &BTreeSet<AggregateKey>,
) -> Result<Fetched, redb::Error> {
    let now = now();
    let events = transaction.open_table(EVENTS)?;
    let payloads = transaction.open_table(PAYLOADS)?;
    let mut holds = holds(&transaction.open_table(HOLDS)?)?;
    let mut page = Page::new(request);
    let mut fetched = Fetched::default();
    let mut next_due =
        holds.iter().filter_map(|(_, hold)| hold.until.filter(|at| !hold.is_paused() && *at > now)).min();
    let row = |sequence: Sequence, record: &Record| -> Result<Row, redb::Error> {
        Ok(record.to_row(sequence, payload(&payloads, sequence)?, now))
    };

    holds.sort_by_key(|(_, hold)| hold.until);
    let is_new = |key: &AggregateKey, hold: &Hold| hold.is_due(now) && !out.contains(key);
    for (key, hold) in holds.iter().filter(|(key, hold)| is_new(key, hold)) {
        if page.is_full() {
            page.set_more();
            break;
        }
        let due = match hold.sequence {
            Some(sequence) => event(&events, sequence)?.map(|record| (sequence, record)),
            None => None,
        };
        let due = due.filter(|(_, record)| record.is_pending_and_due(now));
        let held_row = due.map(|(sequence, record)| row(sequence, &record)).transpose()?;
        held_row.iter().for_each(|row| page.take(row.bytes()));
        let (key, sequence) = (key.clone(), hold.sequence);
        fetched.due_holds.push(DueHold::new(key, PARTITION, sequence, held_row));
    }

    let known: BTreeSet<_> = request.known.iter().copied().collect();
    let left_out: BTreeSet<_> = holds.iter().map(|(key, _)| key).chain(&request.full).chain(out).collect();
    for entry in transaction.open_table(PENDING)?.iter()? {
        let sequence = entry?.0.value();
        if known.contains(&sequence) {
            continue;
        }
        let Some(record) = event(&events, sequence)? else { continue };
        if let Some(at) = record.available_at.filter(|at| *at > now) {
            next_due = Some(next_due.map_or(at, |due| due.min(at)));
            continue;
        }
        // Once the page is full, what is left is looked at for what is scheduled alone.
        if page.more() || left_out.contains(&record.key()) {
            continue;
        }
        if page.is_full() {
            page.set_more();
            continue;
        }
        let row = row(sequence, &record)?;
        page.take(row.bytes());
        fetched.rows.push(row);
    }
    fetched.more = page.more();
    fetched.paused = holds.into_iter().filter(|(_, hold)| hold.is_paused()).map(|(key, _)| key).collect();
    fetched.next_due = next_due.map(|at| micros(at.saturating_sub(now)));
    Ok(fetched)
}
