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

pub use adapter::MysqlAdapter;
pub use config::{MysqlConfig, MysqlConfigBuilder};
pub use driver::Mysql;
pub use enqueue::MysqlOutbox;
pub use inbox::{MysqlInbox, inbox_migration_sql};
pub use schema::migration_sql;
pub use store::MysqlStore;
