//! The suite's own test: stores that are broken in one way each, and the clauses that must find it out. A
//! clause that no broken store fails could not fail at all, and is a defect too.
#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod faults;
mod harness;
mod reader;
mod store;

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures::FutureExt;
use outbox_conformance::{STORE_CLAUSES, StoreClause, StoreHarness, check_store_clause};

use crate::{
    faults::{FAULTS, Fault, STORM_FAULTS},
    harness::BrokenHarness,
};

/// A clause fails by a violation or by a panic, as in a test.
async fn fails(fault: Fault, clause: &StoreClause) -> bool {
    let harness = BrokenHarness::new(fault);
    let verdict = AssertUnwindSafe(check_store_clause(clause, &harness)).catch_unwind().await;
    harness.cleanup().await;
    !matches!(verdict, Ok(Ok(())))
}

/// A storm brings everything about, so that chance decides which other faults it meets: it is asked about its
/// own alone.
fn is_storm(clause: &StoreClause) -> bool {
    clause.name.starts_with("nothing_is_lost_or_overtaken")
}

async fn failed_clauses(fault: Fault) -> BTreeSet<&'static str> {
    let mut failed = BTreeSet::new();
    for clause in STORE_CLAUSES.iter().filter(|clause| !is_storm(clause)) {
        if fails(fault, clause).await {
            failed.insert(clause.name);
        }
    }
    failed
}

#[tokio::test]
async fn every_broken_store_fails_its_own_clauses_and_no_others() {
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

#[tokio::test]
async fn every_storm_finds_its_broken_stores_out() {
    for clause in STORE_CLAUSES.iter().filter(|clause| is_storm(clause)) {
        for fault in STORM_FAULTS {
            assert!(fails(*fault, clause).await, "{fault:?}: not found out by {}", clause.name);
        }
    }
}

#[test]
fn every_clause_finds_some_broken_store_out() {
    let asked = STORE_CLAUSES.iter().filter(|clause| !is_storm(clause));
    let all: BTreeSet<_> = asked.map(|clause| clause.name).collect();
    let failed: BTreeSet<_> = FAULTS.iter().flat_map(|(_, clauses)| clauses.iter().copied()).collect();
    let never: Vec<_> = all.difference(&failed).collect();
    assert!(never.is_empty(), "clauses that no broken store fails: {never:?}");
    let unknown: Vec<_> = failed.difference(&all).collect();
    assert!(unknown.is_empty(), "clauses that are named here and do not exist: {unknown:?}");
}

#[tokio::test]
async fn without_a_fault_the_broken_store_is_whole() {
    assert_eq!(failed_clauses(Fault::None).await, BTreeSet::new());
}

#[tokio::test]
async fn a_failure_names_what_was_expected_and_what_is_missing() {
    let clause =
        STORE_CLAUSES.iter().find(|clause| clause.name == "an_undecodable_row_is_returned_alone").unwrap();
    let harness = BrokenHarness::new(Fault::UndecodableDropped);
    let violation = check_store_clause(clause, &harness).await.unwrap_err();
    assert_eq!(
        violation.to_string(),
        "  expected: the undecodable row and all others: sequences [1, 2, 3, 4]\n  \
         found:    [1, 3, 4]; missing {2}, extra []"
    );
}
