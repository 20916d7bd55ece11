//! The inbox half of the suite on the reference inbox.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod common;

outbox_conformance::inbox_suite!(common::inbox::MemoryInboxHarness);
