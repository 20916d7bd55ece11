//! The harness of the inbox in memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_conformance::{InboxHarness, InboxTransaction};
use outbox_core::{
    Inbox as _, InboxError, Receipt,
    inbox::EventIdentity,
    memory::{MemoryInbox, MemoryStore, MemoryTransaction},
};

use super::ManualClock;

#[derive(Clone)]
pub struct MemoryInboxHarness {
    pub memory: MemoryStore,
    effects: Arc<Mutex<Vec<String>>>,
}

impl Default for MemoryInboxHarness {
    fn default() -> Self {
        Self { memory: MemoryStore::new(Arc::new(ManualClock::default())), effects: Arc::default() }
    }
}

impl MemoryInboxHarness {
    pub fn open(&self) -> OpenInbox {
        let effects = self.effects.clone();
        OpenInbox { memory: self.memory.clone(), transaction: self.memory.begin(), made: Vec::new(), effects }
    }

    pub fn count(&self, name: &str) -> u64 {
        self.effects.lock().unwrap().iter().filter(|made| *made == name).count() as u64
    }
}

#[async_trait]
impl InboxHarness for MemoryInboxHarness {
    async fn fresh() -> Option<Self> {
        Some(Self::default())
    }

    async fn cleanup(self) {}

    async fn begin(&self) -> Box<dyn InboxTransaction> {
        Box::new(self.open())
    }

    async fn receive_outside(
        &self,
        _consumer: &str,
        _event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>> {
        None
    }

    async fn effects(&self, name: &str) -> u64 {
        self.count(name)
    }

    async fn receipts(&self) -> u64 {
        self.memory.receipts() as u64
    }

    async fn now(&self) -> DateTime<Utc> {
        self.memory.now()
    }
}

pub struct OpenInbox {
    memory: MemoryStore,
    transaction: MemoryTransaction,
    made: Vec<String>,
    effects: Arc<Mutex<Vec<String>>>,
}

impl OpenInbox {
    fn inbox(&self, consumer: &str) -> MemoryInbox {
        MemoryInbox::new(&self.memory, consumer).unwrap()
    }

    pub async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        self.inbox(consumer).receive(&mut self.transaction, event).await
    }

    pub async fn purge(&mut self, consumer: &str, age: Duration, rows_max: u32) -> Result<u64, InboxError> {
        self.inbox(consumer).purge(&mut self.transaction, age, rows_max).await
    }

    pub fn effect(&mut self, name: &str) {
        self.made.push(name.to_owned());
    }

    pub fn commit(self) {
        self.transaction.commit();
        self.effects.lock().unwrap().extend(self.made);
    }
}

#[async_trait]
impl InboxTransaction for OpenInbox {
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError> {
        self.receive(consumer, event).await
    }

    async fn purge(
        &mut self,
        consumer: &str,
        older_than: Duration,
        rows_max: u32,
    ) -> Result<u64, InboxError> {
        self.purge(consumer, older_than, rows_max).await
    }

    async fn effect(&mut self, name: &str) {
        self.effect(name);
    }

    async fn commit(self: Box<Self>) -> Result<(), InboxError> {
        (*self).commit();
        Ok(())
    }

    async fn rollback(self: Box<Self>) {}
}
