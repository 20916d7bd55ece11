#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod cloudevents;
mod dyn_enqueue;
mod enqueue;
mod error;
mod event;
mod finding;
pub mod inbox;
pub mod jsonlines;
mod key;
pub mod memory;
pub mod publisher;
mod received;
pub mod relay;
pub mod replay;
mod retry;
mod routing;
pub mod settings;
pub mod statement;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod typed;
mod with;

// What a service types. What an implementer needs beside it stands in the modules.
pub use dyn_enqueue::DynEnqueue;
pub use enqueue::Enqueue;
pub use error::{EnqueueError, InboxError, StoreError, StoreErrorKind, chain};
pub use event::{Event, EventBuilder, EventError};
pub use finding::{Finding, Severity};
pub use inbox::{Inbox, Receipt, consume_once};
pub use jsonlines::JsonLinesPublisher;
pub use key::AggregateKey;
pub use publisher::Publisher;
pub use received::{ReceivedEvent, ReceivedEventError};
pub use relay::{Observer, Relay, RelayConfig, RelayHandle, RelayStatus, Retention};
pub use replay::{Replay, ReplayConfig};
pub use retry::RetryPolicy;
pub use routing::TopicTemplate;
pub use settings::ConfigError;
pub use store::{Disposal, EventFilter, OutboxAdmin, OutboxStore, WhenSent};
pub use trace::check_traceparent;
pub use typed::{DecodeError, EventKind, OutboxEvent};

/// Implements [`OutboxEvent`](trait@OutboxEvent) for a serde type (feature `derive`).
#[cfg(feature = "derive")]
pub use outbox_derive::OutboxEvent;
