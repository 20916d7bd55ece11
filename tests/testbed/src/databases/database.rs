//! What every database is to a scenario: [`Database`].

use std::time::Duration;

use async_trait::async_trait;
use outbox::{Event, OutboxAdmin, OutboxStore};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What makes a transaction fail.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How many accounts the service has.
pub const ACCOUNTS: u32 = 120;

/// A change of one account and the events that tell of it.
#[derive(Debug, Clone)]
pub struct Change {
    pub account: String,
    pub events: Vec<Event>,
    /// The topic, where the events name one.
    pub topic: Option<String>,
}

/// How a transaction is to end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    Commit,
    RollBack,
}

/// What a writer was told of a transaction's end. An error before the end means that it was rolled back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Committed,
    RolledBack,
    /// The connection was lost while it committed.
    Unknown,
}

/// Where a relay process finds the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum StoreAt {
    Postgres { url: String, schema: String },
    Mysql { url: String },
    Sqlite { path: String },
    Mongo { url: String, database: String },
}

impl StoreAt {
    /// The same through a proxy on this port.
    pub fn through(&self, port: u16) -> Self {
        match self {
            Self::Postgres { url, schema } => {
                Self::Postgres { url: with_port(url, port), schema: schema.clone() }
            }
            // In plain text, so that the proxy sees what is said.
            Self::Mysql { url } => Self::Mysql { url: format!("{}?ssl-mode=DISABLED", with_port(url, port)) },
            // A client of a replica set would go where its members say they are.
            Self::Mongo { url, database } => Self::Mongo {
                url: with_port(url, port).replacen("replicaSet=rs0", "directConnection=true", 1),
                database: database.clone(),
            },
            Self::Sqlite { .. } => panic!("a file has no connections to cut"),
        }
    }

    /// The server's `host:port`.
    pub fn server(&self) -> String {
        match self {
            Self::Postgres { url, .. } | Self::Mysql { url } | Self::Mongo { url, .. } => {
                place(url).1.to_owned()
            }
            Self::Sqlite { .. } => panic!("a file has no server"),
        }
    }
}

/// A service's database, a fresh one for each scenario.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// Where a relay finds it.
    fn store_at(&self) -> StoreAt;

    /// Its outbox.
    fn store(&self) -> &dyn OutboxStore;

    /// Its outbox, for an operator.
    fn admin(&self) -> &dyn OutboxAdmin;

    /// The name of its server in `scripts/services`, and the address that it has there.
    fn server(&self) -> Option<(&'static str, String)>;

    /// Words that stand in what settles sent events and in nothing else, to tell that on a connection.
    fn settles(&self) -> &'static [u8];

    /// Locks each account, changes it and writes its events, in this order, which is what makes sequences
    /// right; all in one transaction, which stays open for a while before it ends.
    async fn transact(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, String>;

    /// What the service's own table says: account and event, in sequence order.
    async fn committed(&self, topic: Option<&str>) -> Vec<(String, Uuid)>;

    /// Takes it away.
    async fn remove(&self);
}

/// The parts of an address around its `host:port`.
pub(super) fn place(url: &str) -> (&str, &str, &str) {
    let start = url.find('@').expect("an address with a user") + 1;
    let end = start + url[start..].find('/').expect("an address with a database");
    (&url[..start], &url[start..end], &url[end..])
}

fn with_port(url: &str, port: u16) -> String {
    let (start, _, end) = place(url);
    format!("{start}127.0.0.1:{port}{end}")
}
