//! What a MongoDB error means for the caller.

use std::{fmt, future::Future, time::Duration};

use mongodb::error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, WriteFailure};
use outbox_core::{StoreError, StoreErrorKind};

/// How long any one call may take before it is given up. Longer than the driver's own limits, so it acts only
/// when the server cannot be heard any more.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// The code of a unique index that was hit.
pub(crate) const DUPLICATE_KEY: i32 = 11_000;

/// What went wrong with a command: the driver's error, or that of one write of many, which the driver passes
/// on as part of an answer.
#[derive(Debug)]
pub(crate) enum Fault {
    Driver(Error),
    Write { code: i32, message: String },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => write!(f, "{}", error.kind),
            Self::Write { code, message } => write!(f, "a write failed with code {code}: {message}"),
        }
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Driver(error) => Some(error),
            Self::Write { .. } => None,
        }
    }
}

impl Fault {
    pub(crate) fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Driver(error) => classify(error),
            Self::Write { code, .. } => classify_code(*code),
        }
    }

    /// Whether running the same transaction again is right, and at once.
    pub(crate) fn is_conflict(&self) -> bool {
        let code = match self {
            Self::Driver(error) => code_of(error),
            Self::Write { code, .. } => Some(*code),
        };
        // Two transactions that insert one document are a conflict that the server does not always call so.
        self.kind() == StoreErrorKind::Conflict || code == Some(DUPLICATE_KEY)
    }
}

/// The server's code of an error.
pub(crate) fn code_of(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        ErrorKind::InsertMany(many) => {
            let write = many.write_errors.as_ref().and_then(|errors| errors.first()).map(|error| error.code);
            write.or_else(|| many.write_concern_error.as_ref().map(|error| error.code))
        }
        _ => None,
    }
}

/// The kind of a driver's error, by the server's code where it has one.
pub(crate) fn classify(error: &Error) -> StoreErrorKind {
    match &*error.kind {
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::Shutdown => StoreErrorKind::Unavailable,
        ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => StoreErrorKind::Denied,
        ErrorKind::InvalidArgument { .. } | ErrorKind::Transaction { .. } => StoreErrorKind::Misuse,
        _ => match code_of(error).map(classify_code) {
            Some(StoreErrorKind::Unexpected) | None if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => {
                StoreErrorKind::Conflict
            }
            kind => kind.unwrap_or(StoreErrorKind::Unexpected),
        },
    }
}

/// The kind of a server's code (`src/mongo/base/error_codes.yml` of the server).
fn classify_code(code: i32) -> StoreErrorKind {
    match code {
        // LockTimeout, WriteConflict, LockBusy, SnapshotTooOld, SnapshotUnavailable, NoSuchTransaction,
        // TemporarilyUnavailable. A transaction that is gone was ended by the server, and can be run again.
        24 | 112 | 46 | 239 | 246 | 251 | 365 => StoreErrorKind::Conflict,
        // HostUnreachable, HostNotFound, NetworkTimeout, ShutdownInProgress, NotWritablePrimary,
        // NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary, PrimarySteppedDown, InterruptedAtShutdown,
        // InterruptedDueToReplStateChange, SocketException, WriteConcernFailed, MaxTimeMSExpired,
        // ExceededTimeLimit, ReadConcernMajorityNotAvailableYet, FailedToSatisfyReadPreference,
        // OutOfDiskSpace, Interrupted
        6 | 7 | 89 | 91 | 10_107 | 13_435 | 13_436 | 189 | 11_600 | 11_602 | 9_001 | 64 | 50 | 262 | 134
        | 133 | 14_031 | 11_601 => StoreErrorKind::Unavailable,
        // Unauthorized, AuthenticationFailed, UserNotFound, AtlasError
        13 | 18 | 11 | 8_000 => StoreErrorKind::Denied,
        // NamespaceNotFound, IndexNotFound, and what the server says of a hint on an index that is not there:
        // BadValue
        26 | 27 | 2 => StoreErrorKind::Schema,
        _ => StoreErrorKind::Unexpected,
    }
}

/// An error with what was being done.
pub(crate) fn store_error(what: &str, fault: impl Into<Fault>) -> StoreError {
    let fault = fault.into();
    let kind = fault.kind();
    let hint = match kind {
        StoreErrorKind::Schema => " (run the migration)",
        StoreErrorKind::Denied => " (correct the account, and grant it what the documentation lists)",
        _ => "",
    };
    StoreError::new(kind, format!("cannot {what}{hint}")).with_source(fault)
}

/// The same in a transaction of the caller, who is to run it again after a conflict, whatever the server
/// calls it.
pub(crate) fn transaction_error(what: &str, fault: impl Into<Fault>) -> StoreError {
    let fault = fault.into();
    if !fault.is_conflict() {
        return store_error(what, fault);
    }
    let what = format!("cannot {what} beside another transaction: abort this one and begin again");
    StoreError::new(StoreErrorKind::Conflict, what).with_source(fault)
}

/// Runs a call against the server, and gives up when nothing is heard of it.
pub(crate) async fn within<T, E: Into<Fault>>(
    what: &str,
    call: impl Future<Output = Result<T, E>>,
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

/// The collections are not there.
pub(crate) fn not_migrated(what: &str, database: &str, table: &str) -> StoreError {
    let what =
        format!("cannot {what}: there is no outbox {table} in the database {database} (run the migration)");
    StoreError::new(StoreErrorKind::Schema, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_kind() {
        for (code, kind) in [
            (112, StoreErrorKind::Conflict),
            (251, StoreErrorKind::Conflict),
            (10_107, StoreErrorKind::Unavailable),
            (189, StoreErrorKind::Unavailable),
            (11_602, StoreErrorKind::Unavailable),
            (13, StoreErrorKind::Denied),
            (18, StoreErrorKind::Denied),
            (26, StoreErrorKind::Schema),
            (2, StoreErrorKind::Schema),
            (20, StoreErrorKind::Unexpected),
            (DUPLICATE_KEY, StoreErrorKind::Unexpected),
        ] {
            assert_eq!(classify_code(code), kind, "{code}");
        }
    }

    #[test]
    fn a_lost_connection_is_unavailable_and_a_missing_index_asks_for_the_migration() {
        let error = Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(classify(&error), StoreErrorKind::Unavailable);
        let fault = Fault::Write { code: 2, message: "hint".to_owned() };
        assert!(store_error("fetch", fault).to_string().contains("run the migration"));
        assert!(Fault::Write { code: DUPLICATE_KEY, message: String::new() }.is_conflict());
    }
}
