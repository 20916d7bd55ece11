#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub use outbox_core::*;

/// The PostgreSQL store (feature `postgres`).
#[cfg(feature = "postgres")]
pub use outbox_postgres as postgres;

/// The SQLite store (feature `sqlite`).
#[cfg(feature = "sqlite")]
pub use outbox_sqlite as sqlite;

/// The Apache Kafka publisher (feature `kafka`).
#[cfg(feature = "kafka")]
pub use outbox_kafka as kafka;
