//! Clauses about purges and the horizon.

use std::time::Duration;

use outbox_core::{
    InboxError,
    Receipt::{New, Seen, TooOld},
    inbox::{EventIdentity, PURGE_AGE_MIN},
};

use crate::{
    InboxTransaction,
    inbox::stage::{
        AGE, Beside, CONSUMER, OLD, OLDER, Stage, TRIES_MAX, YOUNG, answered, finish, identity, is_conflict,
    },
    violation::{Verdict, equal, that},
};

/// More than any clause has.
const ALL: u32 = 1000;

const SECOND: Duration = Duration::from_secs(1);

async fn receive_all(stage: &Stage<'_>, events: &[&EventIdentity]) -> Verdict {
    for event in events {
        stage.expect(New, event, "an event that was never received").await?;
    }
    Ok(())
}

pub(super) async fn a_purge_removes_old_receipts_only(stage: &Stage<'_>) -> Verdict {
    let (old, young) = (stage.event("1", OLD), stage.event("2", YOUNG));
    receive_all(stage, &[&old, &young]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    equal("receipts that are left", 1, stage.harness.receipts().await)?;
    equal("receipts that a second purge finds", 0, stage.purge(ALL).await?)?;
    stage.expect(Seen, &young, "an event that is younger than the age of the purge").await
}

pub(super) async fn a_purge_takes_the_oldest_first(stage: &Stage<'_>) -> Verdict {
    let ages = [OLD + SECOND, OLDER, OLD, OLDER + SECOND];
    let events: Vec<_> =
        (0..).zip(ages).map(|(id, age): (u8, _)| stage.event(&id.to_string(), age)).collect();
    receive_all(stage, &events.iter().collect::<Vec<_>>()).await?;
    equal("receipts of a purge of at most two", 2, stage.purge(2).await?)?;
    equal("receipts that are left", 2, stage.harness.receipts().await)?;
    for (event, receipt) in events.iter().zip([Seen, TooOld, Seen, TooOld]) {
        stage.expect(receipt, event, "one of four events, the two oldest of which were purged").await?;
    }
    equal("receipts of the next purge", 2, stage.purge(2).await?)
}

pub(super) async fn a_purged_event_is_too_old(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", OLD);
    receive_all(stage, &[&event]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    for _ in 0..3 {
        stage.expect(TooOld, &event, "an event of which the receipt was purged").await?;
    }
    Ok(())
}

pub(super) async fn an_event_before_the_horizon_is_too_old(stage: &Stage<'_>) -> Verdict {
    receive_all(stage, &[&stage.event("1", OLD)]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    for (id, age) in [("2", OLD), ("3", OLD + Duration::from_millis(1)), ("4", OLDER)] {
        stage.expect(TooOld, &stage.event(id, age), "an event that is not later than a purged one").await?;
    }
    Ok(())
}

pub(super) async fn an_event_after_the_horizon_is_new(stage: &Stage<'_>) -> Verdict {
    receive_all(stage, &[&stage.event("1", OLD)]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    for (id, age) in [("2", OLD - Duration::from_millis(1)), ("3", YOUNG), ("4", Duration::ZERO)] {
        let event = stage.event(id, age);
        stage.expect(New, &event, "an event that is later than every purged one").await?;
        stage.expect(Seen, &event, "the copy of it").await?;
    }
    Ok(())
}

pub(super) async fn what_is_too_old_leaves_nothing(stage: &Stage<'_>) -> Verdict {
    receive_all(stage, &[&stage.event("1", OLD)]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    let mut transaction = stage.harness.begin().await;
    for id in ["1", "2"] {
        let receipt = transaction.receive(CONSUMER, &stage.event(id, OLD)).await?;
        answered(TooOld, receipt, "an event that is not later than a purged one")?;
    }
    // The transaction goes on as if nothing had been asked.
    let receipt = transaction.receive(CONSUMER, &stage.event("3", YOUNG)).await?;
    answered(New, receipt, "an event that was never received")?;
    transaction.commit().await?;
    equal("receipts", 1, stage.harness.receipts().await)
}

pub(super) async fn a_receipt_before_the_horizon_is_seen(stage: &Stage<'_>) -> Verdict {
    let (kept, purged) = (stage.event("2", OLD), stage.event("1", OLD));
    receive_all(stage, &[&kept, &purged]).await?;
    equal("receipts of a purge of at most one", 1, stage.purge(1).await?)?;
    // Both have the same time: which of them is purged is the database's choice.
    let receipts = [stage.receive(CONSUMER, &kept).await?, stage.receive(CONSUMER, &purged).await?];
    let expected = [[Seen, TooOld], [TooOld, Seen]];
    that(expected.contains(&receipts), "one Seen and one TooOld, of two events of the same time", receipts)
}

pub(super) async fn the_horizon_never_falls(stage: &Stage<'_>) -> Verdict {
    let (older, old) = (stage.event("1", OLDER), stage.event("2", OLD));
    let mut late = stage.harness.begin().await;
    answered(New, late.receive(CONSUMER, &older).await?, "an event that was never received")?;
    let beside = stage.receive_beside(&old, &[New]).await?;
    if !matches!(beside, Beside::Answered(_)) {
        // Where receipts of old events wait for each other, none commits late.
        late.rollback().await;
        return stage.answer_of(beside, &old).await.map(drop);
    }
    match stage.purge_beside(ALL).await? {
        Some(Ok(count)) => equal("receipts that were purged", 1, count)?,
        // Nor does any where a purge waits for them.
        waiting => {
            late.rollback().await;
            return match waiting {
                Some(Err(purge)) => purge.ended().await,
                _ => Ok(()),
            };
        }
    }
    if late.commit().await.is_err_and(|error| is_conflict(&error)) {
        return Ok(());
    }
    equal("receipts that the next purge finds", 1, stage.purge(ALL).await?)?;
    stage.expect(TooOld, &old, "the later of two events, which was purged before the earlier one").await
}

pub(super) async fn a_purge_that_was_rolled_back_never_was(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", OLD);
    receive_all(stage, &[&event]).await?;
    let mut transaction = stage.harness.begin().await;
    equal("receipts of the purge", 1, transaction.purge(CONSUMER, AGE, ALL).await?)?;
    transaction.rollback().await;
    equal("receipts after a rollback", 1, stage.harness.receipts().await)?;
    stage.expect(Seen, &event, "an event whose purge was rolled back").await?;
    stage.expect(New, &stage.event("2", OLDER), "an older event after a purge that was rolled back").await
}

pub(super) async fn a_purge_leaves_other_consumers_and_sources(stage: &Stage<'_>) -> Verdict {
    let event = stage.event("1", OLD);
    receive_all(stage, &[&event]).await?;
    stage.expect_of("shipping", New, &event, "an event that another consumer received").await?;
    equal("receipts of the one consumer", 1, stage.purge(ALL).await?)?;
    stage.expect_of("shipping", Seen, &event, "an event that another consumer purged").await?;
    let older = stage.event("2", OLDER);
    stage.expect_of("shipping", New, &older, "an old event to a consumer that purged nothing").await?;
    let other = stage.event_from("/store", "2", OLDER);
    stage.expect(New, &other, "an old event of a source of which nothing was purged").await?;
    stage.expect(TooOld, &older, "an old event of the source of which something was purged").await
}

pub(super) async fn a_receipt_without_a_time_is_kept(stage: &Stage<'_>) -> Verdict {
    let (timeless, other) = (identity("/shop", "1", None), identity("/shop", "2", None));
    receive_all(stage, &[&timeless, &stage.event("3", OLD)]).await?;
    equal("receipts that were purged", 1, stage.purge(ALL).await?)?;
    stage.expect(Seen, &timeless, "an event without a time, after a purge").await?;
    stage.expect(New, &other, "an event without a time that was never received").await
}

pub(super) async fn a_copy_beside_a_purge_is_not_new(stage: &Stage<'_>) -> Verdict {
    for (id, commits) in [("1", false), ("2", true)] {
        let event = stage.event(id, OLD);
        receive_all(stage, &[&event]).await?;
        let mut purge = stage.harness.begin().await;
        that(purge.purge(CONSUMER, AGE, ALL).await? > 0, "a receipt to purge", 0)?;
        let copy = stage.receive_beside(&event, &[Seen]).await?;
        let expected = if commits {
            purge.commit().await?;
            [Seen, TooOld]
        } else {
            purge.rollback().await;
            [Seen, Seen]
        };
        let found = stage.answer_of(copy, &event).await?;
        that(
            expected.contains(&found),
            format!(
                "one of {expected:?} beside a purge that {}",
                if commits { "commits" } else { "is rolled back" }
            ),
            found,
        )?;
        if commits {
            stage.expect(TooOld, &event, "an event of which the receipt was purged").await?;
        }
    }
    Ok(())
}

pub(super) async fn purges_beside_each_other_forget_nothing(stage: &Stage<'_>) -> Verdict {
    let events: Vec<_> =
        (0..20_u32).map(|n| stage.event(&n.to_string(), OLD + SECOND * (n * 7 % 20))).collect();
    receive_all(stage, &events.iter().collect::<Vec<_>>()).await?;
    let purge = |mut transaction: Box<dyn InboxTransaction>| async move {
        let answer = transaction.purge(CONSUMER, AGE, 3).await;
        finish(transaction, answer).await
    };
    for _ in 0..TRIES_MAX {
        let answers = stage.side_by_side(4, purge).await?;
        if answers.iter().all(|answer| matches!(answer, Ok(0))) {
            break;
        }
        for answer in answers {
            match answer {
                Err(error) if !is_conflict(&error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    equal("receipts that are left", 0, stage.harness.receipts().await)?;
    for event in &events {
        stage.expect(TooOld, event, "an event of which the receipt was purged").await?;
    }
    Ok(())
}

pub(super) async fn young_receipts_are_not_purged(stage: &Stage<'_>) -> Verdict {
    receive_all(stage, &[&stage.event("1", OLD)]).await?;
    let mut transaction = stage.harness.begin().await;
    let answer = transaction.purge(CONSUMER, PURGE_AGE_MIN - SECOND, ALL).await;
    that(matches!(answer, Err(InboxError::PurgeAge(_))), "PurgeAge", answer)?;
    transaction.commit().await?;
    equal("receipts", 1, stage.harness.receipts().await)
}
