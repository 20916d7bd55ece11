//! What a service tests its own outbox code with (feature `testing`): no server, and no sleeps.
//!
//! | question | answer |
//! |---|---|
//! | What does my code enqueue? | [`RecordingOutbox`], for any transaction type, alone or around the real outbox |
//! | How do I put it in place of the real one? | [`DynEnqueue`](crate::DynEnqueue) |
//! | What would the broker get? | [`would_publish`], then [`headers`] and [`received`] |
//! | Has the relay sent it? | [`relayed`] |
//! | What does my code do when the broker fails? | [`ScriptedPublisher`] |
//! | And with a whole store, relay and broker in memory? | [`MemoryStore`](crate::memory::MemoryStore), [`MemoryInbox`](crate::memory::MemoryInbox), [`MemoryPublisher`](crate::memory::MemoryPublisher) |

mod preview;
mod recording;
mod relayed;
mod scripted;

pub use self::{
    preview::{headers, received, would_publish},
    recording::{NoDatabase, Recorded, RecordingOutbox},
    relayed::{NotRelayed, relayed},
    scripted::ScriptedPublisher,
};
