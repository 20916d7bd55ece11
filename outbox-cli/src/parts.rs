//! The store and the publisher that the configuration asks for.

use std::sync::Arc;

use outbox_core::{Finding, JsonLinesPublisher, OutboxAdmin, OutboxStore, Publisher, StoreError};

use crate::{
    config::{PublisherConfig, StoreConfig},
    output::Failure,
};

/// The store, by database. Nothing is connected before it is used.
pub(crate) enum Store {
    #[cfg(feature = "sqlite")]
    Sqlite(outbox_sqlite::SqliteStore),
    #[cfg(feature = "postgres")]
    Postgres(outbox_postgres::PostgresStore),
    #[cfg(feature = "mysql")]
    Mysql(outbox_mysql::MysqlStore),
    #[cfg(feature = "mongo")]
    Mongo(outbox_mongo::MongoStore),
}

impl StoreConfig {
    /// What makes the tables, for the database's own shell: SQL, or a script for `mongosh`.
    pub(crate) fn migration_sql(&self) -> String {
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref config) => outbox_sqlite::migration_sql(config),
            #[cfg(feature = "postgres")]
            Self::Postgres { ref config, .. } => outbox_postgres::migration_sql(config),
            #[cfg(feature = "mysql")]
            Self::Mysql { ref config, .. } => outbox_mysql::migration_sql(config),
            #[cfg(feature = "mongo")]
            Self::Mongo { ref config, .. } => outbox_mongo::migration_script(config),
        }
    }

    /// Where it is, without a password.
    pub(crate) fn shown(&self) -> String {
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref config) => format!("sqlite:{}", config.path().display()),
            #[cfg(feature = "postgres")]
            Self::Postgres { ref shown, .. } => shown.clone(),
            #[cfg(feature = "mysql")]
            Self::Mysql { ref shown, .. } => shown.clone(),
            #[cfg(feature = "mongo")]
            Self::Mongo { ref shown, .. } => shown.clone(),
        }
    }
}

impl Store {
    #[allow(clippy::unused_async, reason = "a database may have to be asked")]
    pub(crate) async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        match config {
            #[cfg(feature = "sqlite")]
            StoreConfig::Sqlite(config) => Ok(Self::Sqlite(outbox_sqlite::SqliteStore::open(config)?)),
            #[cfg(feature = "postgres")]
            StoreConfig::Postgres { config, .. } => {
                Ok(Self::Postgres(outbox_postgres::PostgresStore::connect(&config).await?))
            }
            #[cfg(feature = "mysql")]
            StoreConfig::Mysql { config, .. } => {
                Ok(Self::Mysql(outbox_mysql::MysqlStore::connect(&config).await?))
            }
            #[cfg(feature = "mongo")]
            StoreConfig::Mongo { config, .. } => {
                Ok(Self::Mongo(outbox_mongo::MongoStore::connect(&config).await?))
            }
        }
    }

    #[allow(clippy::unused_async, reason = "without any database there is nothing to wait for")]
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref store) => store.migrate().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(ref store) => store.migrate().await,
            #[cfg(feature = "mysql")]
            Self::Mysql(ref store) => store.migrate().await,
            #[cfg(feature = "mongo")]
            Self::Mongo(ref store) => store.migrate().await,
        }
    }

    /// The relay's side and the operator's.
    pub(crate) fn sides(self) -> (Arc<dyn OutboxStore>, Arc<dyn OutboxAdmin>) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => (Arc::new(store.clone()), Arc::new(store)),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => (Arc::new(store.clone()), Arc::new(store)),
            #[cfg(feature = "mysql")]
            Self::Mysql(store) => (Arc::new(store.clone()), Arc::new(store)),
            #[cfg(feature = "mongo")]
            Self::Mongo(store) => (Arc::new(store.clone()), Arc::new(store)),
        }
    }
}

impl PublisherConfig {
    /// Where it is.
    pub(crate) fn shown(&self) -> String {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka { brokers, .. } => format!("kafka://{brokers}"),
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq { shown, .. } => shown.clone(),
            #[cfg(feature = "nats")]
            Self::Nats { shown, .. } => shown.clone(),
            Self::Stdout => "stdout:".to_owned(),
            Self::File { path, .. } => format!("file:{}", path.display()),
        }
    }

    /// Makes the publisher.
    ///
    /// # Errors
    /// What keeps it from being made, such as a file that may not be written.
    pub(crate) fn open(self) -> Result<Arc<dyn Publisher>, Failure> {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka { config, .. } => match outbox_kafka::KafkaPublisher::new(config) {
                Ok(publisher) => Ok(Arc::new(publisher)),
                Err(error) => {
                    let finding = |problem: &String| {
                        Finding::error("kafka", problem.clone(), "correct [publisher.kafka]")
                    };
                    Err(error.problems().iter().map(finding).collect::<Vec<_>>().into())
                }
            },
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq { config, .. } => Ok(Arc::new(outbox_rabbitmq::RabbitMqPublisher::new(*config))),
            #[cfg(feature = "nats")]
            Self::Nats { config, .. } => Ok(Arc::new(outbox_nats::NatsPublisher::new(*config))),
            Self::Stdout => Ok(Arc::new(JsonLinesPublisher::stdout())),
            Self::File { path, sync } => match JsonLinesPublisher::append(&path, sync) {
                Ok(publisher) => Ok(Arc::new(publisher)),
                Err(error) => Err(vec![Finding::error(
                    "publisher-file",
                    format!("the file {} of publisher.url cannot be opened: {error}", path.display()),
                    "let the relay write the file and its directory, or name another",
                )]
                .into()),
            },
        }
    }
}
