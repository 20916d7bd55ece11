//! Running one clause on one publisher.

use std::panic::AssertUnwindSafe;

use futures::{FutureExt, future::BoxFuture};

use crate::{
    PUBLISHER_CLAUSES, PublisherHarness, Violation,
    publisher::stage::Stage,
    run::{self, Asked},
    table::Suite,
    violation::Verdict,
};

/// One sentence of the contract that a publisher can be found to break.
pub struct PublisherClause {
    /// The name of its test.
    pub name: &'static str,
    /// What the contract says.
    pub sentence: &'static str,
    pub(crate) run: for<'a> fn(&'a Stage<'a>) -> BoxFuture<'a, Verdict>,
}

impl std::fmt::Debug for PublisherClause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Checks one clause on a broker whose destinations are empty.
///
/// # Errors
/// What was expected and what was found instead.
pub async fn check_publisher_clause(
    clause: &PublisherClause,
    harness: &dyn PublisherHarness,
) -> Result<(), Violation> {
    run::bounded((clause.run)(&Stage::new(harness))).await
}

/// Runs the clause `name` on a fresh publisher in a runtime of its own: what the tests of
/// [`publisher_suite!`](crate::publisher_suite) call. `author` is the package that the publisher is in, for
/// the table.
///
/// # Panics
/// If the publisher breaks the clause, with a message that says how; if there is no such clause.
pub fn run_publisher_clause<H: PublisherHarness>(author: &'static str, name: &str) {
    let Some(clause) = PUBLISHER_CLAUSES.iter().find(|clause| clause.name == name) else {
        panic!("there is no clause {name}");
    };
    let asked = run::on_a_runtime(name, async {
        let harness = H::fresh().await?;
        let stage = Stage::new(&harness);
        let verdict = AssertUnwindSafe(run::bounded((clause.run)(&stage))).catch_unwind().await;
        let not_asked = stage.not_asked.into_inner();
        harness.cleanup().await;
        Some(Asked { verdict, not_asked })
    });
    let clauses = PUBLISHER_CLAUSES.iter().map(|clause| (clause.name, clause.sentence)).collect();
    let suite = Suite { half: "a publisher", author, harness: std::any::type_name::<H>(), clauses };
    run::conclude(&suite, (clause.name, clause.sentence), asked);
}
