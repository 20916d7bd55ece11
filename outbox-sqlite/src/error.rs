//! From what SQLite says to what a caller can do.

use outbox_core::{StoreError, StoreErrorKind, statement::DriverError};
use rusqlite::{Error, ErrorCode, ffi};

/// The kind of a driver's error, by SQLite's result code (<https://www.sqlite.org/rescode.html>).
pub(crate) fn classify(error: &Error) -> StoreErrorKind {
    let (code, message) = match error {
        Error::SqliteFailure(code, message) => (code.code, message.clone().unwrap_or_default()),
        // With the bundled library the driver has a variant for errors in SQL; its text begins with
        // SQLite's message.
        other => (ErrorCode::Unknown, other.to_string()),
    };
    classify_code(code, &message)
}

fn classify_code(code: ErrorCode, message: &str) -> StoreErrorKind {
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SchemaChanged => {
            StoreErrorKind::Conflict
        }
        ErrorCode::CannotOpen
        | ErrorCode::SystemIoFailure
        | ErrorCode::DiskFull
        | ErrorCode::OutOfMemory
        | ErrorCode::FileLockingProtocolFailed => StoreErrorKind::Unavailable,
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied => {
            StoreErrorKind::Denied
        }
        ErrorCode::ApiMisuse => StoreErrorKind::Misuse,
        // SQLite has no code of its own for these; the words are part of its test suite and have not
        // changed since version 3.0.
        _ if message.starts_with("no such") || message.contains("has no column named") => {
            StoreErrorKind::Schema
        }
        _ => StoreErrorKind::Unexpected,
    }
}

/// Turns a driver's error into the store's, saying what was being done.
pub(crate) fn store_error(what: &str, error: Error) -> StoreError {
    described(what, classify(&error)).with_source(error)
}

/// The same of an error that any driver answered.
pub(crate) fn driver_error(what: &str, error: DriverError) -> StoreError {
    let code = error.code().and_then(|code| code.parse().ok()).map(ffi::Error::new);
    let by_code = code.map(|code| classify_code(code.code, &error.to_string()));
    let kind = error.kind().or(by_code).unwrap_or(StoreErrorKind::Unexpected);
    described(what, kind).with_source(error.into_source())
}

fn described(what: &str, kind: StoreErrorKind) -> StoreError {
    let remedy = match kind {
        StoreErrorKind::Schema => ": run the migration",
        StoreErrorKind::Conflict => ": another writer held the database for longer than busy_timeout",
        _ => "",
    };
    StoreError::new(kind, format!("sqlite could not {what}{remedy}"))
}

/// Adds what was being done to a driver's result.
pub(crate) trait Context<T> {
    /// The result with a store's error; `what` completes "sqlite could not …".
    fn doing(self, what: &str) -> Result<T, StoreError>;
}

impl<T> Context<T> for Result<T, Error> {
    fn doing(self, what: &str) -> Result<T, StoreError> {
        self.map_err(|error| store_error(what, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_code_has_a_kind() {
        for (code, kind) in [
            (ffi::SQLITE_BUSY, StoreErrorKind::Conflict),
            (ffi::SQLITE_BUSY_SNAPSHOT, StoreErrorKind::Conflict),
            (ffi::SQLITE_LOCKED, StoreErrorKind::Conflict),
            (ffi::SQLITE_CANTOPEN, StoreErrorKind::Unavailable),
            (ffi::SQLITE_IOERR_FSYNC, StoreErrorKind::Unavailable),
            (ffi::SQLITE_FULL, StoreErrorKind::Unavailable),
            (ffi::SQLITE_READONLY, StoreErrorKind::Denied),
            (ffi::SQLITE_PERM, StoreErrorKind::Denied),
            (ffi::SQLITE_NOTADB, StoreErrorKind::Unexpected),
            (ffi::SQLITE_CORRUPT, StoreErrorKind::Unexpected),
        ] {
            assert_eq!(classify(&Error::SqliteFailure(ffi::Error::new(code), None)), kind, "{code}");
        }
    }

    #[test]
    fn a_missing_table_or_index_asks_for_the_migration() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let error = connection.prepare("SELECT 1 FROM outbox").map(drop).unwrap_err();
        assert_eq!(classify(&error), StoreErrorKind::Schema, "{error:?}");
        connection.execute_batch("CREATE TABLE outbox (a)").unwrap();
        for sql in
            ["SELECT b FROM outbox", "INSERT INTO outbox (b) VALUES (1)", "SELECT 1 FROM outbox INDEXED BY i"]
        {
            let error = connection.prepare(sql).map(drop).unwrap_err();
            assert_eq!(classify(&error), StoreErrorKind::Schema, "{error:?}");
        }
        assert!(store_error("read", error).to_string().contains("run the migration"));
    }
}
