//! PostgreSQL by URL and settings: [`PostgresAdapter`].

use std::sync::Arc;

use async_trait::async_trait;
use outbox_core::{
    ConfigError, RelayConfig, StoreError, WhenSent,
    settings::{Adapter, ConfiguredStore, OpenedStore, StoreAdapter, Values, shown_url},
};

use crate::{PostgresConfig, PostgresStore, SentRows, config::SETTINGS, migration_sql};

/// Configures a [`PostgresStore`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct PostgresAdapter;

const ADAPTER: Adapter = Adapter::new(
    "postgres",
    "PostgreSQL",
    &["postgres://", "postgresql://"],
    "postgres://user:password@host:port/database",
    "PostgreSQL, with the parameters that libpq knows, such as ?sslmode=require; postgresql:// is the same.",
)
.settings(SETTINGS);

impl StoreAdapter for PostgresAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredStore>, ConfigError> {
        let sent_rows = match relay.retention.when_sent {
            WhenSent::Keep => SentRows::Kept,
            WhenSent::Delete | WhenSent::Archive => SentRows::Deleted,
        };
        let mut builder = PostgresConfig::builder().url(url).sent_rows(sent_rows);
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
    config: PostgresConfig,
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
        PostgresStore::connect_lazy(&self.config).await?.migrate().await
    }

    async fn open(&self) -> Result<OpenedStore, StoreError> {
        Ok(OpenedStore::new(PostgresStore::connect_lazy(&self.config).await?))
    }
}
