//! Outages.

use std::sync::Arc;

use outbox_core::{
    AggregateKey,
    publisher::{PublishErrorKind, PublishErrorScope as Scope},
};

use crate::{
    publisher::{call::error_of, clauses::refusing::unsound_messages, stage::Stage},
    violation::{Verdict, Violation, same_sequences, that},
};

pub(super) async fn a_cut_connection_is_an_unavailable_broker(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    outage.cut().await;
    for what in ["a call that finds the connection cut", "a call that knows it"] {
        expect_unavailable(stage, what, &destination, |scope| scope == Scope::Broker).await?;
    }
    Ok(())
}

pub(super) async fn a_frozen_broker_spends_no_attempt(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    outage.freeze().await;
    for what in ["a call to a frozen broker", "another one"] {
        expect_unavailable(stage, what, &destination, |scope| scope != Scope::Message).await?;
    }
    Ok(())
}

pub(super) async fn a_restart_needs_no_new_publisher(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    // A restart that went unnoticed, then an outage of which a call has heard.
    for noticed in [false, true] {
        outage.cut().await;
        if noticed {
            stage.call(&stage.messages(&destination, 2), stage.outage_timeout()).await;
        }
        outage.restore().await;
        let messages = stage.messages(&destination, 20);
        stage.publish_at_last("after the outage", &messages).await?;
        let stored: Vec<_> =
            stage.stored(&destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
        let missing: Vec<_> =
            messages.iter().map(|message| message.sequence).filter(|id| !stored.contains(id)).collect();
        same_sequences("successes after the outage that are not stored", &[], &missing)?;
    }
    Ok(())
}

pub(super) async fn the_delivery_timeout_is_kept(stage: &Stage<'_>) -> Verdict {
    let Some(delivery_timeout) = stage.delivery_timeout() else {
        stage.not_asked("this publisher declares no delivery timeout");
        return Ok(());
    };
    let Some(outage) = stage.outage() else { return Ok(()) };
    let destination = stage.reached_destination().await?;
    outage.freeze().await;
    let messages = stage.messages(&destination, 5);
    let call = stage.call(&messages, stage.outage_timeout()).await;
    let what = format!("a publisher that declares {delivery_timeout:?} and is given more than twice that");
    call.outcomes(&what).map(drop)
}

pub(super) async fn a_later_message_does_not_overtake(stage: &Stage<'_>) -> Verdict {
    if stage.publisher.capabilities().overtaking {
        stage.not_asked("this publisher declares that overtaking is possible");
        return Ok(());
    }
    let unsound = unsound_messages(stage).await;
    if unsound.is_empty() && stage.harness.outage().is_none() {
        let expected = "overtaking to be declared impossible only where that can be tried out";
        return Err(Violation::new(expected, "a harness without an outage and without a message that fails"));
    }
    let key = AggregateKey::new("order", "one");
    for (what, mut message) in unsound {
        let destination = stage.harness.destination().await;
        message.key = key.clone();
        let mut later = stage.message(&destination);
        later.key = key.clone();
        let (message, later) = (Arc::new(message), Arc::new(later));
        let outcomes = stage.outcomes(what, &[message, Arc::clone(&later)]).await?;
        if outcomes[0].is_err() {
            let stored: Vec<_> =
                stage.stored(&destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
            same_sequences(&format!("messages behind one that failed: {what}"), &[], &stored)?;
        }
    }
    if let Some(outage) = stage.harness.outage() {
        let destination = stage.reached_destination().await?;
        let mut messages = Vec::new();
        for _ in 0..200 {
            let mut message = stage.message(&destination);
            message.key = key.clone();
            messages.push(Arc::new(message));
        }
        let cut = async {
            tokio::task::yield_now().await;
            outage.cut().await;
            outage.restore().await;
        };
        futures::join!(stage.call(&messages, stage.outage_timeout()), cut);
        let stored: Vec<_> =
            stage.stored(&destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
        let missing_first = messages.iter().map(|message| message.sequence).find(|id| !stored.contains(id));
        if let Some(first) = missing_first {
            let behind: Vec<_> = stored.into_iter().filter(|sequence| *sequence > first).collect();
            same_sequences(&format!("messages behind {first}, which is not stored"), &[], &behind)?;
        }
    }
    Ok(())
}

/// Publishes a few messages, each of which must be reported as unavailable, in a scope that is meant.
async fn expect_unavailable(
    stage: &Stage<'_>,
    what: &str,
    destination: &str,
    meant: impl Fn(Scope) -> bool,
) -> Verdict {
    let call = stage.call(&stage.messages(destination, 3), stage.outage_timeout()).await;
    for outcome in call.outcomes(what)? {
        let error = error_of(what, outcome)?;
        let right = error.kind == PublishErrorKind::Unavailable && meant(error.scope);
        that(right, format!("{what}: unavailable, and not this message alone"), &error)?;
    }
    Ok(())
}
