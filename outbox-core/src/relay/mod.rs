//! The relay: reads committed events, publishes them in order, settles them.
//!
//! [`Relay`] ties a store and a publisher together. Its decisions are in `engine` and the small pure modules
//! beside it; `run` has the loops, `steward` the membership.

mod account;
mod config;
mod decided;
mod engine;
mod flights;
mod full;
mod handle;
mod happening;
mod lanes;
mod leases;
mod log;
mod observer;
mod parts;
mod polling;
mod reading;
mod run;
mod scopes;
mod settings;
mod share;
mod steward;
mod unrecorded;
mod writing;

use std::{future::Future, sync::Arc};

pub use config::{InvalidJson, RelayConfig, Retention};
pub use handle::{Availability, NotReady, Phase, RelayEnded, RelayHandle, RelayStatus};
pub use observer::{Change, GivenUp, ObservedFetch, ObservedPublish, ObservedSettle, Observer, StoreWork};

pub(crate) use self::settings::above_delivery;
use self::{handle::Signals, parts::Parts, run::Loop};
use crate::{ConfigError, Finding, OutboxStore, Publisher, chain};
pub use crate::{
    clock::{Clock, Monotonic, Task, TokioClock},
    retry::{GiveUp, RetryDecision},
    routing::{RoutingError, TemplateError},
};

/// A relay, ready to run.
///
/// Any number of relays, in one process or many, may share a table: they divide its partitions among them.
///
/// # Several outboxes
/// A process that serves several outboxes, such as one for each tenant, has a relay for each store, and one
/// publisher for all of them where they go to one broker. Each relay has its own leases, lanes and memory
/// ([`RelayConfig::buffer_bytes_max`] is of each), so that a store that is away keeps back its own events
/// only.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use outbox_core::{
///     Publisher as _, Relay, RelayConfig,
///     memory::{MemoryPublisher, MemoryStore},
///     publisher::SharedPublisher,
///     relay::TokioClock,
/// };
///
/// let publisher = MemoryPublisher::new();
/// let mut running = Vec::new();
/// for _tenant in ["billing", "shop"] {
///     let store = MemoryStore::new(Arc::new(TokioClock::default()));
///     let shared = SharedPublisher::new(publisher.clone());
///     let relay = Relay::new(store, shared, RelayConfig::default())?;
///     running.push((relay.handle(), tokio::spawn(relay.run())));
/// }
/// // … at the end …
/// for (handle, _) in &running {
///     handle.shutdown();
/// }
/// for (_, relay) in running {
///     relay.await?;
/// }
/// publisher.close().await;
/// # Ok(()) }
/// ```
pub struct Relay {
    parts: Parts,
    signals: Signals,
    handle: RelayHandle,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("config", &self.parts.config).finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay from `store` to `publisher`, on Tokio. Both are taken as they are, or in an `Arc` or a `Box`,
    /// of a type or of the trait.
    ///
    /// # Errors
    /// Every problem of the settings at once.
    pub fn new(
        store: impl OutboxStore,
        publisher: impl Publisher,
        config: RelayConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(store, publisher, config, Arc::new(TokioClock::default()))
    }

    /// The same under another clock, such as a simulated one.
    ///
    /// # Errors
    /// Every problem of the settings at once.
    pub fn with_clock(
        store: impl OutboxStore,
        publisher: impl Publisher,
        mut config: RelayConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let mut problems = config.validate().err().map(ConfigError::into_problems).unwrap_or_default();
        problems.extend(above_delivery(config.publish_timeout, &publisher));
        ConfigError::check(problems)?;
        if let Some(max) = store.capabilities().settle_events_max {
            config.settle_events_max = config.settle_events_max.min(max.max(1));
        }
        let (signals, handle) = Signals::pair(Arc::clone(&clock));
        let (store, publisher) = (Arc::new(store), Arc::new(publisher));
        Ok(Self { parts: Parts { store, publisher, clock, config, observer: None }, signals, handle })
    }

    /// The same, and `observer` is told what it does.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer) -> Self {
        self.parts.observer = Some(Arc::new(observer));
        self
    }

    /// A handle to wake it, watch it and end it.
    pub fn handle(&self) -> RelayHandle {
        self.handle.clone()
    }

    /// Asks the store and the publisher for whatever would break a guarantee; all findings of both.
    pub async fn check(&self) -> Vec<Finding> {
        let mut findings = match self.parts.store.check().await {
            Ok(findings) => findings,
            Err(error) => vec![Finding::error(
                "store",
                format!("the store cannot be checked: {}", chain(&error)),
                "make it reachable and see that the relay's user may read the outbox tables",
            )],
        };
        findings.extend(self.parts.publisher.check(&self.parts.config.topic.topics()).await);
        findings
    }

    /// Relays until the handle asks for a shutdown. A store or broker that goes away is waited for. It checks
    /// nothing beforehand: see [`check`](Self::check).
    ///
    /// Dropping the returned future ends the relay at once. What is in flight then may be published again.
    /// Its partitions are given back in the background, as soon as no message is in flight, if the runtime
    /// still runs; else they are free when its lease expires. [`run_until`](Self::run_until) ends it without
    /// any repetition.
    pub async fn run(mut self) -> RelayStatus {
        let seed = self.parts.config.seed.unwrap_or_else(random_seed);
        // The relay itself holds a handle, so that it goes on when the caller has dropped the others.
        let _handle = self.handle;
        Loop::start(self.parts, seed).run(&mut self.signals).await
    }

    /// Relays until `stop` completes or the handle asks for a shutdown, finishes what is in flight, and ends.
    ///
    /// ```no_run
    /// # use outbox_core::{Relay, RelayConfig, memory::{MemoryPublisher, MemoryStore}, relay::TokioClock};
    /// # async fn relay(store: MemoryStore, publisher: MemoryPublisher) -> Result<(), Box<dyn std::error::Error>> {
    /// let relay = Relay::new(store, publisher, RelayConfig::default())?;
    /// let status = relay.run_until(async { drop(tokio::signal::ctrl_c().await) }).await;
    /// println!("{} events were sent", status.sent);
    /// # Ok(()) }
    /// ```
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> RelayStatus {
        let handle = self.handle();
        let mut running = std::pin::pin!(self.run());
        tokio::select! {
            biased;
            status = &mut running => return status,
            () = stop => handle.shutdown(),
        }
        running.await
    }
}

/// The seed of all random numbers of a relay that was given none.
#[expect(
    clippy::disallowed_methods,
    reason = "the one number that is not drawn from a seeded generator: the seed"
)]
pub(crate) fn random_seed() -> u64 {
    fastrand::u64(..)
}
