//! The database as the relay and its operator use it, [`Database`]: connections that live on threads of their
//! own, because SQLite blocks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};

use outbox_core::{StoreError, StoreErrorKind};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use crate::{SqliteConfig, error::Context};

/// How many statements a connection keeps prepared; all that this crate has are fewer.
const STATEMENTS_CACHED: usize = 64;

type Job = Box<dyn FnOnce(&mut Option<Connection>) + Send>;

/// The connections of a store: one that writes, one that reads.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) config: SqliteConfig,
    writer: Worker,
    pub(crate) reader: Worker,
}

impl Database {
    pub(crate) fn new(config: SqliteConfig) -> Result<Self, StoreError> {
        let writer = Worker::spawn(&config, "outbox-sqlite-write")?;
        let reader = Worker::spawn(&config, "outbox-sqlite-read")?;
        Ok(Self { config, writer, reader })
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&SqliteConfig, &Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let config = self.config.clone();
        self.writer.write(what, move |transaction| work(&config, transaction)).await
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&SqliteConfig, &Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let config = self.config.clone();
        self.reader
            .run(move |connection| {
                // A transaction that only reads, so that all its statements see the same rows.
                let transaction = connection.transaction().doing(what)?;
                work(&config, &transaction).doing(what)
            })
            .await
    }
}

/// A thread with a connection, which is opened by the first job and again by the first job after an error
/// that may have been the connection's own. The thread ends when the `Worker` is dropped and the last job is
/// done.
#[derive(Debug)]
pub(crate) struct Worker {
    config: SqliteConfig,
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// A worker whose thread bears `name`.
    pub(crate) fn spawn(config: &SqliteConfig, name: &str) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut connection = None;
                for job in queue {
                    // A panic is a defect, but one that must not take every later call with it.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
                        connection = None;
                    }
                }
            })
            .map_err(|error| {
                StoreError::new(StoreErrorKind::Unavailable, "could not start a thread for sqlite")
                    .with_source(error)
            })?;
        Ok(Self { config: config.clone(), jobs })
    }

    /// Runs `work` on the thread. If the caller goes away, it runs to its end all the same.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let config = self.config.clone();
        self.submit(move |slot| on_connection(&config, slot, work)).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Option<Connection>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |slot| {
            // A caller that has gone away does not need the answer.
            let _ = reply.send(work(slot));
        });
        let gone =
            || StoreError::new(StoreErrorKind::Unexpected, "the sqlite thread failed; its log has the panic");
        self.jobs.send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Runs `work`, which brings its own connection, on the thread.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(move |_| work()).await
    }

    /// Runs `work` in one writing transaction, which is committed if it returns `Ok`.
    ///
    /// `BEGIN IMMEDIATE` takes the write lock at once: a transaction that reads first and writes later is
    /// refused with `SQLITE_BUSY_SNAPSHOT`, whatever the time it would wait, when another connection wrote in
    /// between.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).doing(what)?;
            let result = work(&transaction)?;
            transaction.commit().doing(what)?;
            Ok(result)
        })
        .await
    }
}

fn on_connection<T>(
    config: &SqliteConfig,
    slot: &mut Option<Connection>,
    work: impl FnOnce(&mut Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let connection = match slot {
        Some(connection) => connection,
        None => slot.insert(open(config, OpenFlags::empty()).doing("open the database")?),
    };
    let result = work(connection);
    if let Err(error) = &result
        && !matches!(error.kind(), StoreErrorKind::Conflict | StoreErrorKind::Misuse)
    {
        // The file may have been replaced or its disk may have gone: the next job opens it anew.
        *slot = None;
    }
    result
}

/// Opens the file, for reading and writing, and sets what every connection of this crate needs.
///
/// It is not created unless `extra` says so: a relay that is pointed at a wrong path must not find an empty
/// outbox there. URI names are off, so that a path means the file of that name.
pub(crate) fn open(config: &SqliteConfig, extra: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra;
    let connection = Connection::open_with_flags(config.path(), flags)?;
    connection.busy_timeout(config.busy_timeout())?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    // FULL flushes the log at every commit: a settled event stays settled after a power failure. It is a
    // setting of the connection, so the service chooses its own.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// The database's clock, once for a whole transaction.
pub(crate) fn now(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached(&config.sql("SELECT {now}"))?.query_row([], |row| row.get(0))
}
