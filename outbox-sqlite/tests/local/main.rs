//! What is this store's own: its transactions, its tables, its reader. The contract that all stores share is proved by
//! the conformance suite.

mod common;
mod enqueue;
mod reader;
mod schema;
