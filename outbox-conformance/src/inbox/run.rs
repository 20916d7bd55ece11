//! Running one clause on one inbox, and what every clause stands on.

use std::{panic::AssertUnwindSafe, time::Duration};

use chrono::{DateTime, Utc};
use futures::{FutureExt, future::BoxFuture};
use outbox_core::{EventIdentity, InboxError, Receipt, StoreErrorKind};

use super::{INBOX_CLAUSES, InboxHarness, InboxTransaction};
use crate::{Violation, violation::Verdict};

/// The longest a clause may take: it bounds an inbox that hangs, and proves nothing.
const CLAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a transaction is watched for doing what it must not.
const WATCH: Duration = Duration::from_millis(200);

/// How often a transaction is begun again that the database asked to repeat.
pub(super) const TRIES_MAX: u32 = 100;

/// One sentence of the contract that an inbox can be found to break.
pub struct InboxClause {
    /// The name of its test.
    pub name: &'static str,
    /// What the contract says.
    pub sentence: &'static str,
    pub(super) run: for<'a> fn(&'a Stage<'a>) -> BoxFuture<'a, Verdict>,
}

impl std::fmt::Debug for InboxClause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Checks one clause on inboxes that are empty.
///
/// # Errors
/// What was expected and what was found instead.
pub async fn check_inbox_clause(clause: &InboxClause, harness: &dyn InboxHarness) -> Result<(), Violation> {
    let stage = Stage { harness, now: harness.now().await };
    match tokio::time::timeout(CLAUSE_MAX, (clause.run)(&stage)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(Violation::new(format!("an answer within {CLAUSE_MAX:?}"), "none".to_owned())),
    }
}

/// Runs the clause `name` on fresh inboxes in a runtime of its own: what the tests of
/// [`inbox_suite!`](crate::inbox_suite) call.
///
/// # Panics
/// If the inbox breaks the clause, with a message that says how; if there is no such clause.
pub fn run_inbox_clause<H: InboxHarness>(name: &str) {
    let Some(clause) = INBOX_CLAUSES.iter().find(|clause| clause.name == name) else {
        panic!("there is no clause {name}");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for clause {name}: {error}"));
    // On a task of its own, because a harness may block in it.
    let verdict = runtime.block_on(async {
        let run = async move {
            let harness = H::fresh().await?;
            let verdict = AssertUnwindSafe(check_inbox_clause(clause, &harness)).catch_unwind().await;
            harness.cleanup().await;
            Some(verdict)
        };
        tokio::spawn(run).await
    });
    match verdict {
        Ok(None | Some(Ok(Ok(())))) => {}
        Ok(Some(Ok(Err(violation)))) => panic!("clause {name}: {}\n{violation}", clause.sentence),
        Ok(Some(Err(panic))) => std::panic::resume_unwind(panic),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => panic!("clause {name}: {error}"),
        },
    }
}

/// The consumer of most clauses.
pub(super) const CONSUMER: &str = "billing";

/// The age that is purged, and events that are older than that and younger.
pub(super) const AGE: Duration = Duration::from_secs(2 * 3600);
pub(super) const OLDER: Duration = Duration::from_secs(4 * 3600);
pub(super) const OLD: Duration = Duration::from_secs(3 * 3600);
pub(super) const YOUNG: Duration = Duration::from_secs(90 * 60);

pub(super) struct Stage<'a> {
    pub(super) harness: &'a dyn InboxHarness,
    pub(super) now: DateTime<Utc>,
}

impl Stage<'_> {
    /// An event that happened so long ago.
    pub(super) fn event(&self, id: &str, age: Duration) -> EventIdentity {
        self.event_from("/shop", id, age)
    }

    pub(super) fn event_from(&self, source: &str, id: &str, age: Duration) -> EventIdentity {
        identity(source, id, Some(self.now - age))
    }

    /// Receives and commits, again if the database asks for it.
    pub(super) async fn receive(&self, consumer: &str, event: &EventIdentity) -> Verdict<Receipt> {
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
    pub(super) async fn purge(&self, rows_max: u32) -> Verdict<u64> {
        self.purge_of(CONSUMER, rows_max).await
    }

    pub(super) async fn purge_of(&self, consumer: &str, rows_max: u32) -> Verdict<u64> {
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

    pub(super) async fn expect(&self, receipt: Receipt, event: &EventIdentity, why: &str) -> Verdict {
        self.expect_of(CONSUMER, receipt, event, why).await
    }

    pub(super) async fn expect_of(
        &self,
        consumer: &str,
        receipt: Receipt,
        event: &EventIdentity,
        why: &str,
    ) -> Verdict {
        let found = self.receive(consumer, event).await?;
        answered(receipt, found, why)
    }

    /// Starts to receive an event in a second transaction while a first one is open. Fails if the answer is one that
    /// it cannot know yet.
    pub(super) async fn receive_beside(&self, event: &EventIdentity, allowed: &[Receipt]) -> Verdict<Beside> {
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
    pub(super) async fn answer_of(&self, beside: Beside, event: &EventIdentity) -> Verdict<Receipt> {
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
    pub(super) async fn side_by_side<R, Work>(
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

/// A receipt in a second transaction.
pub(super) enum Beside {
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
pub(super) async fn finish<R>(
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

pub(super) fn is_conflict(error: &InboxError) -> bool {
    matches!(error, InboxError::Store(error) if error.kind() == StoreErrorKind::Conflict)
}

pub(super) fn answered(expected: Receipt, found: Receipt, why: &str) -> Verdict {
    if expected == found {
        return Ok(());
    }
    Err(Violation::new(format!("{expected:?} for {why}"), format!("{found:?}")))
}

/// The identity, which the suite knows to be a valid one.
pub(super) fn identity(source: &str, id: &str, time: Option<DateTime<Utc>>) -> EventIdentity {
    EventIdentity::new(source, id, time)
        .unwrap_or_else(|error| panic!("the suite made an identity that is none: {error}"))
}

impl From<InboxError> for Violation {
    fn from(error: InboxError) -> Self {
        Self::new("the inbox to answer", format!("an error: {error}"))
    }
}
