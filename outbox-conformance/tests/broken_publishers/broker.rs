//! A broker in memory that can be taken away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use outbox_conformance::{Outage, StoredMessage};
use tokio::sync::watch;

/// The destination that takes small messages only.
pub(crate) const SMALL: &str = "small";
pub(crate) const SMALL_BYTES_MAX: usize = 1000;

#[derive(Clone)]
pub(crate) struct Broker {
    topics: Arc<Mutex<BTreeMap<String, Vec<StoredMessage>>>>,
    mode: watch::Sender<Mode>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Passing,
    Cut,
    Frozen,
    Deaf,
}

/// Why the broker did not acknowledge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Refusal {
    Unreachable,
    /// The connection was closed without an answer.
    Lost,
    NoSuchTopic,
    TooLarge,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let topics = BTreeMap::from([(SMALL.to_owned(), Vec::new())]);
        Self { topics: Arc::new(Mutex::new(topics)), mode: watch::Sender::new(Mode::Passing) }
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    pub(crate) fn create(&self, topic: &str) {
        self.topics.lock().unwrap().entry(topic.to_owned()).or_default();
    }

    pub(crate) fn has(&self, topic: &str) -> bool {
        self.topics.lock().unwrap().contains_key(topic)
    }

    pub(crate) fn stored(&self, topic: &str) -> Vec<StoredMessage> {
        self.topics.lock().unwrap().get(topic).cloned().unwrap_or_default()
    }

    /// Whether it would take the message, if it were asked.
    pub(crate) fn takes(&self, topic: &str, message: &StoredMessage) -> Result<(), Refusal> {
        match topic {
            _ if !self.has(topic) => Err(Refusal::NoSuchTopic),
            SMALL if message.payload.len() > SMALL_BYTES_MAX => Err(Refusal::TooLarge),
            _ => Ok(()),
        }
    }

    /// Stores the message at a place of the topic, counted from its end.
    pub(crate) fn store(&self, topic: &str, message: StoredMessage, from_end: usize) -> Result<(), Refusal> {
        self.takes(topic, &message)?;
        let mut topics = self.topics.lock().unwrap();
        let log = topics.get_mut(topic).unwrap();
        log.insert(log.len() - from_end, message);
        Ok(())
    }

    /// Carries out a request as far as the broker is there. Dropped, it has happened or not.
    pub(crate) async fn request(&self, store: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
        let mut modes = self.mode.subscribe();
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Passing => return store(),
            Mode::Cut => return Err(Refusal::Unreachable),
            Mode::Frozen => {}
            Mode::Deaf => drop(store()),
        }
        modes.changed().await.unwrap();
        Err(Refusal::Lost)
    }
}

#[async_trait]
impl Outage for Broker {
    async fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    async fn freeze(&self) {
        self.mode.send_replace(Mode::Frozen);
    }

    async fn lose_answers(&self) {
        self.mode.send_replace(Mode::Deaf);
    }

    async fn restore(&self) {
        self.mode.send_replace(Mode::Passing);
    }
}
