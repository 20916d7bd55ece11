//! [`MemoryInbox`]: the reference inbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    MemoryStore, MemoryTransaction,
    time::{Time, between},
};
use crate::{
    EventError, Inbox, InboxError, Receipt, StoreError, StoreErrorKind,
    inbox::{EventIdentity, check_consumer, check_purge_age},
};

/// Consumer, source and id.
type ReceiptKey = (String, String, String);

/// Consumer and source.
type HorizonKey = (String, String);

/// The inbox of one consumer in a [`MemoryStore`]. It never waits: while another transaction has received the same
/// event and is open, the answer is [`StoreErrorKind::Conflict`].
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
        transaction.check_store(&self.store, "receive in memory")?;
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
        transaction.check_store(&self.store, "purge in memory")?;
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

/// The inboxes' tables.
#[derive(Debug, Default)]
pub(super) struct InboxState {
    receipts: BTreeMap<ReceiptKey, Option<Time>>,
    /// What open transactions have received.
    open: BTreeSet<ReceiptKey>,
    horizons: BTreeMap<HorizonKey, Time>,
}

/// What a transaction has done to the inboxes.
#[derive(Debug, Default)]
pub(super) struct InboxWork {
    received: BTreeMap<ReceiptKey, Option<Time>>,
    purged: BTreeSet<ReceiptKey>,
    raised: BTreeMap<HorizonKey, Time>,
}

impl InboxState {
    pub(super) fn commit(&mut self, work: InboxWork) {
        for key in &work.purged {
            self.receipts.remove(key);
        }
        for (key, time) in work.raised {
            let horizon = self.horizons.entry(key).or_insert(time);
            *horizon = time.max(*horizon);
        }
        for (key, time) in work.received {
            self.open.remove(&key);
            self.receipts.insert(key, time);
        }
    }

    pub(super) fn roll_back(&mut self, work: &InboxWork) {
        for key in work.received.keys() {
            self.open.remove(key);
        }
    }
}
