//! What an error of MySQL or MariaDB means for the caller.

use std::{future::Future, time::Duration};

use outbox_core::{StoreError, StoreErrorKind, statement::DriverError};
use sqlx::mysql::MySqlDatabaseError;

/// How long any one call may take before its connection is given up.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// How often a call is made that the server asks to be made again.
const CALLS_MAX: u32 = 4;

/// The number of the server's error, if it is one.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    let database = error.as_database_error()?;
    database.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// An entry for a unique key is there already.
pub(crate) const DUPLICATE: u16 = 1062;
/// There is no such savepoint: outside a transaction it ends with the statement that made it.
pub(crate) const NO_SAVEPOINT: u16 = 1305;
/// There is no such database, or no such table.
pub(crate) const NO_DATABASE: u16 = 1049;
pub(crate) const NO_TABLE: u16 = 1146;

/// The kind of an error, by the server's number where it has one.
pub(crate) fn classify(error: &sqlx::Error) -> StoreErrorKind {
    match error {
        sqlx::Error::Database(_) => number(error).map_or(StoreErrorKind::Unexpected, classify_number),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => StoreErrorKind::Unavailable,
        sqlx::Error::Configuration(_) => StoreErrorKind::Misuse,
        _ => StoreErrorKind::Unexpected,
    }
}

/// The kind of an error's number (MySQL's "Server Error Message Reference" and MariaDB's "Error Codes").
fn classify_number(number: u16) -> StoreErrorKind {
    match number {
        // ER_CHECKREAD, ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK, ER_LOCK_NOWAIT
        1020 | 1205 | 1213 | 3572 => StoreErrorKind::Conflict,
        // Too many connections, out of memory or disk, shutting down, killed or timed out, errors of the
        // network.
        1021
        | 1040
        | 1041
        | 1053
        | 1114
        | 1158..=1161
        | 1180
        | 1203
        | 1226
        | 1317
        | 1927
        | 1969
        | 3024
        | 4031 => StoreErrorKind::Unavailable,
        // The server only reads: after a fail-over the old primary is a replica, and the next connection
        // may find the new one. A node of a cluster is not ready, or the cluster refused the commit.
        1047 | 1290 | 1792 | 1836 | 3100 | 3101 => StoreErrorKind::Unavailable,
        // Access denied by user, database, table, column, routine or privilege; a host that may not
        // connect; an expired password, a locked account; encryption that is demanded.
        1044 | 1045 | 1129 | 1130 | 1142 | 1143 | 1227 | 1370 | 1698 | 1820 | 1862 | 3118 | 3159 | 4151 => {
            StoreErrorKind::Denied
        }
        // No such table, column, database or index; a column that must have a value and is not known.
        NO_DATABASE | 1051 | 1054 | NO_TABLE | 1136 | 1176 | 1364 => StoreErrorKind::Schema,
        // Transaction characteristics in a transaction.
        1568 => StoreErrorKind::Misuse,
        _ => StoreErrorKind::Unexpected,
    }
}

/// A driver's error with what was being done.
pub(crate) fn store_error(what: &str, error: sqlx::Error) -> StoreError {
    described(what, classify(&error)).with_source(error)
}

/// The same of an error that any driver answered.
pub(crate) fn driver_error(what: &str, error: DriverError) -> StoreError {
    let kind = number_of(&error).map(classify_number).or(error.kind());
    described(what, kind.unwrap_or(StoreErrorKind::Unexpected)).with_source(error.into_source())
}

/// The number of the server's error, from any driver.
pub(crate) fn number_of(error: &DriverError) -> Option<u16> {
    error.code()?.parse().ok()
}

fn described(what: &str, kind: StoreErrorKind) -> StoreError {
    let hint = match kind {
        StoreErrorKind::Schema => " (run the migration)",
        StoreErrorKind::Denied => " (grant the user what the documentation lists)",
        _ => "",
    };
    StoreError::new(kind, format!("cannot {what}{hint}"))
}

/// Runs a call against the server, and gives up when nothing is heard of it.
pub(crate) async fn within<T>(
    what: &str,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(result) => result.map_err(|error| store_error(what, error)),
        Err(_) => Err(silent(what)),
    }
}

/// Makes a call again that the server has undone: InnoDB ends a deadlock by rolling one of the
/// transactions back, and which one is not ours to say.
pub(crate) async fn again<T, F>(mut call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..CALLS_MAX {
        match call().await {
            Err(error) if error.kind() == StoreErrorKind::Conflict => {}
            other => return other,
        }
    }
    call().await
}

/// The server does not answer.
pub(crate) fn silent(what: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        format!("cannot {what}: the server has not answered for {} s", CALL_TIMEOUT.as_secs()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_the_kind_that_the_caller_acts_on() {
        use StoreErrorKind::{Conflict, Denied, Misuse, Schema, Unavailable, Unexpected};
        for (number, kind) in [
            (1213, Conflict),
            (1205, Conflict),
            (1020, Conflict),
            (1040, Unavailable),
            (1053, Unavailable),
            (1159, Unavailable),
            (1290, Unavailable),
            (1317, Unavailable),
            (1792, Unavailable),
            (1836, Unavailable),
            (1927, Unavailable),
            (1969, Unavailable),
            (3024, Unavailable),
            (4031, Unavailable),
            (1044, Denied),
            (1045, Denied),
            (1142, Denied),
            (1143, Denied),
            (3159, Denied),
            (1049, Schema),
            (1054, Schema),
            (1146, Schema),
            (1176, Schema),
            (1568, Misuse),
            (1062, Unexpected),
            (1064, Unexpected),
        ] {
            assert_eq!(classify_number(number), kind, "{number}");
        }
    }

    #[test]
    fn errors_without_a_number_are_classified_by_where_they_come_from() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(classify(&sqlx::Error::Io(io)), StoreErrorKind::Unavailable);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), StoreErrorKind::Unavailable);
        assert_eq!(classify(&sqlx::Error::RowNotFound), StoreErrorKind::Unexpected);
    }
}
