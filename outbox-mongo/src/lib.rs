#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
mod admin;
mod codec;
mod config;
mod database;
mod enqueue;
mod error;
mod holds;
mod inbox;
mod reader;
mod schema;
mod store;

pub use adapter::MongoAdapter;
pub use config::{MongoConfig, MongoConfigBuilder};
pub use enqueue::MongoOutbox;
pub use inbox::{MongoInbox, inbox_migration_script};
pub use schema::migration_script;
pub use store::MongoStore;
