#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
mod admin;
mod codec;
mod config;
mod database;
mod driver;
mod enqueue;
mod error;
mod inbox;
mod reader;
mod schema;
mod store;

pub use adapter::PostgresAdapter;
pub use config::{PostgresConfig, PostgresConfigBuilder, SentRows};
pub use driver::Postgres;
pub use enqueue::PostgresOutbox;
pub use inbox::{PostgresInbox, inbox_migration_sql};
pub use schema::migration_sql;
pub use store::PostgresStore;
