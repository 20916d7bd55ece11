//! The relay: reads committed events, publishes them in order, settles them.
//!
//! [`Relay`] ties a store and a publisher together. Its decisions are in `engine` and the small pure modules beside
//! it; `run` has the loops, `steward` the membership.

mod config;
mod decided;
mod engine;
mod flights;
mod full;
mod handle;
mod lanes;
mod leases;
mod polling;
mod reading;
mod run;
mod scopes;
mod share;
mod steward;

use std::sync::Arc;

pub use config::{ConfigError, RelayConfig, Retention};
pub use handle::{Phase, RelayHandle, RelayStatus};

use self::{
    handle::Signals,
    run::{Loop, Parts},
};
use crate::{Clock, Finding, OutboxStore, Publisher, TokioClock};

/// A relay, ready to run.
///
/// Any number of relays, in one process or many, may share a table: they divide its partitions among them.
///
/// # Several outboxes
/// A process that serves several outboxes, such as one for each tenant, has a relay for each store, and one publisher
/// for all of them where they go to one broker. Each relay has its own leases, lanes and memory
/// ([`RelayConfig::buffer_bytes_max`] is of each), so that a store that is away keeps back its own events only.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use outbox_core::{
///     MemoryPublisher, MemoryStore, Publisher as _, Relay, RelayConfig, SharedPublisher, TokioClock,
/// };
///
/// let publisher = Arc::new(MemoryPublisher::new());
/// let mut running = Vec::new();
/// for _tenant in ["billing", "shop"] {
///     let store = MemoryStore::new(Arc::new(TokioClock::default()));
///     let shared = SharedPublisher::new(publisher.clone());
///     let relay = Relay::new(Arc::new(store), Arc::new(shared), RelayConfig::default())?;
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
    /// A relay from `store` to `publisher`, on Tokio.
    ///
    /// # Errors
    /// Every problem of the settings at once.
    pub fn new(
        store: Arc<dyn OutboxStore>,
        publisher: Arc<dyn Publisher>,
        config: RelayConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(store, publisher, config, Arc::new(TokioClock::default()))
    }

    /// The same under another clock, such as a simulated one.
    pub fn with_clock(
        store: Arc<dyn OutboxStore>,
        publisher: Arc<dyn Publisher>,
        config: RelayConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let mut problems = config.validate().err().map(|error| error.problems).unwrap_or_default();
        if let Some(delivery) = publisher.capabilities().delivery_timeout
            && config.publish_timeout <= delivery
        {
            problems.push(format!(
                "publish_timeout ({:?}) must be above the publisher's own delivery time-out ({delivery:?})",
                config.publish_timeout
            ));
        }
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        let (signals, handle) = Signals::pair();
        Ok(Self { parts: Parts { store, publisher, clock, config }, signals, handle })
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
                format!("the store cannot be checked: {error}"),
                "make it reachable and see that the relay's user may read the outbox tables",
            )],
        };
        findings.extend(self.parts.publisher.check(&self.parts.config.topic.topics()).await);
        findings
    }

    /// Relays until the handle asks for a shutdown. A store or broker that goes away is waited for.
    ///
    /// Dropping the returned future ends the relay at once, like a crash: its partitions are free when its lease
    /// expires, and what was in flight is published again.
    pub async fn run(mut self) -> RelayStatus {
        let seed = self.parts.config.seed.unwrap_or_else(|| fastrand::u64(..));
        // The relay itself holds a handle, so that it goes on when the caller has dropped the others.
        let _handle = self.handle;
        Loop::start(self.parts, seed).run(&mut self.signals).await
    }
}
