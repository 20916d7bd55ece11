//! Transactions of the relay and the operator: run again while they are in each other's way.

use std::time::Duration;

use futures::future::BoxFuture;
use mongodb::{
    Client, ClientSession, Database,
    bson::{Document, doc},
    error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT},
    options::{ReadConcern, ReadPreference, SelectionCriteria, TransactionOptions, WriteConcern},
};
use outbox_core::{StoreError, StoreErrorKind};

use crate::error::{CALL_TIMEOUT, Fault, silent, store_error};

/// How often a transaction is run that is in another one's way, and how often a commit is asked for.
const TRIES_MAX: u32 = 12;

/// The longest pause before the next try; the first ones are shorter.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What a transaction does: a function of a context that it borrows, because it may be run more than once.
pub(crate) type Work<C, T> = for<'a> fn(&'a mut ClientSession, &'a C) -> BoxFuture<'a, Result<T, Fault>>;

/// Runs `work` in a transaction with a snapshot of what a majority has, committed to a majority. It is run
/// again after a conflict; in the end that is what the error says.
///
/// It runs in a task of its own, and to its end when the caller no longer waits: the driver does not end a
/// transaction whose first statement was dropped while it was under way, and its locks would stay until the
/// server ends it.
pub(crate) async fn transact<C: Send + Sync + 'static, T: Send + 'static>(
    client: &Client,
    what: &'static str,
    context: C,
    work: Work<C, T>,
) -> Result<T, StoreError> {
    let client = client.clone();
    let run = async move {
        match tokio::time::timeout(CALL_TIMEOUT, run(&client, &context, work)).await {
            Ok(result) => result.map_err(|fault| store_error(what, fault)),
            Err(_) => Err(silent(what)),
        }
    };
    match tokio::spawn(run).await {
        Ok(result) => result,
        Err(error) => {
            let what = format!("cannot {what}: its task has ended");
            Err(StoreError::new(StoreErrorKind::Unexpected, what).with_source(error))
        }
    }
}

async fn run<C: Sync, T: Send>(client: &Client, context: &C, work: Work<C, T>) -> Result<T, Fault> {
    let mut session = client.start_session().await?;
    for attempt in 1.. {
        match run_once(&mut session, context, work).await {
            Err(fault) if fault.is_conflict() && attempt < TRIES_MAX => pause(attempt).await,
            result => return result,
        }
    }
    Err(Fault::Write { code: 112, message: "no try is left".to_owned() })
}

async fn run_once<C: Sync, T: Send>(
    session: &mut ClientSession,
    context: &C,
    work: Work<C, T>,
) -> Result<T, Fault> {
    let options = TransactionOptions::builder()
        .read_concern(ReadConcern::snapshot())
        .write_concern(WriteConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .build();
    session.start_transaction().with_options(options).await?;
    match work(&mut *session, context).await {
        Ok(value) => commit(session).await.map(|()| value),
        Err(fault) => {
            // The server may have ended it by itself; then there is nothing to end.
            let _ = session.abort_transaction().await;
            Err(fault)
        }
    }
}

/// Commits, and asks again while the outcome is unknown, which is safe.
async fn commit(session: &mut ClientSession) -> Result<(), Fault> {
    for attempt in 1.. {
        match session.commit_transaction().await {
            Err(error)
                if attempt < TRIES_MAX
                    && error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
                    && !error.contains_label(TRANSIENT_TRANSACTION_ERROR) =>
            {
                pause(attempt).await;
            }
            result => return Ok(result?),
        }
    }
    Ok(())
}

/// A pause that grows, and differs between those who are in each other's way.
async fn pause(attempt: u32) {
    let most = Duration::from_millis(1 << attempt.min(10)).min(PAUSE_MAX);
    // The address of a fresh UUID's random bits spares a generator of random numbers.
    let random = f64::from(uuid::Uuid::now_v7().as_bytes()[15]) / 255.0;
    tokio::time::sleep(most.mul_f64(random)).await;
}

/// Whether the session is in a transaction. The driver does not say so, but it begins none beside one.
/// Nothing is sent.
pub(crate) async fn is_open(session: &mut ClientSession) -> Result<bool, Error> {
    match session.start_transaction().await {
        Ok(()) => session.abort_transaction().await.map(|()| false),
        Err(error) => match &*error.kind {
            ErrorKind::Transaction { message, .. } if message.contains("already in progress") => Ok(true),
            _ => Err(error),
        },
    }
}

/// Runs many writes of one collection as one command, in the session's transaction; fails with the first that
/// fails.
pub(crate) async fn write(
    database: &Database,
    session: &mut ClientSession,
    (command, collection, list): (&str, &str, &str),
    writes: Vec<Document>,
) -> Result<(), Fault> {
    if writes.is_empty() {
        return Ok(());
    }
    let command = doc! { command: collection, list: writes, "ordered": true };
    let answer = database.run_command(command).session(session).await?;
    check_writes(&answer)
}

/// The error of a write that failed within a command that did not.
pub(crate) fn check_writes(answer: &Document) -> Result<(), Fault> {
    let errors = answer.get_array("writeErrors").ok();
    let Some(error) = errors.and_then(|errors| errors.first()).and_then(|error| error.as_document()) else {
        return Ok(());
    };
    Err(Fault::Write {
        code: error.get_i32("code").unwrap_or_default(),
        message: error.get_str("errmsg").unwrap_or_default().to_owned(),
    })
}
