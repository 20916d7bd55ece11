//! The whole suite on the reference store.

mod common;

outbox_conformance::store_suite!(common::MemoryHarness);
