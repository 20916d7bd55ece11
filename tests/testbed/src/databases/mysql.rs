//! MySQL and MariaDB: a database for each scenario.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Enqueue as _, Event, OutboxAdmin, OutboxStore,
    mysql::{MysqlConfig, MysqlOutbox, MysqlStore},
};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, MySqlPool, mysql::MySqlPoolOptions};
use uuid::Uuid;

use super::database::{ACCOUNTS, Change, Database, End, Failure, Fate, StoreAt, place};
use crate::servers;

pub(crate) struct Mysql {
    /// Its name in `scripts/services`.
    server: &'static str,
    /// The address that the server has there.
    address: String,
    /// The same with the database of this scenario.
    url: String,
    name: String,
    store: MysqlStore,
    outbox: MysqlOutbox,
    pool: MySqlPool,
}

impl Mysql {
    pub(crate) async fn mysql() -> Option<Self> {
        Some(Self::fresh("mysql", servers::address("mysql", "OUTBOX_TEST_MYSQL_URL")?).await)
    }

    pub(crate) async fn mariadb() -> Option<Self> {
        Some(Self::fresh("mariadb", servers::address("mariadb", "OUTBOX_TEST_MARIADB_URL")?).await)
    }

    async fn fresh(server: &'static str, address: String) -> Self {
        let name = format!("service_{}", Uuid::now_v7().simple());
        let (start, place, _) = place(&address);
        let url = format!("{start}{place}/{name}");
        let mut connection = MySqlConnection::connect(&address).await.unwrap();
        run(&mut connection, format!("CREATE DATABASE {name}")).await;
        let config = config(&url);
        let store = MysqlStore::connect_lazy(&config).await.unwrap();
        store.migrate().await.unwrap();
        let pool = MySqlPoolOptions::new()
            .max_connections(10)
            .acquire_timeout(Duration::from_secs(5))
            .connect(&url)
            .await
            .unwrap();
        let accounts: Vec<String> = (0..ACCOUNTS).map(|account| format!("('account-{account}')")).collect();
        for table in [
            "CREATE TABLE accounts (id VARCHAR(50) PRIMARY KEY, changes BIGINT NOT NULL DEFAULT 0)"
                .to_owned(),
            format!("INSERT INTO accounts (id) VALUES {}", accounts.join(", ")),
            "CREATE TABLE changes (event BINARY(16) PRIMARY KEY, account VARCHAR(50) NOT NULL, \
             sequence BIGINT NOT NULL, topic VARCHAR(255))"
                .to_owned(),
        ] {
            run(&mut pool.acquire().await.unwrap(), table).await;
        }
        Self { server, address, outbox: MysqlOutbox::new(&config), url, name, store, pool }
    }

    async fn begin_and_end(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, Failure> {
        let mut transaction = self.pool.begin().await?;
        for change in changes {
            self.change(&mut transaction, change).await?;
        }
        tokio::time::sleep(open).await;
        Ok(match end {
            End::RollBack => transaction.rollback().await.map(|()| Fate::RolledBack)?,
            End::Commit => transaction.commit().await.map_or(Fate::Unknown, |()| Fate::Committed),
        })
    }

    async fn change(&self, connection: &mut MySqlConnection, change: &Change) -> Result<(), Failure> {
        let Change { account, events, topic } = change;
        let lock = "UPDATE accounts SET changes = changes + ? WHERE id = ?";
        sqlx::query(lock).bind(events.len() as i64).bind(account).execute(&mut *connection).await?;
        let sequences = match events.as_slice() {
            [event] => vec![self.outbox.enqueue(&mut *connection, event).await?],
            events => self.outbox.enqueue_all(&mut *connection, events).await?,
        };
        for (event, sequence) in events.iter().map(Event::id).zip(sequences) {
            let note = "INSERT INTO changes (event, sequence, account, topic) VALUES (?, ?, ?, ?)";
            let note = sqlx::query(note).bind(event).bind(sequence).bind(account).bind(topic);
            note.execute(&mut *connection).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Database for Mysql {
    fn store_at(&self) -> StoreAt {
        StoreAt::Mysql { url: self.url.clone() }
    }

    fn store(&self) -> &dyn OutboxStore {
        &self.store
    }

    fn admin(&self) -> &dyn OutboxAdmin {
        &self.store
    }

    fn server(&self) -> Option<(&'static str, String)> {
        Some((self.server, self.address.clone()))
    }

    fn settles(&self) -> &'static [u8] {
        b"SET o.status = 1"
    }

    async fn transact(&self, changes: &[Change], open: Duration, end: End) -> Result<Fate, String> {
        self.begin_and_end(changes, open, end).await.map_err(|error| error.to_string())
    }

    async fn committed(&self, topic: Option<&str>) -> Vec<(String, Uuid)> {
        let sql = "SELECT account, event FROM changes WHERE topic <=> ? ORDER BY sequence";
        sqlx::query_as(sql).bind(topic).fetch_all(&self.pool).await.unwrap()
    }

    async fn remove(&self) {
        self.pool.close().await;
        let mut connection = MySqlConnection::connect(&self.address).await.unwrap();
        run(&mut connection, format!("DROP DATABASE {}", self.name)).await;
    }
}

pub(super) async fn open(url: &str) -> Arc<dyn OutboxStore> {
    Arc::new(MysqlStore::connect_lazy(&config(url)).await.unwrap())
}

fn config(url: &str) -> MysqlConfig {
    MysqlConfig::builder().url(url).connections(3).build().unwrap()
}

async fn run(connection: &mut MySqlConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}
