//! What a failed clause says: [`Violation`].

use std::{collections::BTreeSet, fmt};

use outbox_core::{EnqueueError, StoreError, chain, store::Sequence};

/// The outcome of a clause.
pub(crate) type Verdict<T = ()> = Result<T, Violation>;

/// A clause that the store does not keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    expected: String,
    found: String,
}

impl Violation {
    pub(crate) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  expected: {}\n  found:    {}", self.expected, self.found)
    }
}

impl std::error::Error for Violation {}

impl From<StoreError> for Violation {
    fn from(error: StoreError) -> Self {
        Self::new("the store to answer", format!("an error of kind {:?}: {}", error.kind(), chain(&error)))
    }
}

impl From<EnqueueError> for Violation {
    fn from(error: EnqueueError) -> Self {
        Self::new("the events to be written", format!("an error: {}", chain(&error)))
    }
}

/// Holds if `condition` does.
pub(crate) fn that(condition: bool, expected: impl Into<String>, found: impl fmt::Debug) -> Verdict {
    if condition { Ok(()) } else { Err(Violation::new(expected, format!("{found:?}"))) }
}

/// Holds if both are the same.
#[allow(clippy::needless_pass_by_value, reason = "callers hand over what they have just asked for")]
pub(crate) fn equal<T: PartialEq + fmt::Debug>(what: &str, expected: T, found: T) -> Verdict {
    if expected == found {
        return Ok(());
    }
    Err(Violation::new(format!("{what}: {}", short(&expected)), short(&found)))
}

/// Holds if both are the same sequences, in any order; names those that are missing and those that are too
/// many.
pub(crate) fn same_sequences(what: &str, expected: &[Sequence], found: &[Sequence]) -> Verdict {
    let mut missing: BTreeSet<_> = expected.iter().copied().collect();
    let mut extra = Vec::new();
    for sequence in found {
        if !missing.remove(sequence) {
            extra.push(*sequence);
        }
    }
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(Violation::new(
        format!("{what}: sequences {}", short(&expected)),
        format!("{}; missing {}, extra {}", short(&found), short(&missing), short(&extra)),
    ))
}

/// At most a few hundred characters of a value, so that a payload of a megabyte does not fill the terminal.
pub(crate) fn short(value: &impl fmt::Debug) -> String {
    const CHARS_MAX: usize = 400;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text,
    }
}
