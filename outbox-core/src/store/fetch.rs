//! What one fetch asks for, and what it found.

use std::time::Duration;

use super::{Lease, Partition, Row, Sequence};
use crate::{AggregateKey, with::with};

/// The most aggregates that [`FetchRequest::full`] names.
pub const FULL_MAX: usize = 64;

/// What one fetch asks for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct FetchRequest {
    /// Every lease whose rows are wanted. A lease that the reader has not seen before is read from the
    /// beginning.
    pub leases: Vec<Lease>,
    /// The sequences that the relay holds: fetched, not yet settled, ascending. A hint for the reader, which
    /// need not return them again and must not treat them as gone; the relay ignores those it gets twice.
    pub known: Vec<Sequence>,
    /// Due holds that the reader returned earlier and that have been dealt with: see [`HoldEnd`].
    pub ended_holds: Vec<HoldEnd>,
    /// Aggregates of which the relay holds as much as it wants, at most [`FULL_MAX`]: none of their rows are
    /// to be returned, so that a hot aggregate does not take the room of the others. Once an aggregate is not
    /// named any more, it is read on from where it was left, what lies behind the read position first. Due
    /// holds are returned all the same.
    pub full: Vec<AggregateKey>,
    /// The most rows to return, held events included; at least 1.
    pub events_max: usize,
    /// Stop adding rows once their [`Row::bytes`] reach this. One row is returned however large it is.
    pub bytes_max: usize,
}

impl FetchRequest {
    /// A request for rows of these leases of which the relay holds none yet.
    pub fn new(leases: Vec<Lease>, events_max: usize, bytes_max: usize) -> Self {
        Self { leases, events_max, bytes_max, ..Self::default() }
    }
}

/// What became of a due hold that a reader returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HoldEnd {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// True: the hold was removed by a settle that has committed, and everything of this aggregate that is
    /// pending must be returned from now on, what lies behind the read position first. False: the aggregate
    /// is held again.
    pub removed: bool,
}

impl HoldEnd {
    /// That a settle has removed the hold, or that the aggregate is held again.
    pub fn new(key: AggregateKey, partition: Partition, removed: bool) -> Self {
        Self { key, partition, removed }
    }
}

/// A hold whose time has come.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DueHold {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// The event that is held, as the hold's row names it; `None` for a plain pause.
    pub sequence: Option<Sequence>,
    /// That event, if it is still pending and its time has come; else the hold holds nothing and is to be
    /// removed.
    pub row: Option<Row>,
}

impl DueHold {
    /// A due hold of `sequence`, with its event if that is still to be delivered.
    pub fn new(
        key: AggregateKey,
        partition: Partition,
        sequence: Option<Sequence>,
        row: Option<Row>,
    ) -> Self {
        Self { key, partition, sequence, row }
    }
}

/// What one fetch found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Fetched {
    /// Pending, due rows of aggregates without a hold, in ascending order within each aggregate.
    pub rows: Vec<Row>,
    /// Holds whose time has come, at most a bounded number at a time, the longest due first.
    pub due_holds: Vec<DueHold>,
    /// Aggregates that an operator has paused since this reader's previous fetch. May repeat while the pause
    /// lasts, and may lag by a second. Rows of theirs in the same answer were read before, and are dropped
    /// with the others.
    pub paused: Vec<AggregateKey>,
    /// A limit was hit: ask again at once.
    pub more: bool,
    /// When the next hold or scheduled event becomes due, counted from now, if that is known.
    pub next_due: Option<Duration>,
}

with!(FetchRequest {
    with_leases leases: Vec<Lease>,
    with_known known: Vec<Sequence>,
    with_ended_holds ended_holds: Vec<HoldEnd>,
    with_full full: Vec<AggregateKey>,
    with_events_max events_max: usize,
    with_bytes_max bytes_max: usize,
});

with!(DueHold { with_row row: Option<Row> });

with!(Fetched {
    with_rows rows: Vec<Row>,
    with_due_holds due_holds: Vec<DueHold>,
    with_paused paused: Vec<AggregateKey>,
    with_more more: bool,
    with_next_due next_due: Option<Duration>,
});
