//! The store half: what a store is held against.

mod clauses;
mod harness;
mod model;
mod relay;
mod run;
mod stage;
mod storm;

pub use clauses::STORE_CLAUSES;
pub use harness::{OpenTransaction, StoreHarness};
pub use run::{StoreClause, check_store_clause, run_store_clause};
