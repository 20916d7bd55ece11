//! The database as the relay and its operator use it: the pool with its tables and settings, [`Database`],
//! connections that belong to one purpose, and the transactions of a relay.

use outbox_core::{StoreError, StoreErrorKind};
use sqlx::{
    ConnectOptions as _, Connection as _, MySql, MySqlConnection, Transaction, mysql::MySqlPool,
    pool::PoolConnection,
};

use crate::{
    MysqlConfig,
    config::{CONNECT_TIMEOUT, Tables},
    error::{store_error, within},
};

/// The pool and what belongs to it, shared by the store, its readers and its settles.
pub(crate) struct Database {
    pub(crate) pool: MySqlPool,
    pub(crate) config: MysqlConfig,
    /// The connection that settles, taken out while it works, so that a settle that is dropped half-way takes
    /// its connection with it.
    pub(crate) settling: tokio::sync::Mutex<Option<MySqlConnection>>,
}

impl Database {
    pub(crate) fn new(pool: MySqlPool, config: &MysqlConfig) -> Self {
        Self { pool, config: config.clone(), settling: tokio::sync::Mutex::new(None) }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.config.tables
    }

    /// A connection of the pool.
    pub(crate) async fn connection(&self, what: &str) -> Result<PoolConnection<MySql>, StoreError> {
        within(what, self.pool.acquire()).await
    }
}

/// What every connection of a relay is set to, whatever the server's defaults are.
///
/// - READ COMMITTED: after waiting for a lease row, its newest version is what counts; and no gaps are
///   locked, into which a service inserts.
/// - Strict: a value that does not fit is an error, and not cut off.
/// - A lock that does not come within 5 s is not going to.
/// - Texts in UTF-8, as this program has them: the URL may name another character set.
pub(crate) const RELAY_SETTINGS: &str = "SET NAMES utf8mb4; SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; \
     SET SESSION autocommit = 1, innodb_lock_wait_timeout = 5, \
     sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// A relay that is frozen inside a transaction keeps its locks, on lease rows among them, until the server
/// has waited 5 s for its next statement. Outside a transaction the connection's own timeout counts again.
const BEGIN: &str = "SET @outbox_wait_timeout = @@SESSION.wait_timeout, SESSION wait_timeout = 5; \
     SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE";
const COMMIT: &str = "COMMIT; SET SESSION wait_timeout = @outbox_wait_timeout";

/// Begins a transaction of the relay or its operator. Dropped, it is rolled back.
pub(crate) async fn begin<'a>(
    connection: &'a mut MySqlConnection,
    what: &str,
) -> Result<Transaction<'a, MySql>, StoreError> {
    within(what, connection.begin_with(BEGIN)).await
}

/// Commits it.
pub(crate) async fn commit(mut transaction: Transaction<'_, MySql>, what: &str) -> Result<(), StoreError> {
    within(what, async {
        sqlx::raw_sql(COMMIT).execute(&mut *transaction).await?;
        // For the driver, which counts; the server has nothing left to commit.
        transaction.commit().await
    })
    .await
}

/// A connection beside the pool. No statement of the service ever runs on it.
pub(crate) async fn open(pool: &MySqlPool) -> Result<MySqlConnection, StoreError> {
    let options = pool.connect_options();
    let what = format!("connect to the server at {}:{}", options.get_host(), options.get_port());
    let connect = async {
        let mut connection = options.connect().await?;
        sqlx::raw_sql(RELAY_SETTINGS).execute(&mut connection).await?;
        Ok(connection)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(result) => result.map_err(|error| store_error(&what, error)),
        Err(_) => Err(StoreError::new(
            StoreErrorKind::Unavailable,
            format!("cannot {what}: no answer for {} s", CONNECT_TIMEOUT.as_secs()),
        )),
    }
}
