//! The operator's side.

use std::collections::BTreeMap;

use async_trait::async_trait;
use outbox_core::{
    AggregateKey, EventFilter, EventRecord, FailureCause, HoldReason, HoldRecord, OutboxAdmin, Sequence,
    Status, StoreError,
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
                Ok(record.to_event_record(sequence, &payload(&payloads, sequence)?))
            };
            found.into_iter().map(record).collect()
        })
        .await
    }

    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError> {
        self.read("list holds", move |transaction| {
            let now = now();
            let record = |(key, hold): (AggregateKey, Hold)| HoldRecord {
                key,
                partition: PARTITION,
                sequence: hold.sequence,
                due_in: hold.until.filter(|_| !hold.paused).map(|until| micros(until.saturating_sub(now))),
                reason: hold.reason(),
                paused: hold.paused,
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
            let mut tables = Tables::open(transaction)?;
            let hold = tables.hold(&key)?.unwrap_or(Hold::new(None, None, HoldReason::Paused));
            tables.set_hold(&key, Some(&Hold { paused: true, ..hold }))
        })
        .await
    }

    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError> {
        let key = key.clone();
        self.write("resume an aggregate", move |transaction| {
            let mut tables = Tables::open(transaction)?;
            let Some(hold) = tables.hold(&key)? else { return Ok(false) };
            tables.set_hold(&key, Some(&Hold { paused: false, until: Some(now()), ..hold }))?;
            Ok(true)
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
            for (key, hold) in holds(&tables.holds)? {
                if hold.reason() == HoldReason::Topic {
                    tables.set_hold(&key, Some(&Hold { until: Some(now), ..hold }))?;
                }
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
        let new = Hold::new(sequences.first().copied(), Some(now), HoldReason::Requeued);
        let hold = match tables.hold(&key)? {
            // A hold of another event keeps its own time; one of these, or of none, waits for nothing else.
            Some(hold) if hold.sequence.is_some_and(|held| !sequences.contains(&held)) => {
                Hold { sequence: hold.sequence.min(new.sequence), ..hold }
            }
            Some(hold) => Hold { paused: hold.paused, ..new },
            None => new,
        };
        tables.set_hold(&key, Some(&hold))?;
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
        let hold = tables.hold(&key)?.filter(|hold| hold.sequence == Some(sequence));
        let given_up = match record.status {
            Status::Failed => true,
            Status::Pending => hold.is_some(),
            Status::Sent => false,
        };
        if !given_up {
            continue;
        }
        // The age that retention counts is that of the failure, not of giving it up.
        let done_at = record.done_at.or(Some(now));
        let cause = Some(FailureCause::Discarded);
        tables.put(sequence, &Record { status: Status::Failed, cause, done_at, ..record })?;
        if let Some(hold) = hold {
            tables.set_hold(&key, Some(&Hold { until: Some(now), ..hold }))?;
        }
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
        let record: Record = from_bytes(bytes.value())?;
        if matches(&record, filter) {
            found.push((sequence.value(), record));
        }
    }
    Ok(found)
}

fn matches(record: &Record, filter: &EventFilter) -> bool {
    let is = |wanted: &Option<String>, actual: &str| wanted.as_ref().is_none_or(|wanted| wanted == actual);
    (filter.ids.is_empty() || record.id().is_some_and(|id| filter.ids.contains(&id)))
        && filter.status.is_none_or(|status| record.status == status)
        && filter.cause.is_none_or(|cause| record.cause == Some(cause))
        && is(&filter.aggregate_type, &record.aggregate_type)
        && is(&filter.aggregate_id, &record.aggregate_id)
        && is(&filter.event_type, record.event_type())
        && filter.created_from.is_none_or(|from| record.created_at >= from.timestamp_micros())
        && filter.created_before.is_none_or(|before| record.created_at < before.timestamp_micros())
}
