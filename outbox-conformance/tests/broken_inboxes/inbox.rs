//! The inbox in memory with one fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    InboxError, Receipt, StoreErrorKind,
    inbox::{EventIdentity, PURGE_AGE_MIN},
};

use crate::{
    common::{MemoryInboxHarness, OpenInbox},
    faults::Fault,
};

/// A consumer and an event.
type Key = (String, String, String);

#[derive(Clone)]
pub(crate) struct BrokenInboxes {
    inner: MemoryInboxHarness,
    fault: Fault,
    notes: Arc<Mutex<Notes>>,
}

/// What a fault needs to know and the inbox does not tell.
#[derive(Default)]
struct Notes {
    /// How often an event came.
    copies: BTreeMap<Key, u32>,
    /// Events that came while another transaction had received them.
    beside: BTreeSet<Key>,
    /// All events that have committed, with their times.
    times: BTreeMap<Key, DateTime<Utc>>,
    /// Those of them that were purged.
    gone: BTreeSet<Key>,
    too_old: BTreeSet<Key>,
    forgotten: BTreeSet<Key>,
    /// The latest time of an event that the last purge removed, and of all.
    horizon_last: Option<DateTime<Utc>>,
    horizon: Option<DateTime<Utc>>,
    purges_open: u32,
}

impl BrokenInboxes {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { inner: MemoryInboxHarness::default(), fault, notes: Arc::default() }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn open(&self) -> Broken {
        Broken { inner: Some(self.inner.open()), of: self.clone(), received: BTreeMap::new(), purged: None }
    }

    /// The names as the broken inbox takes them.
    fn names(&self, consumer: &str, event: &EventIdentity) -> Key {
        let take = |name: &str| match self.fault {
            Fault::NamesFolded => name.to_lowercase(),
            Fault::NamesTruncated => name.chars().take(100).collect(),
            _ => name.to_owned(),
        };
        let consumer = if self.is(Fault::ConsumersMixed) { "all".to_owned() } else { take(consumer) };
        let source = if self.is(Fault::SourcesMixed) { "all".to_owned() } else { take(event.source()) };
        (consumer, source, take(event.id()))
    }
}

#[async_trait]
impl InboxHarness for BrokenInboxes {
    async fn fresh() -> Option<Self> {
        Some(Self::new(Fault::None))
    }

    async fn cleanup(self) {}

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        Box::new(self.open())
    }

    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        if !self.is(Fault::OutsideTaken) {
            return Some(Err(InboxError::NoTransaction));
        }
        let mut transaction = self.inner.open();
        let answer = transaction.receive(consumer, event).await;
        transaction.commit();
        Some(answer)
    }

    async fn effects(&self, name: &str) -> u64 {
        self.inner.count(name)
    }

    async fn receipts(&self) -> u64 {
        self.inner.receipts().await
    }

    async fn now(&self) -> DateTime<Utc> {
        self.inner.now().await
    }
}

struct Broken {
    /// Taken out when it ends.
    inner: Option<OpenInbox>,
    of: BrokenInboxes,
    received: BTreeMap<Key, Option<DateTime<Utc>>>,
    /// What it has purged, if it purges.
    purged: Option<Vec<Key>>,
}

impl Broken {
    fn inner(&mut self) -> &mut OpenInbox {
        self.inner.as_mut().unwrap()
    }

    async fn answer(&mut self, key: &Key, time: Option<DateTime<Utc>>) -> Result<Receipt, InboxError> {
        let event = EventIdentity::new(key.1.as_str(), key.2.as_str(), time).unwrap();
        let answer = self.inner().receive(&key.0, &event).await;
        if answer.as_ref().is_ok_and(|receipt| *receipt == Receipt::New) {
            self.received.insert(key.clone(), time);
        }
        answer
    }

    /// An answer of the whole inbox, made wrong.
    async fn spoil(&mut self, key: &Key, time: Option<DateTime<Utc>>, receipt: Receipt) -> Receipt {
        let year = Duration::from_secs(300 * 24 * 3600);
        let (now, of) = (self.of.inner.memory.now(), self.of.clone());
        let copies = {
            let mut notes = of.notes();
            let copies = notes.copies.entry(key.clone()).or_default();
            *copies += 1;
            *copies
        };
        let notes = || of.notes();
        let before = |horizon: Option<DateTime<Utc>>| time.is_some_and(|time| Some(time) <= horizon);
        match (self.of.fault, receipt) {
            (Fault::OldRefused, Receipt::New) if time.is_some_and(|time| time < now - year) => {
                Receipt::TooOld
            }
            (Fault::ThirdCopyNew, Receipt::Seen) if copies == 3 && self.received.is_empty() => Receipt::New,
            (Fault::OwnReceiptForgotten, Receipt::Seen) if self.received.contains_key(key) => Receipt::New,
            (Fault::CopyBesideForgetsCommit, Receipt::Seen) if notes().beside.contains(key) => Receipt::New,
            (Fault::CopyBesideForgetsRollback, Receipt::New) if notes().beside.contains(key) => Receipt::Seen,
            (Fault::HorizonForgotten, Receipt::TooOld) => Receipt::New,
            (Fault::TooOldOnce, Receipt::TooOld) if !notes().too_old.insert(key.clone()) => Receipt::Seen,
            (Fault::OnlyPurgedTooOld, Receipt::TooOld) if !notes().times.contains_key(key) => Receipt::New,
            (Fault::HorizonTooHigh, Receipt::New)
                if notes().horizon.is_some() && before(Some(now - Duration::from_secs(7200))) =>
            {
                Receipt::TooOld
            }
            (Fault::TooOldKept, Receipt::TooOld) => {
                let kept = (key.0.clone(), key.1.clone(), format!("{}-{copies}", key.2));
                let _ = self.answer(&kept, None).await;
                Receipt::TooOld
            }
            (Fault::HorizonFirst, Receipt::Seen) if before(notes().horizon) => Receipt::TooOld,
            (Fault::HorizonFalls, Receipt::TooOld) if !before(notes().horizon_last) => Receipt::New,
            (Fault::HorizonOfAllSources, Receipt::New) if before(notes().horizon) => Receipt::TooOld,
            (Fault::PurgedBesideNew, Receipt::Seen) if notes().purges_open > 0 => Receipt::New,
            (Fault::PurgesBesideForget, Receipt::TooOld) if notes().forgotten.contains(key) => Receipt::New,
            (_, receipt) => receipt,
        }
    }

    async fn keep_rolled_back(&mut self) {
        for (key, time) in std::mem::take(&mut self.received) {
            let mut again = self.of.inner.open();
            let event = EventIdentity::new(key.1, key.2, time).unwrap();
            let _ = again.receive(&key.0, &event).await;
            again.commit();
        }
    }

    fn note_purge(&mut self, consumer: &str, age: Duration, count: u64) {
        let cutoff = self.of.inner.memory.now() - age;
        let mut notes = self.of.notes();
        let mut old: Vec<_> = notes
            .times
            .iter()
            .filter(|(key, time)| key.0 == consumer && **time < cutoff && !notes.gone.contains(*key))
            .map(|(key, time)| (*time, key.clone()))
            .collect();
        old.sort();
        notes.purges_open += 1;
        self.purged = Some(old.into_iter().take(count as usize).map(|(_, key)| key).collect());
    }

    fn end_purge(&mut self, committed: bool) {
        let Some(purged) = self.purged.take() else { return };
        let mut notes = self.of.notes();
        if committed && !purged.is_empty() {
            notes.horizon_last = purged.iter().map(|key| notes.times[key]).max();
            notes.horizon = notes.horizon.max(notes.horizon_last);
            if notes.purges_open > 1 {
                notes.forgotten.extend(purged.iter().cloned());
            }
            notes.gone.extend(purged);
        }
        notes.purges_open -= 1;
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.end_purge(false);
    }
}

#[async_trait]
impl InboxTransaction for Broken {
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        let key = self.of.names(consumer, event);
        // Lets others begin meanwhile.
        tokio::task::yield_now().await;
        let time = match event.time() {
            None if self.of.is(Fault::TimelessPurged) => {
                Some(self.of.inner.memory.now() - Duration::from_secs(4 * 3600))
            }
            time => time,
        };
        match self.answer(&key, time).await {
            Ok(receipt) => {
                let receipt = self.spoil(&key, time, receipt).await;
                tokio::task::yield_now().await;
                Ok(receipt)
            }
            Err(InboxError::Store(error)) if error.kind() == StoreErrorKind::Conflict => {
                self.of.notes().beside.insert(key);
                match self.of.fault {
                    Fault::CopyBesideNew => Ok(Receipt::New),
                    Fault::CopyBesideSeen => Ok(Receipt::Seen),
                    _ => Err(error.into()),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn purge(
        &mut self,
        consumer: &str,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        let age = match self.of.fault {
            Fault::PurgeTakesYoung => older_than.min(PURGE_AGE_MIN),
            Fault::AnyAgePurged => older_than.max(PURGE_AGE_MIN),
            _ => older_than,
        };
        let rows_max = if self.of.is(Fault::RowsMaxIgnored) { u32::MAX } else { rows_max };
        let consumer = if self.of.is(Fault::ConsumersMixed) { "all" } else { consumer };
        let count = self.inner().purge(consumer, age, rows_max).await?;
        if self.of.is(Fault::PurgeOfAllConsumers) {
            self.inner().purge("shipping", age, rows_max).await?;
        }
        self.note_purge(consumer, age, count);
        // Lets others begin meanwhile.
        tokio::task::yield_now().await;
        Ok(if self.of.is(Fault::PurgeCountsNothing) { 0 } else { count })
    }

    async fn effect(&mut self, name: &str) {
        self.inner().effect(name);
    }

    async fn commit(mut self: Box<Self>) -> Result<(), InboxError> {
        let received = std::mem::take(&mut self.received);
        self.of.notes().times.extend(received.into_iter().filter_map(|(key, time)| Some((key, time?))));
        self.end_purge(true);
        self.inner.take().unwrap().commit();
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        let inner = self.inner.take();
        match self.of.fault {
            Fault::RollbackCommits | Fault::PurgeOutlivesRollback
                if self.purged.is_some() == self.of.is(Fault::PurgeOutlivesRollback) =>
            {
                inner.unwrap().commit();
            }
            Fault::ReceiptOutlivesRollback => {
                drop(inner);
                self.keep_rolled_back().await;
            }
            _ => {}
        }
    }
}
