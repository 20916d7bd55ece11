//! The harnesses of the store, the publisher and the inbox in memory.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "a module that several test programs share")]

mod inboxes;
mod publishers;
mod stores;

pub use inboxes::{MemoryInboxHarness, OpenInbox};
pub use publishers::{MemoryPublisherHarness, stored};
pub use stores::{ManualClock, MemoryHarness, WaitingHarness};
