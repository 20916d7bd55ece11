//! Sending events that were sent or archived once more: [`Replay`].
//!
//! # What a replay is
//! A replay reads events of the past and publishes them again, in sequence order for each aggregate, with one
//! message of an aggregate in flight, at most so many a second. It changes nothing in the store, needs no
//! lease, and runs beside relays. Its messages have their events' own ids and sequences, and the header
//! [`REPLAY_HEADER`].
//!
//! # What to know before one
//! - **A consumer that remembers ids takes no notice.** The id is the same, so an inbox, or a broker that
//!   deduplicates by id, drops a replayed message like any duplicate. A replay is for another consumer: send
//!   it to a topic of its own, or let the consumer forget what it is to get again, or let it look at
//!   [`REPLAY_HEADER`].
//! - **On the topic that relays send to, the past arrives among the present**: the replayed events of an
//!   aggregate are in order among themselves, and follow newer ones of the same aggregate that were sent
//!   before.
//! - A replay follows the table to its end, and relays make it longer: bound it with
//!   [`EventFilter::created_before`]. Events that are sent for the first time while it runs may or may not be
//!   part of it.
//! - Deliveries are at least once here as well: an unknown outcome is tried again.
//! - A topic that an operator has paused keeps relays back, and not a replay, which an operator has asked
//!   for.

mod handle;
mod pace;
mod progress;
mod queue;
mod run;

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use uuid::Uuid;

use self::handle::Signals;
pub use self::{
    handle::{ReplayEnded, ReplayHandle},
    progress::{Refusal, ReplayProgress},
};
use crate::{
    ConfigError, EventFilter, OutboxAdmin, Publisher, RetryPolicy, StoreError, TopicTemplate,
    clock::{Clock, TokioClock},
    publisher::Message,
    relay::above_delivery,
    settings::Problem,
    store::{EventRecord, Sequence, Status, StoredEvent},
    with::with,
};

/// The header that every message of a replay has, and no other message: writers cannot set a header that
/// starts with `outbox-`. Its value is the replay's id, the same for all of its messages.
pub const REPLAY_HEADER: &str = "outbox-replay";

/// The most topics that a [`ReplayPlan`] names.
const TOPICS_NAMED_MAX: usize = 100;

/// The most refusals that a [`ReplayProgress`] keeps.
const REFUSALS_KEPT_MAX: usize = 20;

/// The rows of the first page, and the most of one. A page's size follows the size of the events before it,
/// since a list is bounded by rows alone: at worst, small events are followed by a page of the largest.
const PAGE_ROWS: (u32, u32) = (32, 256);

/// The bytes of a page above which the next one is smaller.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// The settings of a replay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplayConfig {
    /// Which events. Without a status those that were sent; of the archive also those that failed can be
    /// asked for. `after` is where to resume: the [`position`](ReplayProgress::position) of the replay that
    /// ended early.
    pub filter: EventFilter,
    /// Where they go.
    pub topic: TopicTemplate,
    /// The topic that an event names itself wins over the template, as it does for a relay. Default false:
    /// everything goes where the template says.
    pub own_topics: bool,
    /// The CloudEvents `source` of every message. Default `/outbox`.
    pub source: Arc<str>,
    /// The most events that are begun in a second; `None` is as fast as the store and the broker go. Default
    /// `None`.
    pub rate: Option<NonZeroU32>,
    /// Events that are with the broker and not yet acknowledged. Default 1,000.
    pub in_flight_max: usize,
    /// How long a publish may take before its outcome counts as unknown. Default 5 s.
    pub publish_timeout: Duration,
    /// How often and after which delays a refused event is tried again. [`RetryPolicy::give_up`] is ignored:
    /// an event that is given up is reported, and the replay continues. The age of an event is ignored as
    /// well.
    pub retry: RetryPolicy,
    /// The bounds of the pauses after which an unavailable store or broker is tried again. Default 100 ms to
    /// 5 s.
    pub unavailable_delay: (Duration, Duration),
}

with!(ReplayConfig {
    with_filter filter: EventFilter,
    with_topic topic: TopicTemplate,
    with_own_topics own_topics: bool,
    with_source source: Arc<str>,
    with_rate rate: Option<NonZeroU32>,
    with_in_flight_max in_flight_max: usize,
    with_publish_timeout publish_timeout: Duration,
    with_retry retry: RetryPolicy,
    with_unavailable_delay unavailable_delay: (Duration, Duration),
});

impl ReplayConfig {
    /// A replay of the events that `filter` means to `topic`.
    pub fn new(filter: EventFilter, topic: TopicTemplate) -> Self {
        Self {
            filter,
            topic,
            own_topics: false,
            source: Arc::from("/outbox"),
            rate: None,
            in_flight_max: 1_000,
            publish_timeout: Duration::from_secs(5),
            retry: RetryPolicy::default(),
            unavailable_delay: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    fn check(&self, publisher: &dyn Publisher) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        match (self.filter.status, self.filter.archived) {
            (Some(Status::Pending), _) => {
                let what = "is pending, and those events are on their way already";
                problems.push(Problem::new("filter.status", what, "replay events that were sent"));
            }
            (Some(Status::Failed), false) => {
                let remedy = "requeue these events, so that a relay delivers them";
                problems.push(Problem::new("filter.status", "is failed", remedy));
            }
            _ => {}
        }
        for (setting, number) in
            [("in_flight_max", self.in_flight_max), ("retry.attempts_max", self.retry.attempts_max as usize)]
        {
            if number == 0 {
                problems.push(Problem::new(setting, "is 0", "give a whole number from 1"));
            }
        }
        if self.publish_timeout.is_zero() {
            problems.push(Problem::new(
                "publish_timeout",
                "is zero",
                "give the time that a publish may take",
            ));
        }
        problems.extend(above_delivery(self.publish_timeout, publisher));
        ConfigError::check(problems)
    }
}

/// What a replay would send: a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayPlan {
    /// Events that would be sent.
    pub events: u64,
    /// The bytes of their payloads.
    pub payload_bytes: u64,
    /// The first and the last of them.
    pub range: Option<(Sequence, Sequence)>,
    /// How many go to which topic, of the first hundred topics.
    pub topics: BTreeMap<Arc<str>, u64>,
    /// How many go to other topics.
    pub other_topics: u64,
    /// Events that cannot be sent.
    pub refused: u64,
    /// Why, of the first twenty of them.
    pub refusals: Vec<Refusal>,
}

/// How a replay ended.
#[derive(Debug)]
pub enum ReplayEnd {
    /// Everything was sent or refused.
    Complete,
    /// It was asked to stop. What was in flight has its outcome.
    Stopped,
    /// The store could not be read on.
    Store(StoreError),
}

/// A replay, ready to run.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::sync::Arc;
/// use outbox_core::{EventFilter, Replay, ReplayConfig, memory::{MemoryPublisher, MemoryStore}, relay::TokioClock, replay::ReplayEnd};
///
/// let store = MemoryStore::new(Arc::new(TokioClock::default()));
/// let filter = EventFilter::default().with_aggregate_type("order");
/// let config = ReplayConfig::new(filter, "orders.replayed".parse()?);
/// let replay = Replay::new(store, MemoryPublisher::new(), config)?;
/// println!("{} events would be sent", replay.plan(|_| ()).await?.events);
/// let (progress, end) = replay.run().await;
/// assert!(matches!(end, ReplayEnd::Complete) && progress.refused == 0);
/// # Ok(()) }
/// ```
pub struct Replay {
    admin: Arc<dyn OutboxAdmin>,
    publisher: Arc<dyn Publisher>,
    clock: Arc<dyn Clock>,
    config: ReplayConfig,
    id: Uuid,
    handle: ReplayHandle,
    signals: Signals,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("id", &self.id).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Replay {
    /// A replay from the store of `admin` to `publisher`, on Tokio. Both are taken as they are, or in an
    /// `Arc` or a `Box`, of a type or of the trait.
    ///
    /// # Errors
    /// Every problem of the settings at once.
    pub fn new(
        admin: impl OutboxAdmin,
        publisher: impl Publisher,
        config: ReplayConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(admin, publisher, config, Arc::new(TokioClock::default()))
    }

    /// The same under another clock, such as a simulated one.
    ///
    /// # Errors
    /// Every problem of the settings at once.
    pub fn with_clock(
        admin: impl OutboxAdmin,
        publisher: impl Publisher,
        mut config: ReplayConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.check(&publisher)?;
        config.filter.status = config.filter.status.or(Some(Status::Sent));
        let (signals, handle) = Signals::pair();
        let (admin, publisher) = (Arc::new(admin), Arc::new(publisher));
        Ok(Self { admin, publisher, clock, config, id: Uuid::now_v7(), handle, signals })
    }

    /// A handle to watch it and end it.
    pub fn handle(&self) -> ReplayHandle {
        self.handle.clone()
    }

    /// The replay's id, the value of [`REPLAY_HEADER`].
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Counts what would be sent, and sends nothing. `progress` is called after every page, with what has
    /// been counted so far.
    ///
    /// # Errors
    /// What the store says.
    pub async fn plan(&self, mut progress: impl FnMut(&ReplayPlan)) -> Result<ReplayPlan, StoreError> {
        let mut plan = ReplayPlan::default();
        let mut pages = Pages::new(&self.config.filter);
        while let Some((filter, rows)) = pages.next() {
            let page = self.admin.list(&filter, rows).await?;
            pages.read(&page, rows);
            for record in page {
                plan.add(&record, self.message(&record));
            }
            progress(&plan);
        }
        Ok(plan)
    }

    /// The message of an event of the past.
    fn message(&self, record: &EventRecord) -> Result<Message, String> {
        let own = record.topic.clone().filter(|_| self.config.own_topics);
        let mut event = StoredEvent {
            id: record.id.ok_or("its id cannot be read")?,
            event_type: record.event_type.clone(),
            version: record.version,
            payload: record.payload.clone(),
            content_type: record.content_type.clone(),
            headers: record.headers.clone(),
            topic: own,
            created_at: record.created_at,
        };
        let topic = self.config.topic.resolve(&record.key, &event).map_err(|error| error.to_string())?;
        event.headers.insert(REPLAY_HEADER.to_owned(), self.id.to_string());
        let (key, source) = (record.key.clone(), Arc::clone(&self.config.source));
        Ok(Message { topic, key, sequence: record.sequence, attempt: 1, source, event })
    }
}

impl ReplayPlan {
    fn add(&mut self, record: &EventRecord, message: Result<Message, String>) {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                self.refused += 1;
                keep(&mut self.refusals, record.sequence, record.id, error);
                return;
            }
        };
        self.events += 1;
        self.payload_bytes += record.payload_len() as u64;
        let first = self.range.map_or(record.sequence, |(first, _)| first);
        self.range = Some((first, record.sequence));
        if self.topics.len() < TOPICS_NAMED_MAX || self.topics.contains_key(&message.topic) {
            *self.topics.entry(message.topic).or_default() += 1;
        } else {
            self.other_topics += 1;
        }
    }
}

fn keep(refusals: &mut Vec<Refusal>, sequence: Sequence, id: Option<Uuid>, error: String) {
    if refusals.len() < REFUSALS_KEPT_MAX {
        refusals.push(Refusal { sequence, id, error });
    }
}

/// The pages of a list, one after the other.
struct Pages {
    /// What is to be read next; `None` after the last page.
    filter: Option<EventFilter>,
    rows: u32,
}

impl Pages {
    fn new(filter: &EventFilter) -> Self {
        Self { filter: Some(filter.clone()), rows: PAGE_ROWS.0 }
    }

    fn next(&self) -> Option<(EventFilter, u32)> {
        Some((self.filter.clone()?, self.rows))
    }

    /// This is the page that was asked for with `rows`.
    fn read(&mut self, page: &[EventRecord], rows: u32) {
        let bytes: usize = page.iter().map(|record| record.payload_len() + 256).sum();
        self.rows = if bytes > PAGE_BYTES { rows / 2 } else { rows.saturating_mul(2) };
        self.rows = self.rows.clamp(1, PAGE_ROWS.1);
        match (page.last(), &mut self.filter) {
            (Some(last), Some(filter)) if page.len() >= rows as usize => filter.after = Some(last.sequence),
            _ => self.filter = None,
        }
    }
}

#[cfg(test)]
mod tests;
