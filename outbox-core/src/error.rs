//! Errors with a kind the caller can act on.

use std::{error::Error, fmt};

/// Prints an error and its causes, for logs and people: `reading the events: connection refused`. An error of
/// this crate prints its own text alone and leaves its cause to [`Error::source`]. Drivers' errors often
/// print their causes as well: of two that follow each other, a text that stands in the other one is not
/// printed.
///
/// ```
/// use outbox_core::{StoreError, StoreErrorKind, chain};
///
/// let refused = std::io::Error::other("connection refused");
/// let error = StoreError::new(StoreErrorKind::Unavailable, "reading the events").with_source(refused);
/// assert_eq!(error.to_string(), "reading the events");
/// assert_eq!(chain(&error).to_string(), "reading the events: connection refused");
/// ```
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    fmt::from_fn(move |f| {
        let mut texts: Vec<String> = Vec::new();
        for error in std::iter::successors(Some(error), |&error| error.source()) {
            let text = error.to_string();
            match texts.last_mut() {
                Some(last) if last.contains(&text) => {}
                Some(last) if text.contains(last.as_str()) => *last = text,
                _ => texts.push(text),
            }
        }
        f.write_str(&texts.join(": "))
    })
}

/// What a caller can do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store cannot be reached, or dropped the connection. The outcome of the statement is unknown. Try
    /// again.
    Unavailable,
    /// The store asks to run the same thing again: a deadlock, a serialisation failure, a busy file.
    Conflict,
    /// A table, a column or a whole schema version is missing. Run the migration.
    Schema,
    /// The store refuses who asks: a credential or a privilege. A person must act.
    Denied,
    /// A caller error: enqueue outside a transaction, or an invalid identifier.
    Misuse,
    /// Anything else.
    Unexpected,
}

/// A store could not do what was asked of it.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of `kind`; `what` says what was being done, to which object, and the remedy where there is
    /// one: in lower case, without a full stop.
    pub fn new(kind: StoreErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// Keeps the driver's error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What can be done about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

/// What was being done. Why it failed is the source: [`chain`] prints both.
impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// An event was not written. The caller's transaction is untouched by a refused event; after a
/// [`Store`](Self::Store) error it is what the driver says of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The event breaks a limit; refused before anything was sent to the database.
    #[error(transparent)]
    Event(#[from] crate::EventError),
    /// The connection is not inside a transaction, so the event could commit without the change it tells of.
    #[error("enqueue outside a transaction: begin one, write your change and the event in it, then commit")]
    NoTransaction,
    /// An event with this id is there already.
    #[error("event {0} is already in the outbox: ids are unique")]
    Duplicate(uuid::Uuid),
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An inbox could not answer. The caller's transaction is untouched, but for a [`Store`](Self::Store) error,
/// after which it is what the driver says of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The connection is not inside a transaction, so the receipt could commit without the effect.
    #[error("receive outside a transaction: begin one, ask the inbox, make the effect in it, then commit")]
    NoTransaction,
    /// A purge of receipts that are too young: see [`PURGE_AGE_MIN`](crate::inbox::PURGE_AGE_MIN).
    #[error("purge of receipts older than {0:?}: give {min:?} at least", min = crate::inbox::PURGE_AGE_MIN)]
    PurgeAge(std::time::Duration),
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Wrapping {
        text: &'static str,
        source: Option<Box<Wrapping>>,
    }

    fn chained(texts: &[&'static str]) -> String {
        let wrap =
            |source: Option<Box<Wrapping>>, text: &&'static str| Some(Box::new(Wrapping { text, source }));
        let error = texts.iter().rev().fold(None, wrap).unwrap();
        chain(&StoreError::new(StoreErrorKind::Unavailable, "cannot read").with_source(error)).to_string()
    }

    #[test]
    fn every_cause_is_printed_once() {
        assert_eq!(chained(&["pool", "network", "refused"]), "cannot read: pool: network: refused");
        assert_eq!(chained(&["database: no table", "no table"]), "cannot read: database: no table");
        assert_eq!(
            chained(&["no table", "database: no table (42P01)"]),
            "cannot read: database: no table (42P01)"
        );
    }
}
