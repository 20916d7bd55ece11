//! Every adapter that this program knows: one line each, with its cargo feature.

use outbox_core::settings::{PublisherAdapter, StoreAdapter};

/// Two lists: the adapters that are in this build, and the cargo features of those that are not.
macro_rules! adapters {
    ($list:ident, $left_out:ident: $kind:ident, [$($always:path),*], $($feature:tt => $adapter:path,)*) => {
        pub(super) const $list: &[&dyn $kind] = &[
            $(&$always,)*
            $(#[cfg(feature = $feature)] &$adapter,)*
        ];
        pub(super) const $left_out: &[&str] = &[$(#[cfg(not(feature = $feature))] $feature,)*];
    };
}

adapters! {
    STORES, STORES_LEFT_OUT: StoreAdapter, [],
    "postgres" => outbox_postgres::PostgresAdapter,
    "mysql" => outbox_mysql::MysqlAdapter,
    "mongo" => outbox_mongo::MongoAdapter,
    "sqlite" => outbox_sqlite::SqliteAdapter,
}

adapters! {
    PUBLISHERS, PUBLISHERS_LEFT_OUT: PublisherAdapter, [outbox_core::jsonlines::StdoutAdapter, outbox_core::jsonlines::FileAdapter],
    "kafka" => outbox_kafka::KafkaAdapter,
    "rabbitmq" => outbox_rabbitmq::RabbitMqAdapter,
    "nats" => outbox_nats::NatsAdapter,
}

/// How much of the log of the adapters' clients is wanted unless the user asks for more.
pub(crate) fn log_default() -> String {
    let of_clients = PUBLISHERS
        .iter()
        .map(|adapter| adapter.adapter())
        .chain(STORES.iter().map(|adapter| adapter.adapter()))
        .filter_map(|adapter| adapter.log);
    std::iter::once("info").chain(of_clients).collect::<Vec<_>>().join(",")
}
