//! The publisher half: what a publisher is held against.

mod call;
mod clauses;
mod harness;
mod proxy;
mod run;
mod stage;

pub use clauses::PUBLISHER_CLAUSES;
pub use harness::{Outage, Oversized, PublisherHarness, StoredMessage};
pub use proxy::Proxy;
pub use run::{PublisherClause, check_publisher_clause, run_publisher_clause};
