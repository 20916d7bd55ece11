#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod inbox;
mod publisher;
mod run;
mod store;
mod table;
pub mod testing;
mod violation;

pub use inbox::{
    INBOX_CLAUSES, InboxClause, InboxHarness, InboxTransaction, check_inbox_clause, run_inbox_clause,
};
pub use publisher::{
    Outage, Oversized, PUBLISHER_CLAUSES, Proxy, PublisherClause, PublisherHarness, StoredMessage,
    check_publisher_clause, run_publisher_clause,
};
pub use store::{
    OpenTransaction, STORE_CLAUSES, StoreClause, StoreHarness, check_store_clause, run_store_clause,
};
pub use violation::Violation;
