//! The shared suite of the outbox framework: it proves, clause by clause, that a store keeps the contract of
//! [`OutboxStore`], [`OutboxReader`](outbox_core::OutboxReader) and [`OutboxAdmin`].
//!
//! Whoever writes a store implements [`StoreHarness`] and puts one line into a test file:
//!
//! ```text
//! outbox_conformance::store_suite!(MyHarness);
//! ```
//!
//! An inbox has its own half of the suite: [`InboxHarness`], [`inbox_suite!`] and [`INBOX_CLAUSES`].
//!
//! It becomes one `#[test]` for each of [`STORE_CLAUSES`]. They run in parallel, each on a store of its own. A failure
//! names the clause, what was expected, and the sequences that are missing or too many.
//!
//! The suite asserts nothing about how long anything takes. Where a contract says *sooner or later* it asks again, for
//! at most ten seconds by the store's clock; where something must not happen it asks a few times more.

mod clauses;
mod harness;
mod inbox;
mod relay;
mod run;
mod stage;
mod violation;

pub use clauses::STORE_CLAUSES;
pub use harness::{OpenTransaction, StoreHarness};
pub use inbox::{
    INBOX_CLAUSES, InboxClause, InboxHarness, InboxTransaction, check_inbox_clause, run_inbox_clause,
};
pub use run::{Clause, check_store_clause, run_store_clause};
pub use violation::Violation;

#[cfg(doc)]
use outbox_core::{OutboxAdmin, OutboxStore};
