// The example of the README compiles where its store is there.
#![cfg_attr(any(not(doctest), feature = "sqlite"), doc = include_str!("../README.md"))]
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

/// The MySQL and MariaDB store (feature `mysql`).
#[cfg(feature = "mysql")]
pub use outbox_mysql as mysql;

/// The MongoDB store (feature `mongo`).
#[cfg(feature = "mongo")]
pub use outbox_mongo as mongo;

/// The RabbitMQ publisher (feature `rabbitmq`).
#[cfg(feature = "rabbitmq")]
pub use outbox_rabbitmq as rabbitmq;

/// The NATS JetStream publisher (feature `nats`).
#[cfg(feature = "nats")]
pub use outbox_nats as nats;

#[cfg(feature = "testing")]
pub mod testing {
    #![doc = include_str!("../docs/testing.md")]

    pub use outbox_core::testing::*;
}
