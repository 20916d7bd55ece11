//! What fails, alone, and with which words.

use std::{collections::BTreeSet, sync::Arc};

use outbox_core::publisher::{
    Message, PublishError,
    PublishErrorKind::{Permanent, Unavailable},
    PublishErrorScope as Scope, Stored,
};

use crate::{
    publisher::{
        call::{error_of, is},
        stage::Stage,
    },
    violation::{Verdict, Violation, equal, same_sequences, short, that},
};

/// A declared limit above this is not tried out, because of the memory that it takes.
const LIMIT_BYTES_MAX: usize = 64 << 20;

/// The longest name of an error.
const CODE_BYTES_MAX: usize = 64;

pub(super) async fn the_largest_payload_is_taken(stage: &Stage<'_>) -> Verdict {
    let Some(limit) = limit(stage) else { return Ok(()) };
    let mut message = stage.message(&stage.harness.destination().await);
    message.event.payload = Some(vec![b'x'; limit].into());
    let stored = stage.store_one("a payload of the declared limit", message).await?;
    equal("its payload in bytes", limit, stored.payload.len())
}

pub(super) async fn a_larger_payload_is_refused_before_it_is_sent(stage: &Stage<'_>) -> Verdict {
    let destination = stage.harness.destination().await;
    let Some(large) = above_the_limit(stage, &destination) else { return Ok(()) };
    let mut messages = stage.messages(&destination, 3);
    messages.insert(1, Arc::new(large.clone()));
    let mut outcomes = stage.outcomes("a payload above the declared limit among others", &messages).await?;
    let refusal = (Permanent, Scope::Message, Stored::No);
    let what = "a payload of one byte more than the declared limit";
    is(what, &error_of(what, outcomes.remove(1))?, refusal)?;
    messages.remove(1);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.is_err()).collect();
    that(failed.is_empty(), "the messages beside it to be taken", failed)?;
    stage.expect_stored("the messages beside it, and nothing else", &destination, &messages).await?;

    if let Some(outage) = stage.harness.outage() {
        outage.cut().await;
        let call = stage.call(&[Arc::new(large)], stage.outage_timeout()).await;
        let what = "the same while the broker cannot be reached";
        let outcome = call.outcomes(what)?.remove(0);
        is(what, &error_of(what, outcome)?, refusal)?;
    }
    Ok(())
}

pub(super) async fn an_oversized_message_fails_alone(stage: &Stage<'_>) -> Verdict {
    let Some(message) = oversized(stage).await else {
        stage.not_asked("the harness knows no limit of the broker's own");
        return Ok(());
    };
    let destination = message.topic.to_string();
    let error =
        fails_alone(stage, "a message that the broker finds too large", message, &destination).await?;
    that(error.kind == Permanent, "a message that is too large to fail for good", &error)
}

pub(super) async fn an_unroutable_message_fails_alone(stage: &Stage<'_>) -> Verdict {
    let Some(missing) = stage.harness.unroutable().await else {
        stage.not_asked("the harness knows no destination that does not exist");
        return Ok(());
    };
    let destination = stage.harness.destination().await;
    let message = stage.message(&missing);
    fails_alone(stage, "a message to a destination that does not exist", message, &destination)
        .await
        .map(drop)
}

pub(super) async fn a_broken_name_fails_alone(stage: &Stage<'_>) -> Verdict {
    let Some(name) = stage.harness.broken_name() else {
        stage.not_asked("the harness knows no name that a destination cannot have");
        return Ok(());
    };
    let destination = stage.harness.destination().await;
    let message = stage.message(&name);
    let error = fails_alone(stage, "a message to an invalid name", message, &destination).await?;
    // Waiting would be for ever.
    that(error.kind == Permanent, "a message to an invalid name to fail for good", &error)
}

pub(super) async fn a_broken_header_fails_alone(stage: &Stage<'_>) -> Verdict {
    let Some((name, value)) = stage.harness.broken_header() else {
        stage.not_asked("the harness knows no header that the protocol cannot carry");
        return Ok(());
    };
    let destination = stage.harness.destination().await;
    let mut message = stage.message(&destination);
    message.event.headers.insert(name.clone(), value.clone());
    let what = "a message with a header that cannot be carried";
    let sound = stage.messages(&destination, 2);
    let messages = vec![Arc::clone(&sound[0]), Arc::new(message.clone()), Arc::clone(&sound[1])];
    let is_sound = |other: &Message| other.sequence != message.sequence;
    let mut outcomes = stage.relay(what, &messages, is_sound).await?;
    match outcomes.remove(1) {
        Err(error) => {
            that(error.kind == Permanent, format!("{what} to fail for good"), &error)?;
            stage
                .expect_stored("the messages beside it, and nothing else", &destination, &sound)
                .await
                .map(drop)
        }
        Ok(()) => {
            let stored = stage.expect_stored("all three messages", &destination, &messages).await?;
            equal("the header of the message that was taken", Some(&value), stored[1].headers.get(&name))
        }
    }
}

pub(super) async fn an_error_has_a_stable_code(stage: &Stage<'_>) -> Verdict {
    let mut first = errors(stage).await?;
    let again = errors(stage).await?;
    if first.is_empty() {
        stage.not_asked("the harness knows nothing that fails");
        return Ok(());
    }
    for (what, error) in &again {
        let expected = format!("{what}: a code of 1 to {CODE_BYTES_MAX} bytes");
        that((1..=CODE_BYTES_MAX).contains(&error.code.len()), expected, &error.code)?;
    }
    let codes = |errors: Vec<(&'static str, PublishError)>| -> BTreeSet<_> {
        errors.into_iter().map(|(what, error)| (what, error.code)).collect()
    };
    // What an outage is called may depend on what was being done when it came.
    first.retain(|(what, _)| *what != OUTAGE);
    let second = again.into_iter().filter(|(what, _)| *what != OUTAGE).collect();
    equal("the codes of the same errors, once more", codes(first), codes(second))
}

pub(super) async fn no_text_holds_a_secret(stage: &Stage<'_>) -> Verdict {
    let secrets = stage.harness.secrets();
    if secrets.is_empty() {
        stage.not_asked("the harness says that there are no secrets");
        return Ok(());
    }
    let mut texts: Vec<_> = errors(stage).await?.iter().map(|(_, error)| format!("{error:?}")).collect();
    let mut names = vec![stage.harness.destination().await];
    names.extend(stage.harness.unroutable().await);
    names.extend(stage.harness.broken_name());
    texts.extend(stage.publisher.check(&names).await.iter().map(|finding| format!("{finding:?}")));
    if let Some(outage) = stage.harness.outage() {
        outage.cut().await;
        texts.extend(stage.publisher.check(&names).await.iter().map(|finding| format!("{finding:?}")));
    }
    for text in texts {
        let told = secrets.iter().find(|secret| text.contains(secret.as_str()));
        if let Some(secret) = told {
            // The text itself would print the secret once more.
            let shown = text.replace(secret.as_str(), "<secret>");
            return Err(Violation::new("no secret in any text", short(&shown)));
        }
    }
    Ok(())
}

const OUTAGE: &str = "an outage";

/// An error of every kind that the harness can bring about. Leaves the broker as it was.
async fn errors(stage: &Stage<'_>) -> Verdict<Vec<(&'static str, PublishError)>> {
    let mut errors = Vec::new();
    for (what, message) in unsound_messages(stage).await {
        let outcome = stage.outcomes(what, &[Arc::new(message)]).await?.remove(0);
        if let Err(error) = outcome {
            errors.push((what, error));
        }
    }
    if let Some(outage) = stage.harness.outage() {
        let destination = stage.reached_destination().await?;
        outage.cut().await;
        let call = stage.call(&stage.messages(&destination, 1), stage.outage_timeout()).await;
        errors.extend(call.reports.into_iter().flatten().filter_map(|report| Some((OUTAGE, report.err()?))));
        outage.restore().await;
        stage.publish_at_last("after the outage", &stage.messages(&destination, 1)).await?;
    }
    Ok(errors)
}

/// One message of each kind that must fail, with what is wrong with it.
pub(super) async fn unsound_messages(stage: &Stage<'_>) -> Vec<(&'static str, Message)> {
    let mut unsound = Vec::new();
    if limit_of(stage).is_some() {
        let destination = stage.harness.destination().await;
        unsound.extend(
            above_the_limit(stage, &destination).map(|message| ("above the declared limit", message)),
        );
    }
    unsound.extend(oversized(stage).await.map(|message| ("too large for the broker", message)));
    if let Some(missing) = stage.harness.unroutable().await {
        unsound.push(("a destination that does not exist", stage.message(&missing)));
    }
    if let Some(name) = stage.harness.broken_name() {
        unsound.push(("an invalid name", stage.message(&name)));
    }
    unsound
}

/// A message with a payload of one byte more than the publisher declares, or nothing, after noting that the
/// clause is not asked.
pub(super) fn above_the_limit(stage: &Stage<'_>, destination: &str) -> Option<Message> {
    let limit = limit(stage)?;
    let mut message = stage.message(destination);
    message.event.payload = Some(vec![b'x'; limit + 1].into());
    Some(message)
}

fn limit(stage: &Stage<'_>) -> Option<usize> {
    let limit = limit_of(stage);
    if limit.is_none() {
        stage.not_asked("this publisher declares no limit that could be tried out");
    }
    limit
}

fn limit_of(stage: &Stage<'_>) -> Option<usize> {
    stage.publisher.capabilities().payload_bytes_max.filter(|limit| *limit <= LIMIT_BYTES_MAX)
}

async fn oversized(stage: &Stage<'_>) -> Option<Message> {
    let oversized = stage.harness.oversized().await?;
    let mut message = stage.message(&oversized.destination);
    message.event.payload = Some(vec![b'x'; oversized.payload_bytes].into());
    Some(message)
}

/// Publishes an unsound message among sound ones. It must fail, without an effect beyond its destination.
async fn fails_alone(
    stage: &Stage<'_>,
    what: &str,
    message: Message,
    destination: &str,
) -> Verdict<PublishError> {
    let unsound = message.sequence;
    let mut messages = stage.messages(destination, 4);
    messages.insert(2, Arc::new(message));
    let mut outcomes = stage.relay(what, &messages, |message| message.sequence != unsound).await?;
    let error = error_of(what, outcomes.remove(2))?;
    let alone = match (error.kind, error.scope) {
        (_, Scope::Message) | (Unavailable, Scope::Destination) => true,
        // Published alone, it is the batch.
        (kind, Scope::Batch) => kind == Permanent,
        _ => false,
    };
    that(alone, format!("{what}: an error of this message or of its destination"), &error)?;
    if error.stored == Stored::No && &*messages[2].topic == destination {
        messages.remove(2);
        // A sound message may be there twice, if it had to be sent again.
        let stored: BTreeSet<_> =
            stage.stored(destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
        let expected: Vec<_> = messages.iter().map(|message| message.sequence).collect();
        same_sequences("the messages beside it, and nothing else", &expected, &Vec::from_iter(stored))?;
    }
    Ok(error)
}
