#![doc = include_str!("../README.md")]

mod admin;
mod config;
mod document;
mod enqueue;
mod error;
mod holds;
mod inbox;
mod reader;
mod schema;
mod sequence;
mod store;
mod transaction;

pub use config::{MongoConfig, MongoConfigBuilder, MongoConfigError};
pub use enqueue::MongoOutbox;
pub use inbox::{MongoInbox, inbox_migration_script};
pub use schema::migration_script;
pub use store::MongoStore;
