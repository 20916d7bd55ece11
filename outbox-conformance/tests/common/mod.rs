//! The harnesses of the store and the publisher in memory.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "a module that several test programs share")]

mod publishers;
mod stores;

pub use publishers::{MemoryPublisherHarness, stored};
pub use stores::{ManualClock, MemoryHarness, WaitingHarness};
