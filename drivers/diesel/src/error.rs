//! What diesel leaves of an error: a kind and a message, without the database's code.

use diesel::result::{DatabaseErrorKind, Error};
use outbox_core::{StoreErrorKind, statement::DriverError};

/// The codes of one database that can be told from what diesel leaves.
pub(crate) struct Codes {
    pub(crate) duplicate: &'static str,
    pub(crate) conflict: &'static str,
    /// The statement needs a transaction.
    pub(crate) outside: &'static str,
    /// What the message of that error contains in every language that the server speaks, and no other
    /// message of the statements that an adapter runs without parameters.
    pub(crate) outside_word: &'static str,
}

impl Codes {
    /// The error of a statement with parameters.
    pub(crate) fn failed(&self, error: Error) -> DriverError {
        let (code, kind) = match &error {
            Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => (Some(self.duplicate), None),
            Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => (Some(self.conflict), None),
            Error::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            ) => (None, Some(StoreErrorKind::Unavailable)),
            Error::BrokenTransactionManager => (None, Some(StoreErrorKind::Unavailable)),
            _ => (None, None),
        };
        let error = DriverError::new(error).with_code(code);
        if let Some(kind) = kind { error.with_kind(kind) } else { error }
    }

    /// The error of a text of statements without parameters.
    pub(crate) fn refused(&self, error: Error) -> DriverError {
        match &error {
            Error::DatabaseError(DatabaseErrorKind::Unknown, information)
                if information.message().contains(self.outside_word) =>
            {
                let outside = Some(self.outside);
                DriverError::new(error).with_code(outside)
            }
            _ => self.failed(error),
        }
    }
}

/// "SAVEPOINT can only be used in transaction blocks": the name of the statement is not translated.
#[cfg(any(feature = "postgres", feature = "async-postgres"))]
pub(crate) const POSTGRES: Codes =
    Codes { duplicate: "23505", conflict: "40001", outside: "25P01", outside_word: "SAVEPOINT" };

/// "SAVEPOINT outbox_enqueue does not exist": the name of the savepoint is not translated.
#[cfg(feature = "async-mysql")]
pub(crate) const MYSQL: Codes =
    Codes { duplicate: "1062", conflict: "1213", outside: "1305", outside_word: "outbox_" };

/// The adapter finds a transaction by its own means.
#[cfg(feature = "sqlite")]
pub(crate) const SQLITE: Codes =
    Codes { duplicate: "2067", conflict: "5", outside: "1", outside_word: "within a transaction" };
