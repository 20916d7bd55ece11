//! Running one clause on one inbox.

use std::panic::AssertUnwindSafe;

use futures::{FutureExt, future::BoxFuture};

use crate::{
    INBOX_CLAUSES, InboxHarness, Violation,
    inbox::stage::Stage,
    run::{self, Asked},
    table::Suite,
    violation::Verdict,
};

/// One sentence of the contract that an inbox can be found to break.
pub struct InboxClause {
    /// The name of its test.
    pub name: &'static str,
    /// What the contract says.
    pub sentence: &'static str,
    pub(crate) run: for<'a> fn(&'a Stage<'a>) -> BoxFuture<'a, Verdict>,
}

impl std::fmt::Debug for InboxClause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Checks one clause on inboxes that are empty.
///
/// # Errors
/// What was expected and what was found instead.
pub async fn check_inbox_clause(clause: &InboxClause, harness: &dyn InboxHarness) -> Result<(), Violation> {
    run::bounded((clause.run)(&Stage::new(harness).await)).await
}

/// Runs the clause `name` on fresh inboxes in a runtime of its own: what the tests of
/// [`inbox_suite!`](crate::inbox_suite) call. `author` is the package that the inbox is in, for the table.
///
/// # Panics
/// If the inbox breaks the clause, with a message that says how; if there is no such clause.
pub fn run_inbox_clause<H: InboxHarness>(author: &'static str, name: &str) {
    let Some(clause) = INBOX_CLAUSES.iter().find(|clause| clause.name == name) else {
        panic!("there is no clause {name}");
    };
    let asked = run::on_a_runtime(name, async {
        let harness = H::fresh().await?;
        let stage = Stage::new(&harness).await;
        let verdict = AssertUnwindSafe(run::bounded((clause.run)(&stage))).catch_unwind().await;
        let not_asked = stage.not_asked.into_inner();
        harness.cleanup().await;
        Some(Asked { verdict, not_asked })
    });
    let clauses = INBOX_CLAUSES.iter().map(|clause| (clause.name, clause.sentence)).collect();
    let suite = Suite { half: "an inbox", author, harness: std::any::type_name::<H>(), clauses };
    run::conclude(&suite, (clause.name, clause.sentence), asked);
}
