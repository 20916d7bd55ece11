//! Running one clause on one store.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use crate::{STORE_CLAUSES, StoreHarness, Violation, stage::Stage, violation::Verdict};

/// The longest a clause may take: it bounds a store that hangs, and proves nothing.
const CLAUSE_MAX: Duration = Duration::from_secs(180);

/// One sentence of the contract that a store can be found to break.
pub struct Clause {
    /// The name of its test.
    pub name: &'static str,
    /// What the contract says.
    pub sentence: &'static str,
    pub(crate) run: for<'a> fn(&'a Stage<'a>) -> BoxFuture<'a, Verdict>,
}

impl std::fmt::Debug for Clause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Checks one clause on a store that is empty.
///
/// # Errors
/// What was expected and what was found instead.
pub async fn check_store_clause(clause: &Clause, harness: &dyn StoreHarness) -> Result<(), Violation> {
    let stage = Stage::new(harness, clause.name);
    match tokio::time::timeout(CLAUSE_MAX, (clause.run)(&stage)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(Violation::new(format!("an answer within {CLAUSE_MAX:?}"), "none".to_owned())),
    }
}

/// Runs the clause `name` on a fresh store in a runtime of its own: what the tests of
/// [`store_suite!`](crate::store_suite) call.
///
/// # Panics
/// If the store breaks the clause, with a message that says how; if there is no such clause.
pub fn run_store_clause<H: StoreHarness>(name: &str) {
    let Some(clause) = STORE_CLAUSES.iter().find(|clause| clause.name == name) else {
        panic!("there is no clause {name}");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for clause {name}: {error}"));
    runtime.block_on(async {
        let Some(harness) = H::fresh().await else { return };
        let verdict = AssertUnwindSafe(check_store_clause(clause, &harness)).catch_unwind().await;
        harness.cleanup().await;
        match verdict {
            Ok(Ok(())) => {}
            Ok(Err(violation)) => panic!("clause {name}: {}\n{violation}", clause.sentence),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
}
