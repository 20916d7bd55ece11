#![doc = include_str!("../README.md")]

mod admin;
mod codec;
mod config;
mod database;
mod enqueue;
mod error;
mod inbox;
mod reader;
mod schema;
mod store;

pub use config::{PostgresConfig, PostgresConfigBuilder, PostgresConfigError, SentRows};
pub use enqueue::PostgresOutbox;
pub use inbox::{PostgresInbox, inbox_migration_sql};
pub use schema::migration_sql;
pub use store::PostgresStore;
