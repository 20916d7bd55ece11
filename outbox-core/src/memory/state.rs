//! The tables of the store in memory, with their indexes.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{
    receipts::InboxState,
    time::{Time, between},
};
use crate::{
    AggregateKey, StoreError, StoreErrorKind,
    store::{
        Epoch, EventRecord, FailureCause, Hold, Lease, PARTITIONS, Partition, RelayId, Row, Sequence, Status,
        StoredEvent,
    },
};

/// Everything the store holds. All of it is behind one lock: a method that holds the lock is a transaction.
pub(super) struct State {
    pub(super) sequence_last: Sequence,
    pub(super) relay_last: u128,
    /// How often anything was paused, so that a reader knows which pauses it has not told of.
    pub(super) pauses: u64,
    /// Which of these pauses each paused aggregate is held by.
    pub(super) paused: BTreeMap<AggregateKey, u64>,
    pub(super) rows: BTreeMap<Sequence, EventRow>,
    pub(super) pending: BTreeSet<Sequence>,
    pub(super) scheduled: BTreeSet<(Time, Sequence)>,
    pub(super) sent: BTreeSet<(Time, Sequence)>,
    pub(super) failed: BTreeSet<(Time, Sequence)>,
    /// The ids in the table and in open transactions.
    pub(super) ids: BTreeSet<Uuid>,
    pub(super) archive: BTreeMap<Sequence, EventRow>,
    pub(super) holds: BTreeMap<AggregateKey, Hold<Time>>,
    pub(super) relays: BTreeMap<RelayId, Time>,
    pub(super) partitions: Vec<PartitionRow>,
    pub(super) paused_topics: BTreeSet<String>,
    /// Aggregates of which nothing is recorded.
    pub(super) refused: BTreeSet<AggregateKey>,
    pub(super) values: BTreeMap<String, String>,
    pub(super) inbox: InboxState,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            sequence_last: 0,
            relay_last: 0,
            pauses: 0,
            paused: BTreeMap::new(),
            rows: BTreeMap::new(),
            pending: BTreeSet::new(),
            scheduled: BTreeSet::new(),
            sent: BTreeSet::new(),
            failed: BTreeSet::new(),
            ids: BTreeSet::new(),
            archive: BTreeMap::new(),
            holds: BTreeMap::new(),
            relays: BTreeMap::new(),
            partitions: vec![PartitionRow::default(); usize::from(PARTITIONS)],
            paused_topics: BTreeSet::new(),
            refused: BTreeSet::new(),
            values: BTreeMap::new(),
            inbox: InboxState::default(),
        }
    }

    pub(super) fn sequence_next(&mut self) -> Sequence {
        self.sequence_last += 1;
        self.sequence_last
    }

    pub(super) fn is_alive(&self, relay: RelayId, now: Time) -> bool {
        self.relays.get(&relay).is_some_and(|expires_at| *expires_at > now)
    }

    /// An error if one of these is refused.
    pub(super) fn check_refused<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a AggregateKey>,
    ) -> Result<(), StoreError> {
        match keys.find(|key| self.refused.contains(key)) {
            Some(key) => {
                let what = format!("cannot record what became of an event of {key}: it is refused");
                Err(StoreError::new(StoreErrorKind::Unexpected, what))
            }
            None => Ok(()),
        }
    }

    pub(super) fn relays_live(&self, now: Time) -> u32 {
        let live = self.relays.values().filter(|expires_at| **expires_at > now).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    /// Whether the relay still has this lease: owner and epoch, as every change must match them.
    pub(super) fn has_lease(&self, relay: RelayId, lease: Lease) -> bool {
        self.partitions
            .get(usize::from(lease.partition))
            .is_some_and(|row| row.owner == Some(relay) && row.epoch == lease.epoch)
    }

    pub(super) fn insert(&mut self, sequence: Sequence, row: EventRow) {
        self.index(sequence, &row);
        self.rows.insert(sequence, row);
    }

    /// Takes a row out of the table. Its id is free again.
    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<EventRow> {
        let row = self.rows.remove(&sequence)?;
        self.unindex(sequence, &row);
        if let Ok(event) = &row.content {
            self.ids.remove(&event.id);
        }
        Some(row)
    }

    /// Changes a row, with all indexes. True if it exists and `change` says that it changed it.
    pub(super) fn update(&mut self, sequence: Sequence, change: impl FnOnce(&mut EventRow) -> bool) -> bool {
        let Some(mut row) = self.rows.remove(&sequence) else { return false };
        self.unindex(sequence, &row);
        let changed = change(&mut row);
        self.insert(sequence, row);
        changed
    }

    /// The row, if it is pending and its scheduled time has come.
    pub(super) fn pending_due(&self, sequence: Sequence, now: Time) -> Option<&EventRow> {
        self.rows.get(&sequence).filter(|row| row.life == Life::Pending && row.is_due(now))
    }

    fn index(&mut self, sequence: Sequence, row: &EventRow) {
        match row.life {
            Life::Pending => {
                self.pending.insert(sequence);
                if let Some(at) = row.available_at {
                    self.scheduled.insert((at, sequence));
                }
            }
            Life::Sent { at } => drop(self.sent.insert((at, sequence))),
            Life::Failed { at, .. } => drop(self.failed.insert((at, sequence))),
        }
    }

    fn unindex(&mut self, sequence: Sequence, row: &EventRow) {
        match row.life {
            Life::Pending => {
                self.pending.remove(&sequence);
                if let Some(at) = row.available_at {
                    self.scheduled.remove(&(at, sequence));
                }
            }
            Life::Sent { at } => drop(self.sent.remove(&(at, sequence))),
            Life::Failed { at, .. } => drop(self.failed.remove(&(at, sequence))),
        }
    }
}

/// One row of the outbox.
#[derive(Debug, Clone)]
pub(super) struct EventRow {
    pub(super) key: AggregateKey,
    pub(super) partition: Partition,
    pub(super) content: Result<StoredEvent, String>,
    pub(super) created_at: Time,
    pub(super) available_at: Option<Time>,
    pub(super) life: Life,
    pub(super) attempts: u32,
    pub(super) last_error: Option<String>,
}

/// Where a row is in its life, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Pending,
    Sent { at: Time },
    Failed { at: Time, cause: FailureCause },
}

impl Life {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Pending => Status::Pending,
            Self::Sent { .. } => Status::Sent,
            Self::Failed { .. } => Status::Failed,
        }
    }

    pub(super) fn cause(self) -> Option<FailureCause> {
        match self {
            Self::Failed { cause, .. } => Some(cause),
            Self::Pending | Self::Sent { .. } => None,
        }
    }
}

impl EventRow {
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.available_at.is_none_or(|at| at <= now)
    }

    pub(super) fn to_row(&self, sequence: Sequence, now: Time) -> Row {
        Row {
            sequence,
            partition: self.partition,
            key: self.key.clone(),
            attempts: self.attempts,
            age: between(self.created_at, now),
            content: self.content.clone(),
        }
    }

    pub(super) fn to_record(&self, sequence: Sequence) -> EventRecord {
        let event = self.content.as_ref().ok();
        EventRecord {
            id: event.map(|event| event.id),
            sequence,
            partition: self.partition,
            key: self.key.clone(),
            event_type: event.map(|event| event.event_type.clone()).unwrap_or_default(),
            version: event.map_or(1, |event| event.version),
            payload: event.and_then(|event| event.payload.clone()),
            content_type: event.and_then(|event| event.content_type.clone()),
            headers: event.map(|event| event.headers.clone()).unwrap_or_default(),
            topic: event.and_then(|event| event.topic.clone()),
            created_at: self.created_at,
            available_at: self.available_at,
            status: self.life.status(),
            attempts: self.attempts,
            last_error: self.last_error.clone(),
            cause: self.life.cause(),
            sent_at: if let Life::Sent { at } = self.life { Some(at) } else { None },
            failed_at: if let Life::Failed { at, .. } = self.life { Some(at) } else { None },
        }
    }
}

/// One row of the partitions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PartitionRow {
    pub(super) owner: Option<RelayId>,
    pub(super) epoch: Epoch,
}

/// The partition of an aggregate: 64-bit FNV-1a (offset basis and prime from draft-eastlake-fnv), with a zero
/// byte between the names, which neither can contain.
pub(super) fn partition_of(key: &AggregateKey) -> Partition {
    let bytes = key.aggregate_type().bytes().chain([0]).chain(key.aggregate_id().bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV-1a are its weakest, so the high half is folded in.
    ((hash ^ (hash >> 32)) % u64::from(PARTITIONS)) as Partition
}
