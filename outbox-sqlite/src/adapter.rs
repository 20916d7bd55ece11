//! SQLite by URL and settings: [`SqliteAdapter`].

use std::sync::Arc;

use async_trait::async_trait;
use outbox_core::{
    ConfigError, RelayConfig, StoreError,
    settings::{Adapter, ConfiguredStore, OpenedStore, Problem, StoreAdapter, URL, Values, url_path},
};

use crate::{SqliteConfig, SqliteStore, config::SETTINGS, migration_sql};

/// Configures a [`SqliteStore`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct SqliteAdapter;

const ADAPTER: Adapter = Adapter::new(
    "sqlite",
    "SQLite",
    &["sqlite:"],
    "sqlite:path/to/file.db",
    "A SQLite file on a local disk that the service writes as well. sqlite:///absolute/path works too.",
)
.settings(SETTINGS);

impl StoreAdapter for SqliteAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredStore>, ConfigError> {
        if url.contains('?') {
            let what = "has parameters, and SQLite files take none";
            return Err(Problem::new(URL, what, "give \"sqlite:path/to/file.db\"").into());
        }
        let mut builder = SqliteConfig::builder(url_path(url));
        if let Some(prefix) = values.text("prefix") {
            builder = builder.prefix(prefix);
        }
        if let Some(busy_timeout) = values.duration("busy_timeout") {
            builder = builder.busy_timeout(busy_timeout);
        }
        let config = builder.build().map_err(|error| error.renamed(&[("path", URL)]))?;
        Ok(Arc::new(Configured(config)))
    }
}

#[derive(Debug)]
struct Configured(SqliteConfig);

#[async_trait]
impl ConfiguredStore for Configured {
    fn shown(&self) -> String {
        format!("sqlite:{}", self.0.path().display())
    }

    fn migration(&self) -> String {
        migration_sql(&self.0)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        SqliteStore::open(self.0.clone())?.migrate().await
    }

    async fn open(&self) -> Result<OpenedStore, StoreError> {
        Ok(OpenedStore::new(SqliteStore::open(self.0.clone())?))
    }
}
