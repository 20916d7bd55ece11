//! The reference store, inbox and publisher, in memory: [`MemoryStore`], [`MemoryInbox`] and
//! [`MemoryPublisher`].
//!
//! They keep the whole contract, and nothing survives the process. They are what an application tests its own
//! code with, what the simulation runs on, and what an implementer reads where the prose of the contract
//! leaves a doubt.
//!
//! Nothing in here is random and nothing waits: the same calls in the same order give the same answers, relay
//! ids and order of rows included, so that a simulation can replay a run exactly.

mod admin;
mod database;
mod inbox;
mod publisher;
mod reader;
mod receipts;
mod settle;
mod state;
mod store;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test has the real time")]
mod tests;
mod time;
mod transaction;

pub use inbox::MemoryInbox;
pub use publisher::MemoryPublisher;
pub use store::MemoryStore;
pub use transaction::MemoryTransaction;
