//! The databases that a service may have, each with an account table of the service's own beside the outbox.

mod database;
mod mongo;
mod mysql;
mod postgres;
mod sqlite;

use std::sync::Arc;

use outbox::OutboxStore;

pub use self::database::{ACCOUNTS, Change, Database, End, Fate, StoreAt};
use self::{mongo::Mongo, mysql::Mysql, postgres::Postgres, sqlite::Sqlite};

/// A database by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    Mysql,
    Mariadb,
    Sqlite,
    Mongodb,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Postgres, Self::Mysql, Self::Mariadb, Self::Sqlite, Self::Mongodb];

    /// The one of this name.
    pub fn named(name: &str) -> Self {
        let named = Self::ALL.into_iter().find(|kind| format!("{kind:?}").to_lowercase() == name);
        named.unwrap_or_else(|| panic!("unknown name {name}"))
    }

    /// A fresh place in it, or a line that says that the server is missing.
    pub async fn fresh(self) -> Option<Arc<dyn Database>> {
        Some(match self {
            Self::Postgres => Arc::new(Postgres::fresh().await?),
            Self::Mysql => Arc::new(Mysql::mysql().await?),
            Self::Mariadb => Arc::new(Mysql::mariadb().await?),
            Self::Sqlite => Arc::new(Sqlite::fresh().await),
            Self::Mongodb => Arc::new(Mongo::fresh().await?),
        })
    }
}

impl StoreAt {
    pub async fn open(&self) -> Arc<dyn OutboxStore> {
        match self {
            Self::Postgres { url, schema } => postgres::open(url, schema).await,
            Self::Mysql { url } => mysql::open(url).await,
            Self::Sqlite { path } => sqlite::open(path),
            Self::Mongo { url, database } => mongo::open(url, database).await,
        }
    }
}
