//! The traits, the event and the relay engine of the outbox framework. Names no database and no broker.

mod admin;
mod clock;
pub mod cloudevents;
mod enqueue;
mod error;
mod event;
mod inbox;
mod jsonlines;
mod memory;
mod publisher;
mod received;
mod relay;
mod replay;
mod retry;
mod routing;
mod store;

pub use admin::{EventFilter, EventRecord, HoldRecord, OutboxAdmin};
pub use clock::{Clock, Monotonic, Task, TokioClock};
pub use enqueue::Enqueue;
pub use error::{EnqueueError, Finding, InboxError, Severity, StoreError, StoreErrorKind};
pub use event::{
    AggregateKey, CONTENT_TYPE_DEFAULT, Event, EventBuilder, EventError, FailureCause, HEADERS_BYTES_MAX,
    NAME_BYTES_MAX, PARTITIONS, PAYLOAD_BYTES_MAX_DEFAULT, Partition, Row, Sequence, Status, StoredEvent,
    check_headers,
};
pub use inbox::{
    EventIdentity, Inbox, PURGE_AGE_MIN, Receipt, check_consumer, check_purge_age, consume_once,
};
pub use jsonlines::JsonLinesPublisher;
pub use memory::{MemoryInbox, MemoryPublisher, MemoryStore, MemoryTransaction};
pub use publisher::{
    Message, PublishError, PublishErrorKind, PublishErrorScope, Publisher, PublisherCapabilities, Report,
    Reporter, SharedPublisher, Stored,
};
pub use received::{ReceivedEvent, ReceivedEventError};
pub use relay::{ConfigError, Phase, Relay, RelayConfig, RelayHandle, RelayStatus, Retention};
pub use replay::{REPLAY_HEADER, Refusal, Replay, ReplayConfig, ReplayEnd, ReplayPlan, ReplayProgress};
pub use retry::{GiveUp, RetryDecision, RetryPolicy};
pub use routing::{RoutingError, TemplateError, TopicTemplate};
pub use store::{
    Claimed, Disposal, DueHold, Epoch, FULL_MAX, FetchRequest, Fetched, HoldEnd, HoldReason, Lease,
    Membership, OutboxReader, OutboxStore, Outcome, Owner, PartitionView, PurgeRequest, Purged, RelayId,
    SettleRequest, Settled, Settlement, StoreCapabilities, StoreStats, Successors, Unhold, WhenSent,
};
