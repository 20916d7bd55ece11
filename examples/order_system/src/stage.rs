//! Where the demo plays: a database for each service, and a topic, all with names of their own, on servers
//! that may be used by others as well.

use std::str::FromStr as _;

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    billing::Billing,
    broker::{Broker, Kind},
    consumer::Service as _,
    error::Error,
    inventory::Inventory,
    notification::Notification,
};

pub(crate) const SERVICES: [&str; 3] = [Inventory::NAME, Billing::NAME, Notification::NAME];

pub(crate) struct Stage {
    pub(crate) broker: Broker,
    /// URLs of the databases.
    pub(crate) orders: String,
    pub(crate) inventory: String,
    pub(crate) billing: String,
    /// The path of the SQLite file.
    pub(crate) notification: String,
    postgres: PgConnectOptions,
    databases: Vec<String>,
    folder: TempDir,
}

impl Stage {
    /// Makes the databases and the topic.
    pub(crate) async fn set(kind: Kind) -> Result<Self, Error> {
        let (postgres, url) = (address("OUTBOX_TEST_POSTGRES_URL")?, address(variable(kind))?);
        let postgres = PgConnectOptions::from_str(&postgres)?;
        let run = Uuid::now_v7().simple().to_string();
        let broker = Broker { kind, url, topic: format!("orders_{run}") };
        let folder = tempfile::tempdir()?;
        let mut connection = PgConnection::connect_with(&postgres).await?;
        let (mut databases, mut urls) = (Vec::new(), Vec::new());
        for service in ["orders", Inventory::NAME, Billing::NAME] {
            let name = format!("{service}_{run}");
            // No client is ever connected to template0, so that copying it is never refused.
            let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
            urls.push(postgres.clone().database(&name).to_url_lossy().to_string());
            databases.push(name);
        }
        broker.create(&SERVICES).await?;
        let [orders, inventory, billing] = urls.try_into().map_err(|_| "three databases")?;
        let notification = folder.path().join("notification.sqlite3");
        let notification =
            notification.to_str().ok_or("the temporary folder has no name in UTF-8")?.to_owned();
        Ok(Self { broker, orders, inventory, billing, notification, postgres, databases, folder })
    }

    /// Takes everything away.
    pub(crate) async fn remove(self) -> Result<(), Error> {
        self.broker.remove(&SERVICES).await?;
        let mut connection = PgConnection::connect_with(&self.postgres).await?;
        for name in self.databases {
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        Ok(self.folder.close()?)
    }

    /// Leaves everything as it is, and says where.
    pub(crate) fn keep(self) -> String {
        let folder = self.folder.keep();
        let (databases, topic) = (self.databases.join(", "), self.broker.topic);
        format!(
            "still there: the databases {databases}, the topic {topic} and the folder {}",
            folder.display()
        )
    }
}

/// The variable that names the broker's server.
fn variable(kind: Kind) -> &'static str {
    match kind {
        Kind::Kafka => "OUTBOX_TEST_KAFKA_BROKERS",
        Kind::Rabbitmq => "OUTBOX_TEST_AMQP_URL",
        Kind::Nats => "OUTBOX_TEST_NATS_URL",
    }
}

fn address(variable: &str) -> Result<String, Error> {
    std::env::var(variable).map_err(|_| {
        format!("{variable} is not set: examples/order_system/run.sh starts the servers and sets it").into()
    })
}
