//! [`MemoryInbox`]: the reference inbox.

use std::time::Duration;

use super::{
    receipts::ReceiptKey,
    store::MemoryStore,
    time::{Time, between},
    transaction::MemoryTransaction,
};
use crate::{
    EventError, Inbox, InboxError, Receipt, StoreError, StoreErrorKind,
    inbox::{EventIdentity, check_consumer, check_purge_age},
};

/// The inbox of one consumer in a [`MemoryStore`]. It never waits: while another transaction has received the
/// same event and is open, the answer is [`StoreErrorKind::Conflict`].
#[derive(Debug, Clone)]
pub struct MemoryInbox {
    store: MemoryStore,
    consumer: String,
}

impl MemoryInbox {
    /// The inbox of `consumer` in this store.
    ///
    /// # Errors
    /// A name that [`check_consumer`] refuses.
    pub fn new(store: &MemoryStore, consumer: impl Into<String>) -> Result<Self, EventError> {
        let consumer = consumer.into();
        check_consumer(&consumer)?;
        Ok(Self { store: store.clone(), consumer })
    }

    fn receive_now(
        &self,
        transaction: &mut MemoryTransaction,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError> {
        transaction.check_database(&self.store.database, "receive in memory")?;
        let key = (self.consumer.clone(), event.source().to_owned(), event.id().to_owned());
        let horizon_key = (self.consumer.clone(), event.source().to_owned());
        let work = &mut transaction.inbox;
        let mut state = self.store.lock();
        let committed = state.inbox.receipts.contains_key(&key) && !work.purged.contains(&key);
        if committed || work.received.contains_key(&key) {
            return Ok(Receipt::Seen);
        }
        if state.inbox.open.contains(&key) {
            let what = format!(
                "receive in memory: event {} of {} is being received by another transaction; roll back and try again",
                event.id(),
                event.source()
            );
            return Err(StoreError::new(StoreErrorKind::Conflict, what).into());
        }
        let horizon = state.inbox.horizons.get(&horizon_key).max(work.raised.get(&horizon_key));
        if event.time().is_some_and(|time| horizon.is_some_and(|horizon| time <= *horizon)) {
            return Ok(Receipt::TooOld);
        }
        state.inbox.open.insert(key.clone());
        work.received.insert(key, event.time());
        Ok(Receipt::New)
    }

    fn purge_now(
        &self,
        transaction: &mut MemoryTransaction,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        check_purge_age(older_than)?;
        transaction.check_database(&self.store.database, "purge in memory")?;
        let now = self.store.now();
        let state = self.store.lock();
        let work = &mut transaction.inbox;
        let mut old: Vec<(Time, ReceiptKey)> = state
            .inbox
            .receipts
            .iter()
            .filter(|(key, _)| key.0 == self.consumer && !work.purged.contains(*key))
            .filter_map(|(key, time)| time.map(|time| (time, key.clone())))
            .filter(|(time, _)| between(*time, now) > older_than)
            .collect();
        old.sort();
        old.truncate(rows_max as usize);
        let count = old.len() as u64;
        for (time, key) in old {
            let horizon = work.raised.entry((key.0.clone(), key.1.clone())).or_insert(time);
            *horizon = time.max(*horizon);
            work.purged.insert(key);
        }
        Ok(count)
    }
}

impl MemoryStore {
    /// How many committed receipts there are, of all consumers.
    pub fn receipts(&self) -> usize {
        self.lock().inbox.receipts.len()
    }
}

impl Inbox<MemoryTransaction> for MemoryInbox {
    async fn receive(
        &self,
        transaction: &mut MemoryTransaction,
        event: &EventIdentity,
    ) -> Result<Receipt, InboxError> {
        self.receive_now(transaction, event)
    }

    async fn purge(
        &self,
        transaction: &mut MemoryTransaction,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        self.purge_now(transaction, older_than, rows_max)
    }
}
