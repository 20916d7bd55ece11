//! What every clause stands on: the harness, and short ways to receive, to purge and to do both beside each
//! other.

use std::{sync::OnceLock, time::Duration};

use chrono::{DateTime, Utc};
use outbox_core::{InboxError, Receipt, StoreErrorKind, chain, inbox::EventIdentity};

use crate::{InboxHarness, InboxTransaction, Violation, violation::Verdict};

/// How long a transaction is watched for doing what it must not.
const WATCH: Duration = Duration::from_millis(200);

/// How long a purge may take before it is taken to wait for another transaction.
const PURGE_WATCH: Duration = Duration::from_secs(2);

/// How often a transaction is begun again that the database asked to repeat.
pub(crate) const TRIES_MAX: u32 = 100;

/// The consumer of most clauses.
pub(crate) const CONSUMER: &str = "billing";

/// The age that is purged, and events that are older than that and younger.
pub(crate) const AGE: Duration = Duration::from_secs(2 * 3600);
pub(crate) const OLDER: Duration = Duration::from_secs(4 * 3600);
pub(crate) const OLD: Duration = Duration::from_secs(3 * 3600);
pub(crate) const YOUNG: Duration = Duration::from_secs(90 * 60);

pub(crate) struct Stage<'a> {
    pub(crate) harness: &'a dyn InboxHarness,
    pub(crate) now: DateTime<Utc>,
    /// Why the clause could not be asked, if so.
    pub(crate) not_asked: OnceLock<String>,
}

impl<'a> Stage<'a> {
    pub(crate) async fn new(harness: &'a dyn InboxHarness) -> Self {
        Self { harness, now: harness.now().await, not_asked: OnceLock::new() }
    }

    /// Says why a clause is not asked, for the table.
    pub(crate) fn not_asked(&self, why: &str) {
        self.not_asked.get_or_init(|| why.to_owned());
    }

    /// An event that happened so long ago.
    pub(crate) fn event(&self, id: &str, age: Duration) -> EventIdentity {
        self.event_from("/shop", id, age)
    }

    pub(crate) fn event_from(&self, source: &str, id: &str, age: Duration) -> EventIdentity {
        identity(source, id, Some(self.now - age))
    }

    /// Receives and commits, again if the database asks for it.
    pub(crate) async fn receive(&self, consumer: &str, event: &EventIdentity) -> Verdict<Receipt> {
        for _ in 0..TRIES_MAX {
            let mut transaction = self.harness.begin().await;
            let answer = transaction.receive(consumer, event).await;
            match finish(transaction, answer).await {
                Err(error) if is_conflict(&error) => tokio::task::yield_now().await,
                answer => return Ok(answer?),
            }
        }
        Err(Violation::new("an answer", format!("{TRIES_MAX} conflicts")))
    }

    /// Purges the inbox of [`CONSUMER`] and commits.
    pub(crate) async fn purge(&self, rows_max: u32) -> Verdict<u64> {
        self.purge_of(CONSUMER, rows_max).await
    }

    pub(crate) async fn purge_of(&self, consumer: &str, rows_max: u32) -> Verdict<u64> {
        for _ in 0..TRIES_MAX {
            let mut transaction = self.harness.begin().await;
            let answer = transaction.purge(consumer, AGE, rows_max).await;
            match finish(transaction, answer).await {
                Err(error) if is_conflict(&error) => tokio::task::yield_now().await,
                answer => return Ok(answer?),
            }
        }
        Err(Violation::new("a purge", format!("{TRIES_MAX} conflicts")))
    }

    /// Purges while another transaction is open: the number of receipts, or the purge that waits for that
    /// one's end. `None` if it was asked to begin again.
    pub(crate) async fn purge_beside(&self, rows_max: u32) -> Verdict<Option<Result<u64, Purging>>> {
        let mut transaction = self.harness.begin().await;
        let mut task = tokio::spawn(async move {
            let answer = transaction.purge(CONSUMER, AGE, rows_max).await;
            finish(transaction, answer).await
        });
        match tokio::time::timeout(PURGE_WATCH, &mut task).await {
            Err(_) => Ok(Some(Err(Purging(task)))),
            Ok(ended) => match joined(ended)? {
                Err(error) if is_conflict(&error) => Ok(None),
                answer => Ok(Some(Ok(answer?))),
            },
        }
    }

    pub(crate) async fn expect(&self, receipt: Receipt, event: &EventIdentity, why: &str) -> Verdict {
        self.expect_of(CONSUMER, receipt, event, why).await
    }

    pub(crate) async fn expect_of(
        &self,
        consumer: &str,
        receipt: Receipt,
        event: &EventIdentity,
        why: &str,
    ) -> Verdict {
        let found = self.receive(consumer, event).await?;
        answered(receipt, found, why)
    }

    /// Starts to receive an event in a second transaction while a first one is open. Fails if the answer is
    /// one that it cannot know yet.
    pub(crate) async fn receive_beside(&self, event: &EventIdentity, allowed: &[Receipt]) -> Verdict<Beside> {
        let (mut transaction, event) = (self.harness.begin().await, event.clone());
        let mut task = tokio::spawn(async move {
            let answer = transaction.receive(CONSUMER, &event).await;
            finish(transaction, answer).await
        });
        match tokio::time::timeout(WATCH, &mut task).await {
            Err(_) => Ok(Beside::Waits(task)),
            Ok(Ok(Err(error))) if is_conflict(&error) => Ok(Beside::Conflict),
            Ok(Ok(Ok(receipt))) if allowed.contains(&receipt) => Ok(Beside::Answered(receipt)),
            Ok(found) => Err(Violation::new(
                "a second transaction to wait, or to be asked to begin again",
                format!("{found:?} while the first is open"),
            )),
        }
    }

    /// What the second transaction answers now that the first has ended; begun again if it was asked to.
    pub(crate) async fn answer_of(&self, beside: Beside, event: &EventIdentity) -> Verdict<Receipt> {
        match beside {
            Beside::Answered(receipt) => Ok(receipt),
            Beside::Conflict => self.receive(CONSUMER, event).await,
            Beside::Waits(task) => match joined(task.await)? {
                Err(error) if is_conflict(&error) => self.receive(CONSUMER, event).await,
                answer => Ok(answer?),
            },
        }
    }

    /// Does the same in `count` transactions at the same time, each in a task of its own.
    pub(crate) async fn side_by_side<R, Work>(
        &self,
        count: usize,
        work: impl Fn(Box<dyn InboxTransaction>) -> Work,
    ) -> Verdict<Vec<Result<R, InboxError>>>
    where
        R: Send + 'static,
        Work: Future<Output = Result<R, InboxError>> + Send + 'static,
    {
        let mut tasks = Vec::new();
        for _ in 0..count {
            tasks.push(tokio::spawn(work(self.harness.begin().await)));
        }
        futures::future::join_all(tasks).await.into_iter().map(joined).collect()
    }
}

/// A purge that waits for another transaction.
pub(crate) struct Purging(tokio::task::JoinHandle<Result<u64, InboxError>>);

impl Purging {
    /// Its end, whatever that is.
    pub(crate) async fn ended(self) -> Verdict {
        joined(self.0.await).map(drop)
    }
}

/// A receipt in a second transaction.
pub(crate) enum Beside {
    /// It waits for the first.
    Waits(tokio::task::JoinHandle<Result<Receipt, InboxError>>),
    /// It was asked to begin again.
    Conflict,
    /// It was answered, and has committed.
    Answered(Receipt),
}

fn joined<R>(ended: Result<R, tokio::task::JoinError>) -> Verdict<R> {
    ended.map_err(|error| Violation::new("an answer", error.to_string()))
}

/// Commits what was answered and rolls back what was not.
pub(crate) async fn finish<R>(
    transaction: Box<dyn InboxTransaction>,
    answer: Result<R, InboxError>,
) -> Result<R, InboxError> {
    match answer {
        Ok(answer) => transaction.commit().await.map(|()| answer),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

pub(crate) fn is_conflict(error: &InboxError) -> bool {
    matches!(error, InboxError::Store(error) if error.kind() == StoreErrorKind::Conflict)
}

pub(crate) fn answered(expected: Receipt, found: Receipt, why: &str) -> Verdict {
    if expected == found {
        return Ok(());
    }
    Err(Violation::new(format!("{expected:?} for {why}"), format!("{found:?}")))
}

/// The identity, which the suite knows to be a valid one.
pub(crate) fn identity(source: &str, id: &str, time: Option<DateTime<Utc>>) -> EventIdentity {
    EventIdentity::new(source, id, time)
        .unwrap_or_else(|error| panic!("the suite made an invalid identity: {error}"))
}

impl From<InboxError> for Violation {
    fn from(error: InboxError) -> Self {
        Self::new("the inbox to answer", format!("an error: {}", chain(&error)))
    }
}
