//! The harnesses of the store, the publisher and the inbox in memory.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "a module that several test programs share")]

pub mod inbox;
mod publishers;
mod stores;

pub use publishers::{MemoryPublisherHarness, stored};
pub use stores::{ManualClock, MemoryHarness, WaitingHarness};
