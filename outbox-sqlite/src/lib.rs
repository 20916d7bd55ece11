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

pub use adapter::SqliteAdapter;
pub use config::{BUSY_TIMEOUT_DEFAULT, PREFIX_DEFAULT, SqliteConfig, SqliteConfigBuilder};
pub use driver::Sqlite;
pub use enqueue::SqliteOutbox;
pub use inbox::{INBOX_SCHEMA_VERSION, SqliteInbox, inbox_migration_sql};
pub use schema::{SCHEMA_VERSION, migrate, migration_sql};
pub use store::SqliteStore;
