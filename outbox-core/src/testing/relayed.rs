//! Whether it was sent: [`relayed`].

use std::time::Duration;

use uuid::Uuid;

use crate::{
    RelayHandle, RelayStatus, StoreError,
    store::{EventFilter, EventRecord, FailureCause, OutboxAdmin, Status},
};

/// Why an event was not seen as sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotRelayed {
    /// The relay gave it up.
    #[error("event {id} has failed ({cause:?}): {error}")]
    Failed {
        /// Its id.
        id: Uuid,
        /// Why it was given up.
        cause: Option<FailureCause>,
        /// What the broker said last, or nothing.
        error: String,
    },
    /// It is still in the table after all the time that was given.
    #[error("event {id} is still pending after {patience:?} and {attempts} failed attempts: {error}")]
    Pending {
        /// Its id.
        id: Uuid,
        /// How long was waited.
        patience: Duration,
        /// Attempts that failed.
        attempts: u32,
        /// What the broker or the store said last, or where the relay is.
        error: String,
    },
    /// Neither in the table nor in the archive.
    #[error(
        "event {0} is not there: its transaction has not committed, or the relay deletes what it has sent"
    )]
    NotThere(Uuid),
    /// The relay has ended, or was dropped.
    #[error("the relay has ended, and event {0} is still pending")]
    Ended(Uuid),
    /// The store cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Waits until the relay has sent these events, which have committed: one acknowledged by the broker is
/// marked as sent, or in the archive. Waits on the relay's own signals, for `patience` at most, and says what
/// is in the way.
///
/// The relay keeps what it has sent (the default), or archives it: of a relay that deletes, the answer is
/// [`NotRelayed::NotThere`].
///
/// # Errors
/// The first event that is not sent, and why.
pub async fn relayed(
    admin: &dyn OutboxAdmin,
    handle: &mut RelayHandle,
    ids: impl IntoIterator<Item = Uuid>,
    patience: Duration,
) -> Result<(), NotRelayed> {
    let mut ids: Vec<Uuid> = ids.into_iter().collect();
    #[expect(clippy::disallowed_methods, reason = "a test's patience is not the engine's time")]
    let waited = tokio::time::timeout(patience, all_sent(admin, handle, &mut ids)).await;
    if let Ok(sent) = waited {
        return sent;
    }
    match find(admin, &ids, false).await?.iter().find(|record| record.status != Status::Sent) {
        None => Ok(()),
        Some(record) if record.status == Status::Failed => Err(failed(record)),
        Some(record) => Err(pending(record, handle, patience)),
    }
}

/// Takes what is sent off the ids, until none is left.
async fn all_sent(
    admin: &dyn OutboxAdmin,
    handle: &mut RelayHandle,
    ids: &mut Vec<Uuid>,
) -> Result<(), NotRelayed> {
    loop {
        // What happens from here on changes one of these numbers, so no change is missed between the question
        // and the wait.
        let seen = handle.status();
        handle.wake();
        let mut found = find(admin, ids, false).await?;
        if found.len() < ids.len() {
            found.extend(find(admin, ids, true).await?);
        }
        if let Some(id) = ids.iter().find(|id| !found.iter().any(|record| record.id == Some(**id))) {
            return Err(NotRelayed::NotThere(*id));
        }
        if let Some(record) = found.iter().find(|record| record.status == Status::Failed) {
            return Err(failed(record));
        }
        ids.retain(|id| {
            found.iter().any(|record| record.id == Some(*id) && record.status == Status::Pending)
        });
        let Some(first) = ids.first() else { return Ok(()) };
        if seen.phase.is_over() {
            return Err(NotRelayed::Ended(*first));
        }
        let counts = |status: &RelayStatus| (status.sent, status.failed, status.idle_reads);
        // A relay that has ended is looked at once more: what it did last counts.
        _ = handle.wait_for(|status| counts(status) != counts(&seen)).await;
    }
}

async fn find(admin: &dyn OutboxAdmin, ids: &[Uuid], archived: bool) -> Result<Vec<EventRecord>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let filter = EventFilter { ids: ids.to_vec(), archived, ..EventFilter::default() };
    admin.list(&filter, u32::try_from(ids.len()).unwrap_or(u32::MAX)).await
}

fn failed(record: &EventRecord) -> NotRelayed {
    let error = record.last_error.clone().unwrap_or_default();
    NotRelayed::Failed { id: id_of(record), cause: record.cause, error }
}

fn pending(record: &EventRecord, handle: &RelayHandle, patience: Duration) -> NotRelayed {
    let status = handle.status();
    let said = record.last_error.clone().or(status.last_publish_error).or(status.last_store_error);
    let error = said.unwrap_or_else(|| {
        format!("the relay is {:?} and owns {} partitions", status.phase, status.partitions)
    });
    NotRelayed::Pending { id: id_of(record), patience, attempts: record.attempts, error }
}

fn id_of(record: &EventRecord) -> Uuid {
    record.id.unwrap_or_default()
}
