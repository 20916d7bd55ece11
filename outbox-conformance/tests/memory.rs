//! The whole suite on the reference store.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod common;

outbox_conformance::store_suite!(common::MemoryHarness);
