//! Databases of MySQL and MariaDB.

use std::sync::Arc;

use outbox_core::OutboxStore;
use outbox_mysql::{MysqlConfig, MysqlInbox, MysqlOutbox, MysqlStore};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

use super::{CONSUMER, Place, address};

/// A database of MySQL.
pub struct MysqlPlace {
    url: String,
    schema: String,
    config: MysqlConfig,
    store: MysqlStore,
}

impl MysqlPlace {
    /// Where to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its writer's side.
    pub fn outbox(&self) -> MysqlOutbox {
        MysqlOutbox::new(&self.config)
    }

    /// Its consumer's side.
    pub fn inbox(&self) -> MysqlInbox {
        MysqlInbox::new(&self.config, CONSUMER).unwrap()
    }

    async fn on(name: &str, service: &str) -> Option<Self> {
        let (server, schema) = (address(name, service)?, super::name());
        let mut connection = MySqlConnection::connect(&server).await.unwrap();
        let sql = format!("CREATE DATABASE {schema}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        let url = format!("{}/{schema}", server.rsplit_once('/').unwrap().0);
        let config = MysqlConfig::builder().url(&url).build().unwrap();
        let store = MysqlStore::connect_lazy(&config).await.unwrap();
        store.migrate().await.unwrap();
        let place = Self { url, schema, config, store };
        let mut connection = MySqlConnection::connect(&place.url).await.unwrap();
        place.inbox().migrate(&mut connection).await.unwrap();
        Some(place)
    }
}

impl Place for MysqlPlace {
    const COUNT_SCHEDULED: &'static str =
        "SELECT count(*) FROM outbox WHERE available_at = '2026-01-02 03:04:05.678901'";

    async fn fresh() -> Option<Self> {
        Self::on("MySQL", "mysql").await
    }

    async fn drop(self) {
        let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
        let sql = format!("DROP DATABASE {}", self.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
    }
}

/// A database of MariaDB.
pub struct MariadbPlace(MysqlPlace);

impl std::ops::Deref for MariadbPlace {
    type Target = MysqlPlace;

    fn deref(&self) -> &MysqlPlace {
        &self.0
    }
}

impl Place for MariadbPlace {
    const COUNT_SCHEDULED: &'static str = MysqlPlace::COUNT_SCHEDULED;

    async fn fresh() -> Option<Self> {
        MysqlPlace::on("MariaDB", "mariadb").await.map(Self)
    }

    async fn drop(self) {
        self.0.drop().await;
    }

    fn store(&self) -> Arc<dyn OutboxStore> {
        self.0.store()
    }

    async fn number(&self, sql: &'static str) -> i64 {
        self.0.number(sql).await
    }
}
