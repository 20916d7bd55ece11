//! MySQL and MariaDB by URL and settings: [`MysqlAdapter`].

use std::sync::Arc;

use async_trait::async_trait;
use outbox_core::{
    ConfigError, RelayConfig, StoreError,
    settings::{Adapter, ConfiguredStore, OpenedStore, StoreAdapter, Values, shown_url},
};

use crate::{MysqlConfig, MysqlStore, config::SETTINGS, migration_sql};

/// Configures a [`MysqlStore`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct MysqlAdapter;

const ADAPTER: Adapter = Adapter::new(
    "mysql",
    "MySQL",
    &["mysql://", "mariadb://"],
    "mysql://user:password@host:port/database",
    "MySQL or MariaDB, with the parameters that sqlx knows, such as ?ssl-mode=VERIFY_CA&ssl-ca=ca.pem; mariadb:// is \
     the same.",
)
.settings(SETTINGS);

impl StoreAdapter for MysqlAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredStore>, ConfigError> {
        let mut builder = MysqlConfig::builder().url(url);
        if let Some(prefix) = values.text("prefix") {
            builder = builder.table(prefix);
        }
        if let Some(schema) = values.text("schema") {
            builder = builder.schema(schema);
        }
        if let Some(connections) = values.integer("connections") {
            builder = builder.connections(connections);
        }
        let config = builder.build().map_err(|error| error.renamed(&[("table", "prefix")]))?;
        Ok(Arc::new(Configured { config, shown: shown_url(url) }))
    }
}

#[derive(Debug)]
struct Configured {
    config: MysqlConfig,
    shown: String,
}

#[async_trait]
impl ConfiguredStore for Configured {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn migration(&self) -> String {
        migration_sql(&self.config)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        MysqlStore::connect_lazy(&self.config).await?.migrate().await
    }

    async fn open(&self) -> Result<OpenedStore, StoreError> {
        Ok(OpenedStore::new(MysqlStore::connect_lazy(&self.config).await?))
    }
}
