//! Clauses about receipts.

use std::{collections::BTreeSet, time::Duration};

use outbox_core::{
    InboxError,
    Receipt::{New, Seen},
    store::NAME_BYTES_MAX,
};

use crate::{
    InboxTransaction,
    inbox::stage::{CONSUMER, Stage, TRIES_MAX, YOUNG, answered, finish, identity, is_conflict},
    violation::{Verdict, equal, that},
};

/// How many copies of one event are handled at the same time.
const COPIES: usize = 8;

/// Times are not to matter here; events of this age are what a consumer mostly gets.
const FRESH: Duration = Duration::ZERO;

pub(super) async fn an_event_that_nobody_received_is_new(stage: &Stage<'_>) -> Verdict {
    for (id, age) in [("1", FRESH), ("2", YOUNG), ("3", Duration::from_secs(365 * 24 * 3600))] {
        stage.expect(New, &stage.event(id, age), "an event that was never received").await?;
    }
    Ok(())
}

pub(super) async fn an_event_that_was_received_is_seen(stage: &Stage<'_>) -> Verdict {
    for (id, age) in [("1", FRESH), ("2", YOUNG)] {
        let event = stage.event(id, age);
        let _ = stage.receive(CONSUMER, &event).await?;
        for _ in 0..2 {
            stage.expect(Seen, &event, "an event whose receipt has committed").await?;
        }
    }
    Ok(())
}

pub(super) async fn an_event_is_new_once_in_a_transaction(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let mut transaction = stage.harness.begin().await;
    answered(New, transaction.receive(CONSUMER, &event).await?, "an event that was never received")?;
    answered(Seen, transaction.receive(CONSUMER, &event).await?, "its second copy in one transaction")?;
    transaction.commit().await?;
    stage.expect(Seen, &event, "its third copy").await
}

pub(super) async fn a_receipt_that_was_rolled_back_never_was(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let mut transaction = stage.harness.begin().await;
    answered(New, transaction.receive(CONSUMER, &event).await?, "an event that was never received")?;
    transaction.effect("invoice").await;
    transaction.rollback().await;
    equal("effects after a rollback", 0, stage.harness.effects("invoice").await)?;
    equal("receipts after a rollback", 0, stage.harness.receipts().await)?;
    let mut transaction = stage.harness.begin().await;
    let receipt = transaction.receive(CONSUMER, &event).await?;
    answered(New, receipt, "an event whose receipt was rolled back")?;
    transaction.effect("invoice").await;
    transaction.commit().await?;
    equal("effects after a commit", 1, stage.harness.effects("invoice").await)?;
    equal("receipts after a commit", 1, stage.harness.receipts().await)
}

pub(super) async fn of_many_copies_one_has_its_effect(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let handle = |mut transaction: Box<dyn InboxTransaction>| {
        let event = event.clone();
        async move {
            let answer = transaction.receive(CONSUMER, &event).await;
            if matches!(answer, Ok(New)) {
                transaction.effect("invoice").await;
            }
            finish(transaction, answer).await
        }
    };
    let mut copies = COPIES;
    for _ in 0..TRIES_MAX {
        let answers = stage.side_by_side(copies, handle).await?;
        let (again, ended): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.as_ref().is_err_and(is_conflict));
        ended.into_iter().collect::<Result<Vec<_>, _>>()?;
        copies = again.len();
    }
    equal("copies that were never answered", 0, copies)?;
    equal("effects of one event", 1, stage.harness.effects("invoice").await)
}

pub(super) async fn a_copy_waits_for_the_commit_of_the_first(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let mut first = stage.harness.begin().await;
    answered(New, first.receive(CONSUMER, &event).await?, "an event that was never received")?;
    let second = stage.receive_beside(&event, &[]).await?;
    first.commit().await?;
    answered(Seen, stage.answer_of(second, &event).await?, "a copy after the first has committed")
}

pub(super) async fn a_copy_is_new_after_the_rollback_of_the_first(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let mut first = stage.harness.begin().await;
    answered(New, first.receive(CONSUMER, &event).await?, "an event that was never received")?;
    let second = stage.receive_beside(&event, &[]).await?;
    first.rollback().await;
    answered(New, stage.answer_of(second, &event).await?, "a copy after the first was rolled back")
}

pub(super) async fn consumers_are_apart(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let _ = stage.receive(CONSUMER, &event).await?;
    stage.expect_of("shipping", New, &event, "an event that another consumer received").await?;
    stage.expect_of("shipping", Seen, &event, "an event that both received").await
}

pub(super) async fn sources_are_apart(stage: &Stage<'_>) -> Verdict {
    let _ = stage.receive(CONSUMER, &stage.event_from("/shop", "1", FRESH)).await?;
    let other = stage.event_from("/store", "1", FRESH);
    stage.expect(New, &other, "an id that was received from another source").await?;
    stage.expect(Seen, &other, "an event that was received from both").await
}

pub(super) async fn names_that_look_alike_stay_apart(stage: &Stage<'_>) -> Verdict {
    const NAMES: [&str; 24] = [
        "order",
        "Order",
        "ORDER",
        "order ",
        " order",
        "orde\u{301}r",
        "ord\u{e9}r",
        "ordér ",
        "straße",
        "strasse",
        "STRASSE",
        "ﬁ",
        "fi",
        "1",
        "01",
        "1.0",
        "o'rder",
        "o\"rder",
        "o%",
        "o_",
        "o\\",
        "\\o",
        "日本",
        "🦀",
    ];
    let names: BTreeSet<&str> = NAMES.into_iter().collect();
    for name in &names {
        let why = format!("{name:?}, which was never received");
        stage.expect(New, &stage.event(name, FRESH), &why).await?;
        stage.expect(New, &stage.event_from(name, "4711", FRESH), &why).await?;
        let event = stage.event_from("/shop", "4711", FRESH);
        stage.expect_of(name, New, &event, &why).await?;
    }
    for name in &names {
        let why = format!("{name:?}, which was received");
        stage.expect(Seen, &stage.event(name, FRESH), &why).await?;
        stage.expect(Seen, &stage.event_from(name, "4711", FRESH), &why).await?;
    }
    Ok(())
}

pub(super) async fn the_longest_names_are_taken(stage: &Stage<'_>) -> Verdict {
    let long = |end: &str| format!("{}{end}", "ä".repeat((NAME_BYTES_MAX - end.len()) / 2));
    for (consumer, source, id) in [("1", "1", "1"), ("1", "1", "3"), ("1", "3", "1"), ("3", "1", "1")] {
        let event = identity(&long(source), &long(id), Some(stage.now));
        let why = "names of the greatest length";
        stage.expect_of(&long(consumer), New, &event, why).await?;
        stage.expect_of(&long(consumer), Seen, &event, why).await?;
    }
    Ok(())
}

pub(super) async fn outside_a_transaction_is_refused(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", FRESH);
    let Some(answer) = stage.harness.receive_outside(CONSUMER, &event).await else {
        stage.not_asked("the driver's types rule out a receipt outside a transaction");
        return Ok(());
    };
    that(matches!(answer, Err(InboxError::NoTransaction)), "NoTransaction outside a transaction", answer)?;
    equal("receipts", 0, stage.harness.receipts().await)?;
    stage.expect(New, &event, "an event whose receipt was refused").await
}
