//! What `check` finds out beforehand.

use outbox_core::{Finding, Severity};

use crate::{
    publisher::stage::Stage,
    violation::{Verdict, that},
};

pub(super) async fn check_passes_what_is_there(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    for destinations in [&[][..], std::slice::from_ref(&destination)] {
        let errors = errors(stage, destinations).await;
        that(errors.is_empty(), "no error with a destination that is there", errors)?;
    }
    stage.publish("a message", &stage.messages(&destination, 1)).await?;
    let errors = errors(stage, &[destination]).await;
    that(errors.is_empty(), "no error with a destination that is used", errors)
}

pub(super) async fn check_names_a_missing_destination(stage: &Stage<'_>) -> Verdict {
    let Some(missing) = stage.harness.unroutable().await else {
        stage.not_asked("the harness knows no destination that does not exist");
        return Ok(());
    };
    for what in ["a destination that does not exist", "the same, asked again"] {
        names(stage, what, &missing).await?;
    }
    Ok(())
}

pub(super) async fn check_names_a_broken_name(stage: &Stage<'_>) -> Verdict {
    let Some(name) = stage.harness.broken_name() else {
        stage.not_asked("the harness knows no name that a destination cannot have");
        return Ok(());
    };
    names(stage, "an invalid name", &name).await
}

pub(super) async fn check_names_an_unreachable_broker(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    outage.cut().await;
    for (what, destinations) in [("one destination", vec![destination]), ("no destination", Vec::new())] {
        let errors = errors(stage, &destinations).await;
        that(!errors.is_empty(), format!("asked for {what}: an error about the broker"), errors)?;
    }
    Ok(())
}

/// Asks for a destination that is there and for another that is not, which alone must be found.
async fn names(stage: &Stage<'_>, what: &str, missing: &str) -> Verdict {
    let present = stage.harness.destination().await;
    let found = errors(stage, &[present.clone(), missing.to_owned()]).await;
    let about = |name: &str| found.iter().filter(|finding| finding.problem.contains(name)).count();
    that(about(missing) > 0, format!("{what}: an error whose problem names {missing:?}"), &found)?;
    that(about(&present) == 0, format!("{what}: no error about {present:?}"), &found)
}

async fn errors(stage: &Stage<'_>, destinations: &[String]) -> Vec<Finding> {
    let mut findings = stage.publisher.check(destinations).await;
    findings.retain(|finding| finding.severity == Severity::Error);
    findings
}
