//! The inbox half: what an inbox is held against.

mod clauses;
mod harness;
mod run;
mod stage;

pub use clauses::INBOX_CLAUSES;
pub use harness::{InboxHarness, InboxTransaction};
pub use run::{InboxClause, check_inbox_clause, run_inbox_clause};
