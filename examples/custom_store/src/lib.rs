//! A store of the outbox on [redb](https://docs.rs/redb), an embedded key-value library: written on public
//! API only, by following `docs/write-your-own-store.md`.
//!
//! redb opens a file in one process and has one writer at a time. So there is one partition, the clock is the
//! host's, and everything that changes is one write transaction; leases still tell one relay of the process
//! from the next, and one start from the last. A fetch walks over the pending events from the lowest one:
//! fine for thousands that wait, and not for millions.

mod admin;
mod reader;
mod record;
mod settle;
mod store;
mod tables;

use std::{collections::HashSet, path::Path, sync::Arc, time::SystemTime};

use outbox_core::{
    Enqueue, EnqueueError, Event, StoreError, StoreErrorKind,
    store::{PAYLOAD_BYTES_MAX_DEFAULT, Sequence},
};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

use crate::{
    record::{Content, Record},
    tables::{IDS, META, Tables},
};

/// An outbox in a redb database. Cheap to clone.
#[derive(Clone)]
pub struct RedbStore(Arc<Database>);

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbStore")
    }
}

impl RedbStore {
    /// Opens the file, which is created if need be, and makes the tables that are missing.
    ///
    /// # Errors
    /// [`StoreErrorKind::Schema`] of a file of a later release; else what redb says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| failed("open the database", error.into()))?;
        Self::new(Arc::new(database))
    }

    /// The same in a database that the service has opened already, as it must for its own tables.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn new(database: Arc<Database>) -> Result<Self, StoreError> {
        let what = "make the tables";
        let made = || -> Result<_, redb::Error> {
            let transaction = database.begin_write()?;
            tables::create(&transaction)?;
            let found = tables::version(&transaction)?;
            Ok((transaction, found))
        };
        let (transaction, found) = made().map_err(|error| failed(what, error))?;
        // Without a commit, the tables of a later release are left alone.
        tables::schema().refuse_newer(found)?;
        transaction.commit().map_err(|error| failed(what, error.into()))?;
        Ok(Self(database))
    }

    /// The database, for the service's own transactions.
    pub fn database(&self) -> &Arc<Database> {
        &self.0
    }

    /// Runs one write transaction where it may block.
    async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.0);
        blocking(what, move || {
            let transaction = database.begin_write()?;
            let answer = change(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        })
        .await
    }

    /// Reads one snapshot where it may block.
    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.0);
        blocking(what, move || read(&database.begin_read()?)).await
    }
}

/// Events are written in the service's own write transaction, beside its change. These calls block, as all of
/// redb does, and as the service's own writes in that transaction do.
impl Enqueue<WriteTransaction> for RedbStore {
    async fn enqueue(
        &self,
        transaction: &mut WriteTransaction,
        event: &Event,
    ) -> Result<Sequence, EnqueueError> {
        let sequences = self.enqueue_all(transaction, std::slice::from_ref(event)).await?;
        Ok(sequences[0])
    }

    async fn enqueue_all(
        &self,
        transaction: &mut WriteTransaction,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        for event in events {
            event.check_payload(PAYLOAD_BYTES_MAX_DEFAULT)?;
        }
        let written = write_events(transaction, events).map_err(|error| failed("write events", error))?;
        written.map_err(EnqueueError::Duplicate)
    }
}

/// The sequences, or the id that was there before.
fn write_events(
    transaction: &WriteTransaction,
    events: &[Event],
) -> Result<Result<Vec<Sequence>, uuid::Uuid>, redb::Error> {
    let now = now();
    let mut tables = Tables::open(transaction)?;
    let mut ids = transaction.open_table(IDS)?;
    let mut meta = transaction.open_table(META)?;
    let mut new = HashSet::new();
    // All of them first: nothing is written of events that are refused.
    for event in events {
        if ids.get(event.id().as_u128())?.is_some() || !new.insert(event.id()) {
            return Ok(Err(event.id()));
        }
    }
    let mut last = tables::number(&meta, "sequence")?.unwrap_or_default();
    let mut sequences = Vec::with_capacity(events.len());
    for event in events {
        last += 1;
        ids.insert(event.id().as_u128(), last)?;
        let record = Record::pending(event, Content::of(event), now);
        tables.insert(last, &record, event.payload().map(|payload| &payload[..]))?;
        sequences.push(last);
    }
    meta.insert("sequence", last)?;
    Ok(Ok(sequences))
}

/// The host's clock, in microseconds since 1970: there is no other that all relays of a file could share.
fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer.map_err(|error| failed(what, error)),
        Err(error) => Err(StoreError::new(StoreErrorKind::Unexpected, what).with_source(error)),
    }
}

fn failed(what: &str, error: redb::Error) -> StoreError {
    let kind = match error {
        redb::Error::Io(_) | redb::Error::DatabaseAlreadyOpen => StoreErrorKind::Unavailable,
        redb::Error::TableDoesNotExist(_) => StoreErrorKind::Schema,
        _ => StoreErrorKind::Unexpected,
    };
    StoreError::new(kind, format!("redb could not {what}")).with_source(error)
}
