#![doc = include_str!("../README.md")]

mod admin;
mod config;
mod enqueue;
mod error;
mod inbox;
mod micros;
mod reader;
mod schema;
mod session;
mod store;

pub use config::{PostgresConfig, PostgresConfigBuilder, PostgresConfigError, SentRows};
pub use enqueue::PostgresOutbox;
pub use inbox::{PostgresInbox, inbox_migration_sql};
pub use schema::migration_sql;
pub use store::PostgresStore;
