//! What a program that reads settings must know of an adapter: [`StoreAdapter`] and [`PublisherAdapter`].

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::{ConfigError, Setting, Values};
use crate::{Finding, OutboxAdmin, OutboxStore, Publisher, RelayConfig, StoreError};

/// What a [`Problem`](super::Problem) of the URL names as its setting.
pub const URL: &str = "url";

/// An adapter as data.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Adapter {
    /// A word for it in settings: the table of a publisher's settings, such as `kafka`.
    pub name: &'static str,
    /// Its name in sentences, such as `Kafka`.
    pub title: &'static str,
    /// What a URL for it starts with, `amqp://` for example; the first is the usual one.
    pub schemes: &'static [&'static str],
    /// A URL for it as a pattern, such as `kafka://host:port,host:port`.
    pub url_form: &'static str,
    /// What there is to know about it and its URL, in full sentences.
    pub text: &'static str,
    /// Its settings beside the URL.
    pub settings: &'static [Setting],
    /// How much of the log of its client is wanted unless the user asks for more: targets and levels, such as
    /// `librdkafka=error`. While a broker is away, a client may warn several times a second of what the relay
    /// says once.
    pub log: Option<&'static str>,
}

impl Adapter {
    /// An adapter without settings.
    pub const fn new(
        name: &'static str,
        title: &'static str,
        schemes: &'static [&'static str],
        url_form: &'static str,
        text: &'static str,
    ) -> Self {
        Self { name, title, schemes, url_form, text, settings: &[], log: None }
    }

    /// Its settings beside the URL.
    #[must_use]
    pub const fn settings(mut self, settings: &'static [Setting]) -> Self {
        self.settings = settings;
        self
    }

    /// How much of the log of its client is wanted.
    #[must_use]
    pub const fn log(mut self, log: &'static str) -> Self {
        self.log = Some(log);
        self
    }

    /// Whether a URL is for this adapter.
    pub fn takes(&self, url: &str) -> bool {
        self.schemes.iter().any(|scheme| url.starts_with(scheme))
    }
}

/// A kind of store that can be configured by a URL and settings.
pub trait StoreAdapter: Send + Sync {
    /// What it is, and its settings.
    fn adapter(&self) -> &'static Adapter;

    /// Validates a URL and settings, without looking at a server. `relay` is what the relay will do with the
    /// store.
    ///
    /// # Errors
    /// Every problem at once, by the keys of the [`Adapter`]'s table and [`URL`], none with a password.
    fn configure(
        &self,
        url: &str,
        values: &Values,
        relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredStore>, ConfigError>;
}

/// A store that is configured, and not open.
#[async_trait]
pub trait ConfiguredStore: Debug + Send + Sync {
    /// Where it is, without a password.
    fn shown(&self) -> String;

    /// What makes the tables, for the database's own shell: SQL, or a script.
    fn migration(&self) -> String;

    /// Creates or upgrades the tables.
    ///
    /// # Errors
    /// What the database says.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Opens it. A server that is away is not an error yet.
    ///
    /// # Errors
    /// What keeps it from being opened.
    async fn open(&self) -> Result<OpenedStore, StoreError>;
}

/// A store that is open.
#[non_exhaustive]
pub struct OpenedStore {
    /// The relay's side.
    pub store: Arc<dyn OutboxStore>,
    /// The operator's side.
    pub admin: Arc<dyn OutboxAdmin>,
}

impl OpenedStore {
    /// Both sides of a store.
    pub fn new(store: impl OutboxStore + OutboxAdmin + Clone + 'static) -> Self {
        Self { store: Arc::new(store.clone()), admin: Arc::new(store) }
    }
}

/// A kind of publisher that can be configured by a URL and settings.
pub trait PublisherAdapter: Send + Sync {
    /// What it is, and its settings.
    fn adapter(&self) -> &'static Adapter;

    /// Validates a URL and settings, without looking at a server. `relay` is what the relay will do with the
    /// publisher.
    ///
    /// # Errors
    /// Every problem at once, by the keys of the [`Adapter`]'s table and [`URL`], none with a password.
    fn configure(
        &self,
        url: &str,
        values: &Values,
        relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError>;
}

/// A publisher that is configured, and not open.
pub trait ConfiguredPublisher: Debug + Send + Sync {
    /// Where it is, without a password.
    fn shown(&self) -> String;

    /// Makes the publisher. A broker that is away is not an error yet.
    ///
    /// # Errors
    /// What keeps it from being made, such as a file that may not be written.
    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>>;
}
