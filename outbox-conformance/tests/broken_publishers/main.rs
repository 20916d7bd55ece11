//! The suite's own test: publishers that are broken in one way each, and the clauses that must find it out. A
//! clause that no broken publisher fails could not fail at all, and is a defect too.
//!
//! Everything here waits by tokio's clock, which is paused and jumps to the next timer: hours of outages take
//! seconds.
#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "../common/mod.rs"]
mod common;

mod broker;
mod faults;
mod harness;
mod publisher;

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures::FutureExt;
use outbox_conformance::{PUBLISHER_CLAUSES, PublisherClause, PublisherHarness, check_publisher_clause};

use crate::{
    faults::{FAULTS, Fault},
    harness::BrokenHarness,
};

/// A clause fails by a violation or by a panic, as in a test.
async fn fails(fault: Fault, clause: &PublisherClause) -> bool {
    let harness = BrokenHarness::new(fault);
    let verdict = AssertUnwindSafe(check_publisher_clause(clause, &harness)).catch_unwind().await;
    harness.cleanup().await;
    !matches!(verdict, Ok(Ok(())))
}

async fn failed_clauses(fault: Fault) -> BTreeSet<&'static str> {
    let mut failed = BTreeSet::new();
    for clause in PUBLISHER_CLAUSES {
        if fails(fault, clause).await {
            failed.insert(clause.name);
        }
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn every_broken_publisher_fails_its_own_clauses_and_no_others() {
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
fn every_clause_finds_some_broken_publisher_out() {
    let all: BTreeSet<_> = PUBLISHER_CLAUSES.iter().map(|clause| clause.name).collect();
    let failed: BTreeSet<_> = FAULTS.iter().flat_map(|(_, clauses)| clauses.iter().copied()).collect();
    let never: Vec<_> = all.difference(&failed).collect();
    assert!(never.is_empty(), "clauses that no broken publisher fails: {never:?}");
    let unknown: Vec<_> = failed.difference(&all).collect();
    assert!(unknown.is_empty(), "clauses that are named here and do not exist: {unknown:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_fault_the_broken_publisher_is_whole() {
    assert_eq!(failed_clauses(Fault::None).await, BTreeSet::new());
    assert_eq!(failed_clauses(Fault::NoneAndInOrder).await, BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn a_failure_names_what_was_expected_and_what_is_missing() {
    let clause =
        PUBLISHER_CLAUSES.iter().find(|clause| clause.name == "a_message_goes_to_its_destination").unwrap();
    let harness = BrokenHarness::new(Fault::OneDestination);
    let violation = check_publisher_clause(clause, &harness).await.unwrap_err();
    assert_eq!(
        violation.to_string(),
        "  expected: messages to the one: sequences [1, 2, 3, 4, 5]\n  \
         found:    []; missing {1, 2, 3, 4, 5}, extra []"
    );
}
