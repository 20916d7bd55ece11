//! What a relay tells while it works: [`Observer`].

use std::{fmt, sync::Arc, time::Duration};

use uuid::Uuid;

use super::Phase;
use crate::{
    AggregateKey, StoreErrorKind,
    publisher::{Message, PublishError},
    store::{FailureCause, Partition, Purged, RelayId, Sequence},
};

/// Takes what a relay tells: counts of each batch, and each change of its state, once and in order.
///
/// It is the only way out of the engine but for the store and the publisher: metrics, traces, logs and
/// findings are made of it. Every method does nothing by default. They are called from the relay's own loop,
/// once per batch, so that they must neither wait nor panic: count, or put what is told into a channel.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use outbox_core::{Observer, relay::{Change, ObservedSettle}};
///
/// #[derive(Default)]
/// struct Metrics {
///     sent: AtomicU64,
///     outages: AtomicU64,
/// }
///
/// impl Observer for Metrics {
///     fn settled(&self, settle: &ObservedSettle) {
///         self.sent.fetch_add(settle.sent, Ordering::Relaxed);
///     }
///
///     fn changed(&self, change: &Change) {
///         if matches!(change, Change::BrokerUnavailable { .. }) {
///             self.outages.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// The table was read.
    fn fetched(&self, fetch: &ObservedFetch) {
        let _ = fetch;
    }

    /// Messages have an outcome. Not told: those whose partition was lost meanwhile.
    fn published(&self, outcomes: &[ObservedPublish]) {
        let _ = outcomes;
    }

    /// Outcomes were recorded.
    fn settled(&self, settle: &ObservedSettle) {
        let _ = settle;
    }

    /// Events are recorded as failed. Told after [`settled`](Self::settled), which counts them.
    fn given_up(&self, events: &[GivenUp]) {
        let _ = events;
    }

    /// Retention removed rows.
    fn purged(&self, purged: &Purged) {
        let _ = purged;
    }

    /// The relay's state, or what it knows of store and broker, has changed.
    fn changed(&self, change: &Change) {
        let _ = change;
    }
}

/// One read of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObservedFetch {
    /// Rows that it returned, due holds included.
    pub rows: usize,
    /// What they take in memory.
    pub bytes: usize,
    /// There is more to be read.
    pub more: bool,
    /// How long the store took.
    pub took: Duration,
}

/// The outcome of one message.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ObservedPublish {
    /// The message.
    pub message: Arc<Message>,
    /// How long the publisher took.
    pub took: Duration,
    /// Acknowledged, or why not.
    pub result: Result<(), PublishError>,
}

/// One settle that has committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObservedSettle {
    /// Events recorded as sent.
    pub sent: u64,
    /// Events recorded to be tried again.
    pub retried: u64,
    /// Events recorded as failed.
    pub failed: u64,
    /// Leases that it found lost.
    pub fenced: u64,
    /// How long the store took, attempts that failed not counted.
    pub took: Duration,
}

/// An event that is recorded as failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GivenUp {
    /// Its id; `None` where its row cannot be decoded.
    pub id: Option<Uuid>,
    /// Its position.
    pub sequence: Sequence,
    /// Its aggregate.
    pub key: AggregateKey,
    /// Where it was to go; `None` where its row cannot be decoded.
    pub topic: Option<Arc<str>>,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why it was given up.
    pub cause: FailureCause,
    /// What went wrong last.
    pub error: String,
    /// Its successors wait until an operator acts.
    pub parked: bool,
}

/// What a relay asks of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StoreWork {
    /// To stay alive: join and beat.
    Lease,
    /// To have a share: look at the others, claim, release.
    Membership,
    /// To read events.
    Reading,
    /// To record outcomes.
    Settling,
    /// To remove old rows.
    Retention,
}

/// A word for logs: `lease`, `membership`, `reading`, `settling`, `retention`.
impl fmt::Display for StoreWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Membership => "membership",
            Self::Reading => "reading",
            Self::Settling => "settling",
            Self::Retention => "retention",
        })
    }
}

/// A change of a relay's state, or of what it knows of store and broker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The relay has come to this phase. [`Phase::Dropped`] is not told, since the relay is gone then.
    Phase(Phase),
    /// It has joined under this id.
    Joined(RelayId),
    /// Its row in the store expired before it was renewed: it owns nothing, and joins anew.
    Buried,
    /// It owns these partitions from now on.
    Claimed(Vec<Partition>),
    /// It found that it no longer owns these partitions.
    Lost(Vec<Partition>),
    /// It gave these partitions to others.
    Released(Vec<Partition>),
    /// The broker takes no messages.
    #[non_exhaustive]
    BrokerUnavailable {
        /// What it said.
        error: PublishError,
    },
    /// The broker takes messages again.
    BrokerAvailable,
    /// The topic takes no messages.
    #[non_exhaustive]
    TopicUnavailable {
        /// Its name.
        topic: Arc<str>,
        /// What the broker said.
        error: PublishError,
    },
    /// The topic takes messages again.
    #[non_exhaustive]
    TopicAvailable {
        /// Its name.
        topic: Arc<str>,
    },
    /// These topics, and no others, are paused by an operator from now on.
    TopicsPaused(Vec<String>),
    /// The database refuses to record what became of an aggregate's event. The aggregate waits, and is tried
    /// again, at most once a minute; others go on.
    #[non_exhaustive]
    Unrecorded {
        /// The aggregate.
        key: AggregateKey,
        /// The event; `None` for a hold that holds nothing.
        sequence: Option<Sequence>,
        /// What the database said, with its causes.
        error: String,
    },
    /// All that became of the aggregate's events is recorded by now.
    #[non_exhaustive]
    Recorded {
        /// The aggregate.
        key: AggregateKey,
    },
    /// The store does not do what it is asked, and is asked again. Told once, until it does.
    #[non_exhaustive]
    StoreTrouble {
        /// What it was asked.
        work: StoreWork,
        /// What can be done about it.
        kind: StoreErrorKind,
        /// What it said, with its causes.
        error: String,
    },
    /// The store does what it is asked again.
    #[non_exhaustive]
    StoreRecovered {
        /// What it was asked.
        work: StoreWork,
    },
}
