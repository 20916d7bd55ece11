#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod cloudevents;
mod dyn_enqueue;
mod enqueue;
mod error;
mod event;
mod finding;
mod inbox;
mod jsonlines;
mod key;
mod memory;
mod publisher;
mod received;
mod relay;
mod replay;
mod retry;
mod routing;
pub mod settings;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod typed;
mod with;

pub use clock::{Clock, Monotonic, Task, TokioClock};
pub use dyn_enqueue::DynEnqueue;
pub use enqueue::Enqueue;
pub use error::{EnqueueError, InboxError, StoreError, StoreErrorKind, chain};
pub use event::{
    CONTENT_TYPE_DEFAULT, Event, EventBuilder, EventError, HEADERS_BYTES_MAX, NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX_DEFAULT, check_headers,
};
pub use finding::{Finding, Severity};
pub use inbox::{
    EventIdentity, Inbox, PURGE_AGE_MIN, Receipt, check_consumer, check_purge_age, consume_once,
};
pub use jsonlines::{FileAdapter, JsonLinesPublisher, StdoutAdapter};
pub use key::AggregateKey;
pub use memory::{MemoryInbox, MemoryPublisher, MemoryStore, MemoryTransaction};
pub use publisher::{
    Message, PublishError, PublishErrorKind, PublishErrorScope, Publisher, PublisherCapabilities, Report,
    Reporter, SharedPublisher, Stored,
};
pub use received::{ReceivedEvent, ReceivedEventError};
pub use relay::{
    Availability, Change, GivenUp, NotReady, ObservedFetch, ObservedPublish, ObservedSettle, Observer, Phase,
    Relay, RelayConfig, RelayEnded, RelayHandle, RelayStatus, Retention, StoreWork,
};
pub use replay::{
    REPLAY_HEADER, Refusal, Replay, ReplayConfig, ReplayEnd, ReplayEnded, ReplayHandle, ReplayPlan,
    ReplayProgress,
};
pub use retry::{GiveUp, RetryDecision, RetryPolicy};
pub use routing::{RoutingError, TemplateError, TopicTemplate};
pub use settings::ConfigError;
pub use store::{
    Claimed, Disposal, DueHold, Epoch, EventFilter, EventRecord, FULL_MAX, FailureCause, FetchRequest,
    Fetched, HoldEnd, HoldReason, HoldRecord, Lease, Membership, OutboxAdmin, OutboxReader, OutboxStore,
    Outcome, Owner, PARTITIONS, Partition, PartitionView, PurgeRequest, Purged, RelayId, Row, Sequence,
    SettleRequest, Settled, Settlement, Status, StoreCapabilities, StoreStats, StoredEvent, Successors,
    Unhold, WhenSent,
};
pub use trace::check_traceparent;
pub use typed::{DecodeError, EventKind, OutboxEvent};

/// Implements [`OutboxEvent`](trait@OutboxEvent) for a serde type (feature `derive`).
#[cfg(feature = "derive")]
pub use outbox_derive::OutboxEvent;
