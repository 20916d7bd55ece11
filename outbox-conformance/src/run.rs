//! Running one clause: what the halves of the suite share.

use std::{any::Any, time::Duration};

use crate::{
    table::{self, Answer, Suite},
    violation::{Verdict, Violation},
};

/// The longest a clause may take: it bounds a store or a publisher that hangs, and proves nothing.
const CLAUSE_MAX: Duration = Duration::from_secs(180);

/// What came of a clause.
pub(crate) struct Asked {
    /// The verdict, or the panic that took its place.
    pub(crate) verdict: Result<Verdict, Box<dyn Any + Send>>,
    /// Why the clause could not be asked, if so.
    pub(crate) not_asked: Option<String>,
}

/// The verdict of a clause, or a violation where it takes for ever.
pub(crate) async fn bounded(clause: impl Future<Output = Verdict>) -> Verdict {
    match tokio::time::timeout(CLAUSE_MAX, clause).await {
        Ok(verdict) => verdict,
        Err(_) => Err(Violation::new(format!("an answer within {CLAUSE_MAX:?}"), "none".to_owned())),
    }
}

/// Runs `work` in a runtime of its own.
pub(crate) fn on_a_runtime<T>(clause: &str, work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap_or_else(|error| panic!("no runtime for clause {clause}: {error}")).block_on(work)
}

/// Notes what came of a clause for the table, and panics if it was broken. `None`: the server is not there.
pub(crate) fn conclude(suite: &Suite, (name, sentence): (&'static str, &'static str), asked: Option<Asked>) {
    let Some(Asked { verdict, not_asked }) = asked else { return };
    let answer = match (&verdict, not_asked) {
        (Ok(Ok(())), Some(why)) => {
            say(name, &why);
            Answer::NotAsked(why)
        }
        (Ok(Ok(())), None) => Answer::Kept,
        _ => Answer::Broken,
    };
    table::note(suite, name, answer);
    match verdict {
        Ok(Ok(())) => {}
        Ok(Err(violation)) => panic!("clause {name}: {sentence}\n{violation}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[allow(clippy::print_stderr, reason = "a clause that is not asked is never silent about it")]
fn say(clause: &str, why: &str) {
    eprintln!("clause {clause}: not asked: {why}");
}
