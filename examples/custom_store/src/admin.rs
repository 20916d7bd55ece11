//! The operator's side.

use std::collections::BTreeMap;

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, EventFilter, OutboxAdmin, StoreError,
    store::{EventRecord, FailureCause, HoldRecord, Sequence, Status},
};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    RedbStore, now,
    record::{Hold, PARTITION, Record, from_bytes, micros},
    tables::{ARCHIVE, Bytes, EVENTS, HOLDS, PAYLOADS, TOPICS, Tables, holds, payload},
};

#[async_trait]
impl OutboxAdmin for RedbStore {
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError> {
        let filter = filter.clone();
        self.read("list events", move |transaction| {
            let table = if filter.archived { ARCHIVE } else { EVENTS };
            let found = matching(&transaction.open_table(table)?, &filter, rows_max as usize)?;
            let payloads = transaction.open_table(PAYLOADS)?;
            let record = |(sequence, record): (Sequence, Record)| {
                Ok(record.to_event_record(sequence, payload(&payloads, sequence)?))
            };
            found.into_iter().map(record).collect()
        })
        .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        self.read("list holds", move |transaction| {
            let now = now();
            let record = |(key, hold): (AggregateKey, Hold)| {
                HoldRecord::new(key, PARTITION, hold.sequence, hold.reason)
                    .with_due_in(
                        hold.until
                            .filter(|_| !hold.is_paused())
                            .map(|until| micros(until.saturating_sub(now))),
                    )
                    .with_paused(hold.is_paused())
            };
            let mut holds: Vec<_> = holds(&transaction.open_table(HOLDS)?)?.into_iter().map(record).collect();
            holds.sort_by_key(|hold| (hold.due_in.is_none(), hold.due_in));
            holds.truncate(rows_max as usize);
            Ok(holds)
        })
        .await
    }

    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let filter = filter.clone();
        self.write("requeue events", move |transaction| requeue(transaction, &filter)).await
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let filter = filter.clone();
        self.write("discard events", move |transaction| discard(transaction, &filter)).await
    }

    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write("pause an aggregate", move |transaction| {
            Tables::open(transaction)?.change_hold(&key, |hold| Some(Hold::paused(hold, now())))
        })
        .await
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let key = key.clone();
        self.write("resume an aggregate", move |transaction| {
            let mut tables = Tables::open(transaction)?;
            tables.change_hold(&key, |hold| Some(hold?.resumed(now())))?;
            Ok(tables.hold(&key)?.is_some())
        })
        .await
    }

    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError> {
        let topic = topic.to_owned();
        self.write("pause a topic", move |transaction| {
            transaction.open_table(TOPICS)?.insert(topic.as_str(), ())?;
            Ok(())
        })
        .await
    }

    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError> {
        let topic = topic.to_owned();
        self.write("resume a topic", move |transaction| {
            let (now, mut tables) = (now(), Tables::open(transaction)?);
            for (key, _) in holds(&tables.holds)? {
                tables.change_hold(&key, |hold| Some(hold?.topic_resumed(now)))?;
            }
            Ok(transaction.open_table(TOPICS)?.remove(topic.as_str())?.is_some())
        })
        .await
    }

    async fn paused_topics(&self) -> Result<Vec<String>, StoreError> {
        self.read("list paused topics", |transaction| {
            let topics = transaction.open_table(TOPICS)?;
            topics.iter()?.map(|entry| Ok(entry?.0.value().to_owned())).collect()
        })
        .await
    }
}

fn requeue(transaction: &WriteTransaction, filter: &EventFilter) -> Result<u64, redb::Error> {
    if filter.archived {
        return Ok(0);
    }
    let (now, mut tables) = (now(), Tables::open(transaction)?);
    let mut failed = matching(&tables.events, filter, usize::MAX)?;
    failed.retain(|(_, record)| record.status == Status::Failed);
    // The sequences of each aggregate, in order.
    let mut requeued: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
    let count = failed.len() as u64;
    for (sequence, record) in failed {
        requeued.entry(record.key()).or_default().push(sequence);
        let record = Record { status: Status::Pending, attempts: 0, cause: None, done_at: None, ..record };
        tables.put(sequence, &record)?;
    }
    for (key, sequences) in requeued {
        tables.change_hold(&key, |hold| Hold::requeued(hold, &sequences, now))?;
    }
    Ok(count)
}

fn discard(transaction: &WriteTransaction, filter: &EventFilter) -> Result<u64, redb::Error> {
    if filter.archived {
        return Ok(0);
    }
    let (now, mut tables) = (now(), Tables::open(transaction)?);
    let mut count = 0;
    for (sequence, record) in matching(&tables.events, filter, usize::MAX)? {
        let key = record.key();
        let given_up = match record.status {
            Status::Failed => true,
            Status::Pending => tables.hold(&key)?.is_some_and(|hold| hold.sequence == Some(sequence)),
            Status::Sent => false,
        };
        if !given_up {
            continue;
        }
        // The age that retention counts is that of the failure, not of giving it up.
        let done_at = record.done_at.or(Some(now));
        let cause = Some(FailureCause::Discarded);
        tables.put(sequence, &Record { status: Status::Failed, cause, done_at, ..record })?;
        tables.change_hold(&key, |hold| Some(hold?.discarded(sequence, now)))?;
        count += 1;
    }
    Ok(count)
}

/// The events that the filter means, in ascending sequence.
fn matching(
    events: &impl ReadableTable<i64, Bytes>,
    filter: &EventFilter,
    rows_max: usize,
) -> Result<Vec<(Sequence, Record)>, redb::Error> {
    let mut found = Vec::new();
    for entry in events.range(filter.after.map_or(i64::MIN, |after| after.saturating_add(1))..)? {
        if found.len() >= rows_max {
            break;
        }
        let (sequence, bytes) = entry?;
        let (sequence, record) = (sequence.value(), from_bytes::<Record>(bytes.value())?);
        if filter.matches(&record.to_event_record(sequence, None)) {
            found.push((sequence, record));
        }
    }
    Ok(found)
}
