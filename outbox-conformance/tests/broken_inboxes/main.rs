//! The inbox half's own test: inboxes that are broken in one way each, and the clauses that must find it out.
//! A clause that no broken inbox fails could not fail at all, and is a defect too.
#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod inbox;

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures::{FutureExt, future::join_all};
use outbox_conformance::{INBOX_CLAUSES, InboxClause, check_inbox_clause};

use crate::{
    faults::{FAULTS, Fault},
    inbox::BrokenInboxes,
};

/// The clause, if it fails: by a violation or by a panic, as in a test.
async fn failed(fault: Fault, clause: &'static InboxClause) -> Option<&'static str> {
    let harness = BrokenInboxes::new(fault);
    let verdict = AssertUnwindSafe(check_inbox_clause(clause, &harness)).catch_unwind().await;
    (!matches!(verdict, Ok(Ok(())))).then_some(clause.name)
}

async fn failed_clauses(fault: Fault) -> BTreeSet<&'static str> {
    join_all(INBOX_CLAUSES.iter().map(|clause| failed(fault, clause))).await.into_iter().flatten().collect()
}

#[tokio::test]
async fn every_broken_inbox_fails_its_own_clauses_and_no_others() {
    let mut wrong = Vec::new();
    for (fault, clauses) in FAULTS {
        let expected: BTreeSet<_> = clauses.iter().copied().collect();
        let failed = failed_clauses(*fault).await;
        if expected != failed {
            let missed: Vec<_> = expected.difference(&failed).collect();
            let besides: Vec<_> = failed.difference(&expected).collect();
            wrong.push(format!("{fault:?}: not found out by {missed:?}, but also by {besides:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_clause_finds_some_broken_inbox_out() {
    let all: BTreeSet<_> = INBOX_CLAUSES.iter().map(|clause| clause.name).collect();
    let failed: BTreeSet<_> = FAULTS.iter().flat_map(|(_, clauses)| clauses.iter().copied()).collect();
    let never: Vec<_> = all.difference(&failed).collect();
    assert!(never.is_empty(), "clauses that no broken inbox fails: {never:?}");
    let unknown: Vec<_> = failed.difference(&all).collect();
    assert!(unknown.is_empty(), "clauses that are named here and do not exist: {unknown:?}");
}

#[tokio::test]
async fn without_a_fault_the_broken_inbox_is_whole() {
    assert_eq!(failed_clauses(Fault::None).await, BTreeSet::new());
}

#[tokio::test]
async fn a_failure_names_what_was_expected() {
    let clause = INBOX_CLAUSES.iter().find(|clause| clause.name == "a_purged_event_is_too_old").unwrap();
    let violation =
        check_inbox_clause(clause, &BrokenInboxes::new(Fault::HorizonForgotten)).await.unwrap_err();
    assert_eq!(
        violation.to_string(),
        "  expected: TooOld for an event of which the receipt was purged\n  found:    New"
    );
}
