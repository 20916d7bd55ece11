//! What a relay may conclude from a report.

use std::sync::Arc;

use futures::future::join_all;
use outbox_core::publisher::{Message, Report, Stored};

use crate::{
    publisher::{
        call::{Call, reporter},
        clauses::refusing::{above_the_limit, unsound_messages},
        stage::Stage,
    },
    violation::{Verdict, Violation, same_sequences, that},
};

pub(super) async fn every_message_has_one_outcome(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    for count in [1, 300, 0, 7] {
        stage.publish(&format!("a call with {count} messages"), &stage.messages(&destination, count)).await?;
    }
    Ok(())
}

pub(super) async fn an_outcome_belongs_to_its_message(stage: &Stage<'_>) -> Verdict {
    let unsound = unsound_messages(stage).await;
    if unsound.is_empty() {
        stage.not_asked("the harness knows no message that fails");
        return Ok(());
    }
    let destination = stage.harness.destination().await;
    // The unsound ones stand at odd places and not in the middle, so that no mirror image looks right.
    let mut messages = stage.messages(&destination, 2);
    let mut expected = Vec::new();
    for (_, message) in unsound {
        expected.push(message.sequence);
        messages.push(Arc::new(message));
        messages.extend(stage.messages(&destination, 3));
    }
    let sound = |message: &Message| !expected.contains(&message.sequence);
    let outcomes = stage.relay("sound and unsound messages in one call", &messages, sound).await?;
    let failed: Vec<_> = messages
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| outcome.is_err())
        .map(|(message, _)| message.sequence)
        .collect();
    same_sequences("the messages that failed", &expected, &failed)
}

pub(super) async fn an_outcome_is_reported_as_soon_as_it_is_known(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    let Some(large) = above_the_limit(stage, &destination) else { return Ok(()) };
    outage.freeze().await;
    let messages = vec![Arc::new(large), Arc::new(stage.message(&destination))];
    let (reporter, mut reports) = reporter(stage.next_call());
    let mut publish = stage.publisher.publish(messages, stage.outage_timeout(), reporter);
    let first = tokio::select! {
        biased;
        () = &mut publish => None,
        first = reports.recv() => first,
    };
    let expected = "the message above the limit to be reported while the call waits for the frozen broker";
    match (first, reports.try_recv()) {
        (Some(Report { index: 0, result: Err(_), .. }), Err(_)) => Ok(()),
        (None, _) => Err(Violation::new(expected, "the call returned first")),
        (first, second) => Err(Violation::new(expected, format!("{first:?}, then {second:?}"))),
    }
}

pub(super) async fn success_means_that_it_is_stored(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    for count in [1, 1, 20] {
        let messages = stage.messages(&destination, count);
        let (reporter, mut reports) = reporter(stage.next_call());
        let publish = stage.publisher.publish(messages.clone(), stage.healthy_timeout(), reporter);
        let mut publish = std::pin::pin!(tokio::time::timeout(stage.healthy_timeout(), publish));
        let mut running = true;
        loop {
            let report = tokio::select! {
                biased;
                Some(report) = reports.recv() => report,
                _ = &mut publish, if running => {
                    running = false;
                    continue;
                }
                () = std::future::ready(()), if !running => break,
            };
            let Report { index, result, .. } = report;
            let Some(message) = messages.get(index as usize) else { continue };
            if result.is_ok() {
                // The call is not polled meanwhile, so it cannot store anything later than its report.
                let stored = stage.stored(&destination).await;
                let there = stored.iter().any(|stored| stage.sequence_of(stored) == message.sequence);
                let expected =
                    format!("message {}, reported as a success, at its destination", message.sequence);
                that(there, expected, "it is not there")?;
            }
        }
    }
    Ok(())
}

pub(super) async fn without_an_answer_nothing_is_a_success(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    for what in ["the broker is frozen", "the broker's answers are lost"] {
        if what.ends_with("lost") {
            outage.lose_answers().await;
        } else {
            outage.freeze().await;
        }
        let call = stage.call(&stage.messages(&destination, 5), stage.outage_timeout()).await;
        let successes = call.reports.iter().flatten().filter(|report| report.is_ok()).count();
        that(successes == 0, format!("no success while {what}"), format!("{successes} of 5 messages"))?;
        outage.restore().await;
        stage.publish_at_last("after the outage", &stage.messages(&destination, 1)).await?;
    }
    Ok(())
}

pub(super) async fn what_is_called_not_stored_is_not_stored(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    outage.lose_answers().await;
    let messages = stage.messages(&destination, 5);
    let call = stage.call(&messages, stage.outage_timeout()).await;
    outage.restore().await;
    stage.publish_at_last("after the outage", &stage.messages(&destination, 1)).await?;
    let stored: Vec<_> =
        stage.stored(&destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
    let said_not = |call: &Call, index: usize| {
        call.reports[index].iter().any(|report| matches!(report, Err(error) if error.stored == Stored::No))
    };
    let wrong: Vec<_> = messages
        .iter()
        .enumerate()
        .filter(|(index, message)| said_not(&call, *index) && stored.contains(&message.sequence))
        .map(|(_, message)| message.sequence)
        .collect();
    same_sequences("messages that are stored although they were reported as not stored", &[], &wrong)
}

pub(super) async fn concurrent_calls_are_kept_apart(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let calls: Vec<_> = (0..16).map(|call| stage.messages(&destination, 10 + call)).collect();
    let made = calls.iter().map(|messages| stage.publish("one of 16 calls at the same time", messages));
    for verdict in join_all(made).await {
        verdict?;
    }
    stage.expect_stored("the messages of all calls", &destination, &calls.concat()).await.map(drop)
}
