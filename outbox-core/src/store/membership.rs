//! Relays, partitions and the leases that bind one to the other.

use uuid::Uuid;

use crate::with::with;

/// The share of the table an event belongs to: `hash(aggregate) mod PARTITIONS`, computed by the store.
pub type Partition = u16;

/// How many partitions a store with several relays has. A constant, so that it cannot be set differently in
/// two processes; SQLite, which has one writer, has one partition.
pub const PARTITIONS: u16 = 64;

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

/// Who owns a partition, seen by the relay that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The relay that asked.
    Mine,
    /// Another relay whose row has not expired.
    Other,
    /// No relay, or one that has expired or is gone.
    Free,
}

/// One partition as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionView {
    /// The partition.
    pub partition: Partition,
    /// Its epoch, for the compare-and-set of a claim.
    pub epoch: Epoch,
    /// Who owns it.
    pub owner: Owner,
}

impl PartitionView {
    /// The partition as it is seen.
    pub fn new(partition: Partition, epoch: Epoch, owner: Owner) -> Self {
        Self { partition, epoch, owner }
    }
}

/// What a relay sees of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
pub struct Claimed {
    /// The lease.
    pub lease: Lease,
    /// The previous owner did not release it: it expired, so it may have died of one of the events.
    pub owner_died: bool,
}

impl Claimed {
    /// A claim that was won.
    pub fn new(lease: Lease, owner_died: bool) -> Self {
        Self { lease, owner_died }
    }
}

with!(Membership {
    with_relays_live relays_live: u32,
    with_partitions partitions: Vec<PartitionView>,
    with_paused_topics paused_topics: Vec<String>,
});
