//! The contract of a store: [`OutboxStore`], what a relay asks of a database, and [`OutboxReader`], one relay's
//! way through the table.
//!
//! # Words
//! A *relay* is one process start, known by a fresh [`RelayId`] and one row with an expiry. A *partition* is a share
//! of the aggregates. A *lease* is the right to one partition: `(partition, epoch)`; claiming raises the epoch, so
//! that an older lease is recognised and refused (*fenced*). To *settle* is to record what became of events. A *hold*
//! is a row that keeps one aggregate out of the scan until a time: a back-off, a park, a pause and a requeue are all
//! holds.
//!
//! # Clock
//! Every time that is compared in a store is the store's: it is given durations, never instants.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use uuid::Uuid;

use crate::{AggregateKey, FailureCause, Finding, Partition, Row, Sequence, StoreError};

/// One start of one relay process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub Uuid);

/// Rises with every claim of a partition, never falls.
pub type Epoch = i64;

/// The right to publish and settle the events of one partition, until a later epoch is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    /// The partition.
    pub partition: Partition,
    /// The epoch that the claim raised it to.
    pub epoch: Epoch,
}

/// What a store can do. Declared, and disproved by the conformance suite where it is untrue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCapabilities {
    /// How many partitions there are: [`PARTITIONS`](crate::PARTITIONS), or 1 where only one relay makes sense.
    pub partitions: u16,
    /// `wakeups` gives a stream.
    pub wakeups: bool,
}

impl StoreCapabilities {
    /// Capabilities of a store with this many partitions and no wake-ups.
    pub fn new(partitions: u16) -> Self {
        Self { partitions, wakeups: false }
    }

    /// Declares that `wakeups` gives a stream.
    #[must_use]
    pub fn with_wakeups(mut self) -> Self {
        self.wakeups = true;
        self
    }
}

/// Who owns a partition, seen by the relay that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The relay that asked.
    Mine,
    /// Another relay whose row has not expired.
    Other,
    /// Nobody, or a relay that has expired or is gone.
    Free,
}

/// One partition as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionView {
    /// The partition.
    pub partition: Partition,
    /// Its epoch, for the compare-and-set of a claim.
    pub epoch: Epoch,
    /// Who owns it.
    pub owner: Owner,
}

/// What a relay sees of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// Relays that have not expired, the one that asked included if it is alive.
    pub relays_live: u32,
    /// Every partition.
    pub partitions: Vec<PartitionView>,
    /// Topics that an operator has paused.
    pub paused_topics: Vec<String>,
}

/// A partition that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The lease.
    pub lease: Lease,
    /// The previous owner did not release it: it expired, so it may have died of one of the events.
    pub owner_died: bool,
}

/// The most aggregates that [`FetchRequest::full`] names.
pub const FULL_MAX: usize = 64;

/// What one fetch asks for.
#[derive(Debug, Clone, Default)]
pub struct FetchRequest {
    /// Every lease whose rows are wanted. A lease that the reader has not seen before is read from the beginning.
    pub leases: Vec<Lease>,
    /// The sequences that the relay holds: fetched, not yet settled, ascending. A hint for the reader, which need
    /// not return them again and must not treat them as gone; the relay ignores those it gets twice.
    pub known: Vec<Sequence>,
    /// Due holds that the reader returned earlier and that have been dealt with: see [`HoldEnd`].
    pub ended_holds: Vec<HoldEnd>,
    /// Aggregates of which the relay holds as much as it wants, at most [`FULL_MAX`]: none of their rows are to be
    /// returned, so that a hot aggregate does not take the room of the others. Once an aggregate is not named any
    /// more, it is read on from where it was left, what lies behind the read position first. Due holds are returned all the same.
    pub full: Vec<AggregateKey>,
    /// The most rows to return, held events included; at least 1.
    pub events_max: usize,
    /// Stop adding rows once their [`Row::bytes`] reach this. One row is returned however large it is.
    pub bytes_max: usize,
}

/// What became of a due hold that a reader returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldEnd {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// True: the hold was removed by a settle that has committed, and everything of this aggregate that is pending must be returned
    /// from now on, what lies behind the read position first. False: the aggregate is held again.
    pub removed: bool,
}

/// A hold whose time has come.
#[derive(Debug, Clone)]
pub struct DueHold {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// The event that is held, as the hold's row names it; `None` for a plain pause.
    pub sequence: Option<Sequence>,
    /// That event, if it is still pending and its time has come; else the hold holds nothing and is to be removed.
    pub row: Option<Row>,
}

/// What one fetch found.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Pending, due rows of aggregates without a hold, in ascending order within each aggregate.
    pub rows: Vec<Row>,
    /// Holds whose time has come, at most a bounded number at a time, the longest due first.
    pub due_holds: Vec<DueHold>,
    /// Aggregates that an operator has paused since this reader's previous fetch. May repeat while the pause lasts,
    /// and may lag by a second. Rows of theirs in the same answer were read before, and are dropped with the others.
    pub paused: Vec<AggregateKey>,
    /// A limit was hit: ask again at once.
    pub more: bool,
    /// When the next hold or scheduled event becomes due, counted from now, if that is known.
    pub next_due: Option<Duration>,
}

/// Why an aggregate is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HoldReason {
    /// Its event failed and is tried again later.
    Backoff,
    /// The topic of its event is unavailable or paused; no attempt was spent.
    Topic,
    /// Its event was given up and policy keeps the successors waiting for an operator.
    Parked,
    /// An operator put a failed event back.
    Requeued,
    /// An operator paused the aggregate.
    Paused,
}

impl HoldReason {
    /// The word a store keeps for this reason, the same in every store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::Topic => "topic",
            Self::Parked => "parked",
            Self::Requeued => "requeued",
            Self::Paused => "paused",
        }
    }

    /// The reason of a stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Backoff, Self::Topic, Self::Parked, Self::Requeued, Self::Paused]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

/// What becomes of the successors of an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Successors {
    /// They go on.
    Release,
    /// They wait behind a hold without end, until an operator acts.
    Park,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The broker acknowledged this very message.
    Sent,
    /// To be tried again: the aggregate is held behind this event.
    Retry {
        /// How long to hold it, by the store's clock from the time of the settle.
        after: Duration,
        /// What went wrong; kept as `last_error`.
        error: String,
        /// Why it is held: [`HoldReason::Backoff`] or [`HoldReason::Topic`].
        reason: HoldReason,
    },
    /// Given up.
    Failed {
        /// Why.
        cause: FailureCause,
        /// What went wrong; kept as `last_error`.
        error: String,
        /// What becomes of its successors.
        successors: Successors,
    },
}

/// An outcome to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The event.
    pub sequence: Sequence,
    /// Its partition; the lease is found by it.
    pub partition: Partition,
    /// Its aggregate.
    pub key: AggregateKey,
    /// The number of attempts to be stored. Absolute, so that settling twice counts once.
    pub attempts: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// A hold that holds nothing any more and is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhold {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// The hold's event as it was read, so that a hold that has changed since is not removed.
    pub sequence: Option<Sequence>,
}

/// What becomes of a row whose event is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenSent {
    /// It stays, with status `sent`, until retention removes it.
    #[default]
    Keep,
    /// It is deleted by the settle itself.
    Delete,
    /// It is moved to the archive by the settle itself.
    Archive,
}

/// What one settle records, all of it in one transaction.
#[derive(Debug, Clone)]
pub struct SettleRequest {
    /// Who settles.
    pub relay: RelayId,
    /// A lease for every partition that occurs in `settlements` or `unholds`.
    pub leases: Vec<Lease>,
    /// What became of which event; one entry an event.
    pub settlements: Vec<Settlement>,
    /// Holds to be removed.
    pub unholds: Vec<Unhold>,
    /// What becomes of sent rows.
    pub when_sent: WhenSent,
}

/// What a settle did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// The partitions whose lease is lost. Nothing of theirs was changed; everything else was recorded.
    pub fenced: Vec<Partition>,
}

/// What retention does with rows of a final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposal {
    /// Delete them.
    Delete,
    /// Move them to the archive table.
    Archive,
}

/// Which rows of which age retention removes; one small batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeRequest {
    /// Sent rows older than this, counted from `sent_at`.
    pub sent: Option<(Duration, Disposal)>,
    /// Failed rows older than this, counted from the failure.
    pub failed: Option<(Duration, Disposal)>,
    /// The most rows of each state to remove in this call.
    pub rows_max: u32,
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Sent rows removed.
    pub sent: u64,
    /// Failed rows removed.
    pub failed: u64,
}

/// Numbers for a status page. Counting a large table is slow: not for the relay's loop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Pending events, due or not, held or not.
    pub pending: u64,
    /// The age of the oldest pending event, by the store's clock.
    pub oldest_pending_age: Option<Duration>,
    /// Sent events that are still in the table.
    pub sent: u64,
    /// Failed events.
    pub failed: u64,
    /// Aggregates with a hold.
    pub holds: u64,
    /// Relays that have not expired.
    pub relays_live: u32,
    /// Partitions that a live relay owns.
    pub partitions_owned: u32,
}

/// What a relay asks of a database.
///
/// All methods may be called concurrently. A method that is dropped before it answers has either happened or not;
/// repeating any of them is safe. No method runs DDL.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// What this store can do.
    fn capabilities(&self) -> StoreCapabilities;

    /// Looks for whatever would break a guarantee, and names all of it at once. Changes nothing.
    ///
    /// # Errors
    /// Only for what keeps it from looking; an unreachable server is a finding.
    async fn check(&self) -> Result<Vec<Finding>, StoreError>;

    /// Enters a relay under a fresh id, alive for `ttl`.
    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError>;

    /// Keeps the relay alive for another `ttl` from now, and removes the rows of relays that have expired. False: its row had expired or
    /// is gone; it is *buried*, owns nothing, and must join under a new id. Never revives an expired row.
    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError>;

    /// Reads the membership. Writes nothing.
    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError>;

    /// Claims partitions, each by compare-and-set on the epoch that was seen, which it raises by one. Those that
    /// have changed, or whose owner is alive, are left out of the answer. A relay that is not alive claims nothing.
    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError>;

    /// Gives leases back, so that the next claim does not take the owner for dead. Those that are lost are left
    /// alone.
    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError>;

    /// Removes the relay's row, after releasing whatever it still owns.
    async fn leave(&self, relay: RelayId) -> Result<(), StoreError>;

    /// A new reader for this relay. The relay has one at a time, and makes a new one after an error of the old.
    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError>;

    /// Records that the event is about to be attempted, as attempt number `attempts`, under the lease. False:
    /// fenced, nothing was recorded. An event that is no longer pending is left alone, and that is true as well.
    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError>;

    /// Records outcomes, all in one transaction, each under the lease of its partition.
    ///
    /// The lease row is locked or written, and matched by owner and epoch; merely reading it is not enough. A
    /// settlement applies only to a row that is still pending; one that is not is left alone, so that repeating a
    /// settle whose answer was lost changes nothing. Settlements apply in ascending sequence, then unholds. Holds follow these rules, `hold` being the aggregate's row:
    ///
    /// - `Sent`, or `Failed` with [`Successors::Release`]: if `hold.sequence` is this event's, the hold is removed,
    ///   unless it is paused, in which case it stays as a plain pause.
    /// - `Retry`: no hold: `(sequence, now + after, reason)`. A hold of the same event: its time and reason
    ///   are replaced. A hold of another event: the lower sequence and the later time. A pause stays a pause.
    /// - `Failed` with [`Successors::Park`]: as `Retry` with a time without end and [`HoldReason::Parked`].
    /// - an [`Unhold`]: the hold is removed if it still has that sequence, is due, is not paused, and its event is not pending and due.
    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError>;

    /// Removes one batch of final rows that are old enough, repeating the condition on the status in the statement
    /// that removes, so that an event that is requeued meanwhile stays.
    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError>;

    /// Numbers for a status page.
    async fn stats(&self) -> Result<StoreStats, StoreError>;

    /// A stream that yields when there may be something new to read, where the store has one. Spurious and missed
    /// wake-ups are harmless.
    fn wakeups(&self) -> Option<BoxStream<'static, ()>> {
        None
    }
}

/// One relay's way through the table.
///
/// # The fetch contract
/// For every aggregate, what is returned together with what the relay holds (`known`) is closed under *earlier*: no
/// pending, due, visible row of the aggregate with a lower sequence than a returned one is missing. An aggregate
/// with a hold contributes no `rows`, whether the hold is due or not. Rows of different aggregates need no order.
/// A fetch writes nothing that another process could mind.
///
/// Every committed row is returned sooner or later: rows that commit late, below rows that were returned already;
/// rows whose scheduled time comes; rows of a partition that was claimed; rows of an aggregate whose hold was removed.
/// A store may do so by scanning from the lowest pending row each time, which needs no memory, or by a read
/// position, which is what a reader's state is for.
///
/// # What the relay promises
/// Rows it was given stay in `known` until they are settled and any fetch that was running at that time has
/// returned. Rows it drops without settling them are of an aggregate that has a hold by then, or of a partition whose lease is gone:
/// it asks for them again by [`FetchRequest::ended_holds`], or by claiming the partition anew. A due hold that it
/// was given is answered by one `HoldEnd`, in a later request, after the settle has committed; until then the reader need not return it again
/// and must return nothing else of that aggregate.
#[async_trait]
pub trait OutboxReader: Send {
    /// Reads the next rows. After an error the reader is discarded.
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError>;
}
