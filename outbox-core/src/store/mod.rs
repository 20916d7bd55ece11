//! The contract of a store: [`OutboxStore`], what a relay asks of a database, and [`OutboxReader`], one
//! relay's way through the table.
//!
//! # Words
//! A *relay* is one process start, known by a fresh [`RelayId`] and one row with an expiry. A *partition* is
//! a share of the aggregates. A *lease* is the right to one partition: `(partition, epoch)`; claiming raises
//! the epoch, so that an older lease is recognised and refused (*fenced*). To *settle* is to record what
//! became of events. A *hold* is a row that keeps one aggregate out of the scan until a time: a back-off, a
//! park, a pause and a requeue are all holds.
//!
//! # Clock
//! Every time that is compared in a store is the store's: it is given durations, never instants.

mod admin;
mod fetch;
mod forward;
mod headers;
mod hold;
mod membership;
mod page;
mod retention;
mod row;
mod schema;
mod settle;
mod stats;
mod status;

use std::time::Duration;

use async_trait::async_trait;

pub use self::{
    admin::{EventFilter, EventRecord, HoldRecord, OutboxAdmin},
    fetch::{DueHold, FULL_MAX, FetchRequest, Fetched, HoldEnd},
    headers::{decode_headers, readable_headers},
    hold::Hold,
    membership::{Claimed, Epoch, Lease, Membership, Owner, PARTITIONS, Partition, PartitionView, RelayId},
    page::Page,
    retention::{Disposal, PurgeRequest, Purged, WhenSent},
    row::{Row, Sequence, StoredEvent},
    schema::Schema,
    settle::{
        ERROR_BYTES_MAX, Outcome, SettleRequest, Settled, Settlement, Successors, Unhold, storable_error,
    },
    stats::{COUNT_MAX, Count, QuickStats, StoreStats},
    status::{FailureCause, HoldReason, Status},
};
pub use crate::event::{
    CONTENT_TYPE_DEFAULT, HEADERS_BYTES_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX_DEFAULT, check_headers,
};
use crate::{Finding, StoreError};

/// What a store can do. Declared, and disproved by the conformance suite where it is untrue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCapabilities {
    /// How many partitions there are: [`PARTITIONS`], or 1 where only one relay
    /// makes sense.
    pub partitions: u16,
    /// The most settlements that one settle should have, where more would be slower: a relay keeps to it.
    /// `None`, the default, leaves it to the relay's settings.
    pub settle_events_max: Option<usize>,
}

impl StoreCapabilities {
    /// Capabilities of a store with this many partitions.
    pub fn new(partitions: u16) -> Self {
        Self { partitions, settle_events_max: None }
    }

    /// Declares that a settle should have no more settlements than this.
    #[must_use]
    pub fn with_settle_events_max(mut self, settle_events_max: usize) -> Self {
        self.settle_events_max = Some(settle_events_max);
        self
    }
}

/// What a relay asks of a database.
///
/// All methods may be called concurrently. A method that is dropped before it answers has either happened or
/// not; repeating any of them is safe. No method runs DDL.
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

    /// Keeps the relay alive for another `ttl` from now, and removes the rows of relays that have expired.
    /// False: its row had expired or is gone; it is *buried*, owns nothing, and must join under a new id.
    /// Never revives an expired row.
    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError>;

    /// Reads the membership. Writes nothing.
    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError>;

    /// Claims partitions, each by compare-and-set on the epoch that was seen, which it raises by one. Those
    /// that have changed, or whose owner is alive, are left out of the answer. A relay that is not alive
    /// claims nothing.
    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError>;

    /// Gives leases back, so that the next claim does not take the owner for dead. Those that are lost are
    /// left alone.
    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError>;

    /// Removes the relay's row, after releasing whatever it still owns.
    async fn leave(&self, relay: RelayId) -> Result<(), StoreError>;

    /// A new reader for this relay. The relay has one at a time, and makes a new one after an error of the
    /// old.
    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError>;

    /// Records that the event is about to be attempted, as attempt number `attempts`, under the lease. False:
    /// fenced, nothing was recorded. An event that is no longer pending is left alone, and the result is
    /// still true.
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
    /// settlement applies only to a row that is still pending; one that is not is left alone, so that
    /// repeating a settle whose answer was lost changes nothing. Settlements apply in ascending sequence
    /// ([`SettleRequest::settlements_in_order`]), each changing its aggregate's hold by the rule of
    /// [`Hold::settled`]; then unholds apply, by [`Hold::unheld`].
    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError>;

    /// Removes one batch of final rows that are old enough, repeating the condition on the status in the
    /// statement that removes, so that an event that is requeued meanwhile stays.
    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError>;

    /// Numbers whose cost does not grow with the rows that were sent: each is counted up to [`COUNT_MAX`] at
    /// most, over a bounded number of rows.
    async fn quick_stats(&self) -> Result<QuickStats, StoreError>;

    /// Numbers that count every row.
    async fn stats(&self) -> Result<StoreStats, StoreError>;
}

/// One relay's way through the table.
///
/// # The fetch contract
/// For every aggregate, what is returned together with what the relay holds (`known`) is closed under
/// *earlier*: no pending, due, visible row of the aggregate with a lower sequence than a returned one is
/// missing. An aggregate with a hold contributes no `rows`, whether the hold is due or not. Rows of different
/// aggregates need no order. A fetch writes nothing that another process could mind.
///
/// Every committed row is returned sooner or later: rows that commit late, below rows that were returned
/// already; rows whose scheduled time comes; rows of a partition that was claimed; rows of an aggregate whose
/// hold was removed. A store may do so by scanning from the lowest pending row each time, which needs no
/// memory, or by a read position, which is what a reader's state is for.
///
/// # What the relay promises
/// Rows it was given stay in `known` until they are settled and any fetch that was running at that time has
/// returned. Rows it drops without settling them are of an aggregate that has a hold by then, or of a
/// partition whose lease is gone: it asks for them again by [`FetchRequest::ended_holds`], or by claiming the
/// partition anew. A due hold that it was given is answered by one `HoldEnd`, in a later request, after the
/// settle has committed; until then the reader need not return it again and must return nothing else of that
/// aggregate.
#[async_trait]
pub trait OutboxReader: Send {
    /// Reads the next rows. After an error the reader is discarded.
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError>;
}
