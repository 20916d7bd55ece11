//! The whole suite on the reference store by a clock that no test controls, as it is with every database.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod common;

outbox_conformance::store_suite!(common::WaitingHarness);
