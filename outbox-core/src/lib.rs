//! The traits, the event and the relay engine of the outbox framework. Names no database and no broker.

mod admin;
mod clock;
mod enqueue;
mod error;
mod event;
mod memory;
mod publisher;
mod store;

pub use admin::{EventFilter, EventRecord, HoldRecord, OutboxAdmin};
pub use clock::{Clock, Monotonic, Task, TokioClock};
pub use enqueue::Enqueue;
pub use error::{EnqueueError, Finding, Severity, StoreError, StoreErrorKind};
pub use event::{
    AggregateKey, CONTENT_TYPE_DEFAULT, Event, EventBuilder, EventError, FailureCause, HEADERS_BYTES_MAX,
    NAME_BYTES_MAX, PARTITIONS, PAYLOAD_BYTES_MAX_DEFAULT, Partition, Row, Sequence, Status, StoredEvent,
    check_headers,
};
pub use memory::{MemoryPublisher, MemoryStore, MemoryTransaction};
pub use publisher::{
    Message, PublishError, PublishErrorKind, PublishErrorScope, Publisher, PublisherCapabilities, Report,
    Reporter, Stored,
};
pub use store::{
    Claimed, Disposal, DueHold, Epoch, FetchRequest, Fetched, HoldEnd, HoldReason, Lease, Membership,
    OutboxReader, OutboxStore, Outcome, Owner, PartitionView, PurgeRequest, Purged, RelayId, SettleRequest,
    Settled, Settlement, StoreCapabilities, StoreStats, Successors, Unhold, WhenSent,
};
