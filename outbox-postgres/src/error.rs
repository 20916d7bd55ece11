//! What a PostgreSQL error means for the caller.

use std::{future::Future, time::Duration};

use outbox_core::{StoreError, StoreErrorKind, statement::DriverError};

/// How long any one call may take before its connection is given up. Longer than the servers own timeouts
/// (see `database`), so it acts only when the server cannot be heard any more.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// The kind of an error, by its SQLSTATE where it has one.
pub(crate) fn classify(error: &sqlx::Error) -> StoreErrorKind {
    match error {
        sqlx::Error::Database(database) => {
            database.code().map_or(StoreErrorKind::Unexpected, |code| classify_code(&code))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => StoreErrorKind::Unavailable,
        sqlx::Error::Configuration(_) => StoreErrorKind::Misuse,
        _ => StoreErrorKind::Unexpected,
    }
}

/// The kind of a SQLSTATE (PostgreSQL manual, appendix A).
fn classify_code(code: &str) -> StoreErrorKind {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => StoreErrorKind::Conflict,
        // read_only_sql_transaction: after a fail-over the old primary is a replica, and the next
        // connection may find the new one. idle_in_transaction_session_timeout, query_canceled by
        // statement_timeout, statement_completion_unknown: the same thing may work when it is tried again.
        "25006" | "25P03" | "57014" | "40003" => StoreErrorKind::Unavailable,
        // no_active_sql_transaction, in_failed_sql_transaction
        "25P01" | "25P02" => StoreErrorKind::Misuse,
        "42501" => StoreErrorKind::Denied,
        // undefined_table, undefined_column, undefined_function, undefined_object, invalid_schema_name,
        // invalid_catalog_name, datatype_mismatch of a column that has another type
        "42P01" | "42703" | "42883" | "42704" | "3F000" | "3D000" | "42804" => StoreErrorKind::Schema,
        _ => match code.get(..2) {
            // connection exceptions, insufficient resources, operator intervention, system errors
            Some("08" | "53" | "57" | "58") => StoreErrorKind::Unavailable,
            Some("28") => StoreErrorKind::Denied,
            _ => StoreErrorKind::Unexpected,
        },
    }
}

/// A driver's error with what was being done.
pub(crate) fn store_error(what: &str, error: sqlx::Error) -> StoreError {
    let kind = classify(&error);
    let code = error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned());
    described(what, kind, code.as_deref()).with_source(error)
}

/// The same of an error that any driver answered.
pub(crate) fn driver_error(what: &str, error: DriverError) -> StoreError {
    let kind = error.code().map(classify_code).or(error.kind()).unwrap_or(StoreErrorKind::Unexpected);
    described(what, kind, error.code()).with_source(error.into_source())
}

fn described(what: &str, kind: StoreErrorKind, code: Option<&str>) -> StoreError {
    let hint = match (kind, code) {
        (_, Some("26000" | "42P05")) => {
            " (a pooler in transaction mode loses prepared statements: configure the writer with prepare(false), and \
             connect the relay to PostgreSQL directly)"
        }
        (StoreErrorKind::Schema, _) => " (run the migration)",
        (StoreErrorKind::Denied, _) => " (grant the role what the documentation lists)",
        _ => "",
    };
    StoreError::new(kind, format!("cannot {what}{hint}"))
}

/// no_active_sql_transaction
pub(crate) const NO_TRANSACTION: &str = "25P01";

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
    fn every_code_has_the_kind_that_the_caller_acts_on() {
        use StoreErrorKind::{Conflict, Denied, Misuse, Schema, Unavailable, Unexpected};
        for (code, kind) in [
            ("40001", Conflict),
            ("40P01", Conflict),
            ("55P03", Conflict),
            ("08006", Unavailable),
            ("53300", Unavailable),
            ("57P01", Unavailable),
            ("57P03", Unavailable),
            ("57014", Unavailable),
            ("25006", Unavailable),
            ("25P03", Unavailable),
            ("58030", Unavailable),
            ("25P01", Misuse),
            ("25P02", Misuse),
            ("28P01", Denied),
            ("28000", Denied),
            ("42501", Denied),
            ("42P01", Schema),
            ("42703", Schema),
            ("3D000", Schema),
            ("3F000", Schema),
            ("23505", Unexpected),
            ("22021", Unexpected),
            ("XX000", Unexpected),
        ] {
            assert_eq!(classify_code(code), kind, "{code}");
        }
    }

    #[test]
    fn errors_without_a_code_are_classified_by_where_they_come_from() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(classify(&sqlx::Error::Io(io)), StoreErrorKind::Unavailable);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), StoreErrorKind::Unavailable);
        assert_eq!(classify(&sqlx::Error::RowNotFound), StoreErrorKind::Unexpected);
    }
}
