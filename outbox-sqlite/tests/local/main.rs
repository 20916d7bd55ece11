//! What is this store's own: its transactions, its tables, its reader. The contract that all stores share is
//! proved by the conformance suite.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod archive;
mod common;
mod contract;
mod enqueue;
mod hot;
mod reader;
mod schema;
mod upgrade;
