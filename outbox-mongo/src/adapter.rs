//! MongoDB by URL and settings: [`MongoAdapter`].

use std::sync::Arc;

use async_trait::async_trait;
use outbox_core::{
    ConfigError, RelayConfig, StoreError,
    settings::{Adapter, ConfiguredStore, OpenedStore, StoreAdapter, Values, shown_url},
};

use crate::{MongoConfig, MongoStore, config::SETTINGS, migration_script};

/// Configures a [`MongoStore`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct MongoAdapter;

const ADAPTER: Adapter = Adapter::new(
    "mongo",
    "MongoDB",
    &["mongodb://", "mongodb+srv://"],
    "mongodb://user:password@host:port/database?replicaSet=name",
    "A MongoDB replica set, with the options of its connection strings, such as \
     &tls=true&tlsCAFile=ca.pem; mongodb+srv:// is not supported.",
)
.settings(SETTINGS);

impl StoreAdapter for MongoAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredStore>, ConfigError> {
        let mut builder = MongoConfig::builder().url(url);
        if let Some(prefix) = values.text("prefix") {
            builder = builder.table(prefix);
        }
        if let Some(schema) = values.text("schema") {
            builder = builder.database(schema);
        }
        if let Some(connections) = values.integer("connections") {
            builder = builder.connections(connections);
        }
        let config =
            builder.build().map_err(|error| error.renamed(&[("table", "prefix"), ("database", "schema")]))?;
        Ok(Arc::new(Configured { config, shown: shown_url(url) }))
    }
}

#[derive(Debug)]
struct Configured {
    config: MongoConfig,
    shown: String,
}

#[async_trait]
impl ConfiguredStore for Configured {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn migration(&self) -> String {
        migration_script(&self.config)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        MongoStore::connect_lazy(&self.config).await?.migrate().await
    }

    async fn open(&self) -> Result<OpenedStore, StoreError> {
        Ok(OpenedStore::new(MongoStore::connect_lazy(&self.config).await?))
    }
}
