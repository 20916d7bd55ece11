//! What is left of a call that has ended: nothing.

use std::{sync::Arc, time::Duration};

use outbox_core::publisher::Message;

use crate::{
    Outage,
    publisher::stage::Stage,
    violation::{Verdict, that},
};

/// A timeout that passes while the broker is away, and before any delivery timeout.
const DEADLINE: Duration = Duration::from_millis(500);

/// Long enough for a call to hand over what it hands over at once, wherever to.
const HANDED_OVER: Duration = Duration::from_millis(200);

/// In what way the broker is away while a call ends.
#[derive(Debug, Clone, Copy)]
enum Hindrance {
    Cut,
    Frozen,
}

const HINDRANCES: [Hindrance; 2] = [Hindrance::Cut, Hindrance::Frozen];

impl Hindrance {
    async fn begin(self, outage: &dyn Outage) {
        match self {
            Self::Cut => outage.cut().await,
            Self::Frozen => outage.freeze().await,
        }
    }
}

pub(super) async fn nothing_is_sent_after_the_deadline(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    for hindrance in HINDRANCES {
        let (destination, messages) = ready(stage).await?;
        hindrance.begin(outage).await;
        let deadline = stage.delivery_timeout().map_or(DEADLINE, |time| (time / 2).min(DEADLINE));
        stage.call(&messages, deadline).await;
        outage.restore().await;
        let what = format!("messages of a call that ran out of time ({hindrance:?})");
        stage.expect_never_stored(&what, &destination, &messages).await?;
    }
    Ok(())
}

pub(super) async fn nothing_is_sent_after_a_call_is_dropped(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    for hindrance in HINDRANCES {
        let (destination, messages) = ready(stage).await?;
        hindrance.begin(outage).await;
        stage.drop_call(&messages, HANDED_OVER).await;
        outage.restore().await;
        let what = format!("messages of a call that was dropped ({hindrance:?})");
        stage.expect_never_stored(&what, &destination, &messages).await?;
    }
    Ok(())
}

pub(super) async fn nothing_is_sent_after_a_call_returned(stage: &Stage<'_>) -> Verdict {
    let Some(outage) = stage.outage() else { return Ok(()) };
    for hindrance in HINDRANCES {
        let (destination, messages) = ready(stage).await?;
        hindrance.begin(outage).await;
        stage.call(&messages, stage.outage_timeout()).await;
        outage.restore().await;
        let what = format!("messages of a call that returned during an outage ({hindrance:?})");
        stage.expect_never_stored(&what, &destination, &messages).await?;
    }
    Ok(())
}

pub(super) async fn a_call_after_close_is_answered(stage: &Stage<'_>) -> Verdict {
    let (destination, messages) = ready(stage).await?;
    stage.publisher.close().await;
    let call = stage.call(&messages, stage.healthy_timeout()).await;
    that(call.returned, "a call after close to return", "it had to be dropped")?;
    let stored: Vec<_> =
        stage.stored(&destination).await.iter().map(|stored| stage.sequence_of(stored)).collect();
    for (message, reports) in messages.iter().zip(&call.reports) {
        if reports.iter().any(Result::is_ok) {
            let expected = format!("message {}, a success after close, to be stored", message.sequence);
            that(stored.contains(&message.sequence), expected, "it is not there")?;
        }
    }
    Ok(())
}

/// A destination that the publisher has reached, and messages for it.
async fn ready(stage: &Stage<'_>) -> Verdict<(String, Vec<Arc<Message>>)> {
    let destination = stage.reached_destination().await?;
    let messages = stage.messages(&destination, 10);
    Ok((destination, messages))
}
