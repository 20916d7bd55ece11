//! A writer's transaction on the store in memory.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    database::Database,
    receipts::InboxWork,
    state::{EventRow, Life, partition_of},
};
use crate::{
    AggregateKey, EnqueueError, Event, StoreError, StoreErrorKind,
    event::PAYLOAD_BYTES_MAX_DEFAULT,
    store::{Sequence, StoredEvent},
};

/// A transaction of a [`MemoryStore`](super::MemoryStore). Its writes are invisible until
/// [`commit`](Self::commit); dropping it rolls it back.
///
/// A sequence is drawn when its event is enqueued, as from a database's sequence, so that a lower one can be
/// committed after a higher one.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back"]
pub struct MemoryTransaction {
    database: Database,
    rows: Vec<(Sequence, EventRow)>,
    values: Vec<(String, String)>,
    pub(super) inbox: InboxWork,
}

impl MemoryTransaction {
    pub(super) fn new(database: Database) -> Self {
        Self { database, rows: Vec::new(), values: Vec::new(), inbox: InboxWork::default() }
    }

    pub(super) fn check_database(&self, database: &Database, what: &str) -> Result<(), StoreError> {
        if self.database.is(database) {
            return Ok(());
        }
        let what =
            format!("{what}: the transaction is of another store; begin it on the store that it is given to");
        Err(StoreError::new(StoreErrorKind::Misuse, what))
    }

    /// Writes one event and returns its sequence.
    ///
    /// # Errors
    /// A payload above [`PAYLOAD_BYTES_MAX_DEFAULT`], or an id that is in the store or in any open
    /// transaction: nothing is written, and the transaction is still usable.
    pub fn enqueue(&mut self, event: &Event) -> Result<Sequence, EnqueueError> {
        self.check(std::slice::from_ref(event))?;
        Ok(self.write(event))
    }

    /// Writes all of the events or none, with ascending sequences.
    ///
    /// # Errors
    /// As for [`enqueue`](Self::enqueue).
    pub fn enqueue_all(&mut self, events: &[Event]) -> Result<Vec<Sequence>, EnqueueError> {
        self.check(events)?;
        Ok(events.iter().map(|event| self.write(event)).collect())
    }

    /// Writes a row that cannot be read as an event, as another language's service might; `error` is why.
    pub fn enqueue_undecodable(&mut self, key: &AggregateKey, error: &str) -> Sequence {
        let row = EventRow {
            key: key.clone(),
            partition: partition_of(key),
            content: Err(error.to_owned()),
            created_at: self.database.now(),
            available_at: None,
            life: Life::Pending,
            attempts: 0,
            last_error: None,
        };
        let sequence = self.database.lock().sequence_next();
        self.rows.push((sequence, row));
        sequence
    }

    /// Writes a business row: the change that an event tells of, so that their atomicity can be tested.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.values.push((key.into(), value.into()));
    }

    /// Makes everything visible at once.
    pub fn commit(mut self) {
        let mut state = self.database.lock();
        for (sequence, row) in std::mem::take(&mut self.rows) {
            state.insert(sequence, row);
        }
        state.values.extend(std::mem::take(&mut self.values));
        state.inbox.commit(std::mem::take(&mut self.inbox));
    }

    /// Forgets everything. The sequences that were drawn are never given again.
    pub fn rollback(self) {}

    fn check(&self, events: &[Event]) -> Result<(), EnqueueError> {
        let state = self.database.lock();
        let mut ids: BTreeSet<Uuid> = BTreeSet::new();
        for event in events {
            event.check_payload(PAYLOAD_BYTES_MAX_DEFAULT)?;
            if state.ids.contains(&event.id()) || !ids.insert(event.id()) {
                return Err(EnqueueError::Duplicate(event.id()));
            }
        }
        Ok(())
    }

    fn write(&mut self, event: &Event) -> Sequence {
        let key = AggregateKey::new(event.aggregate_type(), event.aggregate_id());
        let created_at = self.database.now();
        let row = EventRow {
            partition: partition_of(&key),
            key,
            content: Ok(StoredEvent::of(event, created_at)),
            created_at,
            available_at: event.available_at(),
            life: Life::Pending,
            attempts: 0,
            last_error: None,
        };
        let mut state = self.database.lock();
        state.ids.insert(event.id());
        let sequence = state.sequence_next();
        drop(state);
        self.rows.push((sequence, row));
        sequence
    }
}

impl Drop for MemoryTransaction {
    fn drop(&mut self) {
        let mut state = self.database.lock();
        state.inbox.roll_back(&self.inbox);
        for (_, row) in self.rows.drain(..) {
            if let Ok(event) = &row.content {
                state.ids.remove(&event.id);
            }
        }
    }
}
