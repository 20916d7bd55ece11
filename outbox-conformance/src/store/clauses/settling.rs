//! Recording outcomes under leases.

use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox_core::{
    EventFilter, StoreError, StoreErrorKind, WhenSent,
    store::{
        EventRecord, FailureCause, HoldReason, Lease, Outcome, Row, Sequence, SettleRequest, Settled, Status,
        Successors, Unhold,
    },
};

use crate::{
    store::relay::{Relay, failed, retry, settlement},
    store::stage::{HOUR, Stage, event, key},
    violation::{Verdict, equal, that},
};

pub(super) async fn sent_rows_are_kept(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    let before = stage.harness.now().await;
    relay.finish(&rows[0], 3, Outcome::Sent).await?;
    let after = stage.harness.now().await;
    let record = stage.record_of(sequences[0]).await?;
    equal("its status", Status::Sent, record.status)?;
    equal("its attempts", 3, record.attempts)?;
    equal("its cause", None, record.cause)?;
    expect_between("sent_at", before, record.sent_at, after)?;
    equal("its failed_at", None, record.failed_at)?;
    equal("the other event", Status::Pending, stage.record_of(sequences[1]).await?.status)?;
    relay.expect_nothing("by the same reader").await?;
    relay.renew_reader().await?;
    relay.expect_rows("by a new reader", &sequences[1..]).await.map(drop)
}

/// The time was written between two others, within the second to which some clocks count.
fn expect_between(
    what: &str,
    before: DateTime<Utc>,
    at: Option<DateTime<Utc>>,
    after: DateTime<Utc>,
) -> Verdict {
    let tolerance = chrono::TimeDelta::seconds(1);
    let range = before - tolerance..=after + tolerance;
    that(at.is_some_and(|at| range.contains(&at)), format!("{what} in {range:?}"), at)
}

pub(super) async fn sent_rows_are_deleted(stage: &Stage<'_>) -> Verdict {
    let records = settle_sent(stage, WhenSent::Delete).await?;
    equal("rows that are left", vec![(Status::Pending, 0), (Status::Failed, 1)], records)?;
    equal("the archive", Vec::new(), stage.harness.archived().await)
}

pub(super) async fn sent_rows_are_archived(stage: &Stage<'_>) -> Verdict {
    let sent = event("a");
    let id = sent.id();
    stage.commit_events(vec![sent]).await?;
    let records = settle_sent(stage, WhenSent::Archive).await?;
    equal("rows that are left", vec![(Status::Pending, 0), (Status::Failed, 1)], records)?;
    let archived = stage.harness.archived().await;
    equal("events in the archive", 2, archived.len())?;
    that(archived.contains(&id), format!("event {id} in the archive"), archived)
}

/// Settles everything that there is and two more events as sent, one as failed, and leaves one pending.
async fn settle_sent(stage: &Stage<'_>, when_sent: WhenSent) -> Verdict<Vec<(Status, u32)>> {
    let mut relay = Relay::new(stage).await?;
    relay.when_sent = when_sent;
    let before = stage.admin.list(&EventFilter::default(), 10).await?;
    let mut sequences: Vec<Sequence> = before.iter().map(|record| record.sequence).collect();
    sequences.extend(stage.commit(&["b"]).await?);
    let open = stage.commit_one("c").await?;
    let given_up = stage.commit_one("d").await?;
    let all = [sequences.clone(), vec![open, given_up]].concat();
    let rows = relay.expect_rows("all events", &all).await?;
    let mut settlements: Vec<_> =
        rows[..sequences.len()].iter().map(|row| settlement(row, 1, Outcome::Sent)).collect();
    settlements.extend(rows.last().map(|row| settlement(row, 1, failed(Successors::Release))));
    equal("the settle", Settled::default(), relay.settle(settlements.clone(), Vec::new()).await?)?;
    equal("the same settle again", Settled::default(), relay.settle(settlements, Vec::new()).await?)?;
    relay.renew_reader().await?;
    relay.expect_rows("what is left, by a new reader", &[open]).await?;
    let left = stage.admin.list(&EventFilter::default(), 10).await?;
    Ok(left.iter().map(|record| (record.status, record.attempts)).collect())
}

pub(super) async fn a_failed_event_releases_its_successors(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "b", "c", "d"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let causes =
        [FailureCause::Exhausted, FailureCause::Permanent, FailureCause::Discarded, FailureCause::Expired];
    for (cause, row) in causes.iter().zip(&rows) {
        let error = format!("refused: \"ünïcode\", {cause:?}\n{}", "x".repeat(3000));
        let outcome =
            Outcome::Failed { cause: *cause, error: error.clone(), successors: Successors::Release };
        let before = stage.harness.now().await;
        relay.finish(row, 7, outcome).await?;
        let after = stage.harness.now().await;
        let record = stage.record_of(row.sequence).await?;
        equal("its status", Status::Failed, record.status)?;
        equal("its attempts", 7, record.attempts)?;
        expect_between("failed_at", before, record.failed_at, after)?;
        equal("its cause", Some(*cause), record.cause)?;
        equal("its error", Some(error), record.last_error)?;
        equal("its sent_at", None, record.sent_at)?;
    }
    stage.expect_no_hold("a").await?;
    let successor = stage.commit_one("a").await?;
    relay.expect_rows("the successor", &[successor]).await?;
    relay.renew_reader().await?;
    relay.expect_rows("the successor, by a new reader", &[successor]).await.map(drop)
}

pub(super) async fn outcomes_are_recorded_together(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..120).map(|number| format!("k{number}")).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let outcome = |row: &Row| match row.sequence % 4 {
        0 => Outcome::Sent,
        1 => Outcome::Retry {
            after: HOUR,
            error: format!("error of {}", row.sequence),
            reason: if row.sequence % 8 == 1 { HoldReason::Backoff } else { HoldReason::Topic },
        },
        2 => Outcome::Failed {
            cause: FailureCause::Exhausted,
            error: format!("error of {}", row.sequence),
            successors: Successors::Release,
        },
        _ => Outcome::Failed {
            cause: FailureCause::Permanent,
            error: format!("error of {}", row.sequence),
            successors: Successors::Park,
        },
    };
    let attempts = |row: &Row| u32::try_from(row.sequence % 5 + 1).unwrap_or(1);
    let settlements = rows.iter().map(|row| settlement(row, attempts(row), outcome(row))).collect();
    equal("the settle", Settled::default(), relay.settle(settlements, Vec::new()).await?)?;
    let holds = stage.admin.holds(1000).await?;
    for row in &rows {
        let record = stage.record_of(row.sequence).await?;
        let hold = holds.iter().find(|hold| hold.key == row.key);
        let (status, cause, reason) = match outcome(row) {
            Outcome::Sent => (Status::Sent, None, None),
            Outcome::Retry { reason, .. } => (Status::Pending, None, Some(reason)),
            Outcome::Failed { cause, successors: Successors::Release, .. } => {
                (Status::Failed, Some(cause), None)
            }
            Outcome::Failed { cause, .. } => (Status::Failed, Some(cause), Some(HoldReason::Parked)),
        };
        let sequence = row.sequence;
        equal(&format!("status of {sequence}"), status, record.status)?;
        equal(&format!("cause of {sequence}"), cause, record.cause)?;
        equal(&format!("attempts of {sequence}"), attempts(row), record.attempts)?;
        let error = (status != Status::Sent).then(|| format!("error of {sequence}"));
        equal(&format!("error of {sequence}"), error, record.last_error)?;
        let held = hold.map(|hold| (hold.sequence, hold.reason, hold.paused));
        equal(&format!("hold of {sequence}"), reason.map(|reason| (Some(sequence), reason, false)), held)?;
        if let Some(hold) = hold {
            equal(&format!("partition of the hold of {sequence}"), row.partition, hold.partition)?;
        }
    }
    Ok(())
}

pub(super) async fn settling_twice_counts_once(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["sent", "retried", "failed"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let outcomes = [Outcome::Sent, retry(HOUR), failed(Successors::Release)];
    let settlements: Vec<_> =
        rows.iter().zip(outcomes).map(|(row, outcome)| settlement(row, 2, outcome)).collect();
    relay.settle(settlements.clone(), Vec::new()).await?;
    let once = records(stage).await?;
    stage.wait_short().await;
    equal("the settle again", Settled::default(), relay.settle(settlements.clone(), Vec::new()).await?)?;
    equal("the records after the settle again", &once, &records(stage).await?)?;
    equal("holds", 1, stage.admin.holds(10).await?.len())?;

    // Another outcome of an event that is finished is too late, and holds no aggregate.
    let late = [retry(HOUR), failed(Successors::Park), Outcome::Sent];
    for row in [&rows[0], &rows[2]] {
        for outcome in &late {
            relay.finish(row, 9, outcome.clone()).await?;
        }
    }
    equal("the records after late settles", &once, &records(stage).await?)?;
    equal("holds after late settles", 1, stage.admin.holds(10).await?.len())
}

async fn records(stage: &Stage<'_>) -> Verdict<Vec<EventRecord>> {
    Ok(stage.admin.list(&EventFilter::default(), 100).await?)
}

pub(super) async fn a_stale_lease_is_fenced_and_the_others_are_recorded(stage: &Stage<'_>) -> Verdict {
    let mut stale = Relay::new(stage).await?;
    let ids: Vec<String> = (0..80).map(|number| format!("k{}", number / 2)).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let rows = stale.expect_rows("all events", &sequences).await?;
    // One partition goes to another relay, and the first does not know.
    let lost = stale.lease_of(&rows[0])?;
    stage.store.release(stale.id, &[lost]).await?;
    let mut next = Relay::new(stage).await?;
    equal("partitions of the next owner", vec![lost.partition], next.partitions())?;

    let outcomes = [Outcome::Sent, retry(HOUR), failed(Successors::Release), failed(Successors::Park)];
    let settlements: Vec<_> = rows
        .iter()
        .zip(outcomes.iter().cycle())
        .map(|(row, outcome)| settlement(row, 1, outcome.clone()))
        .collect();
    let settled = stale.settle(settlements, Vec::new()).await?;
    equal("the partitions that are fenced", vec![lost.partition], settled.fenced)?;
    for row in &rows {
        let record = stage.record_of(row.sequence).await?;
        let recorded = record.attempts == 1;
        let expected = row.partition != lost.partition;
        equal(
            &format!("whether event {} of {:?} was recorded", row.sequence, row.partition),
            expected,
            recorded,
        )?;
        if !expected {
            equal(&format!("status of event {}", row.sequence), Status::Pending, record.status)?;
            equal(&format!("error of event {}", row.sequence), None, record.last_error)?;
        }
    }
    let held = stage.admin.holds(1000).await?;
    let held = held.into_iter().find(|hold| hold.partition == lost.partition);
    that(held.is_none(), format!("no hold in partition {}", lost.partition), held)?;

    let left: Vec<_> =
        rows.iter().filter(|row| row.partition == lost.partition).map(|row| row.sequence).collect();
    let rows = next.expect_rows("the events of the partition, by its owner", &left).await?;
    for row in &rows {
        next.finish(row, 1, Outcome::Sent).await?;
    }
    Ok(())
}

pub(super) async fn a_settle_needs_the_owner_and_the_epoch(stage: &Stage<'_>) -> Verdict {
    let mut first = Relay::new(stage).await?;
    let sequence = stage.commit_one("a").await?;
    let row = first.expect_row("the event", sequence).await?;
    let old = first.lease_of(&row)?;
    first.expire().await?;
    // Nothing is lost until another relay claims it; then everything is.
    let mut second = Relay::new(stage).await?;
    let new = second.lease_of(&row)?;
    let unsettled = stage.record_of(sequence).await?;
    let outsider = Relay::without_leases(stage).await?;
    for (who, relay, lease) in [
        ("the old owner with the old epoch", first.id, old),
        ("the old owner with the new epoch", first.id, new),
        ("the new owner with the old epoch", second.id, old),
        ("another relay with the new epoch", outsider.id, new),
        ("the new owner with an epoch to come", second.id, Lease { epoch: new.epoch + 1, ..new }),
    ] {
        for outcome in [Outcome::Sent, retry(Duration::ZERO), failed(Successors::Park)] {
            let request = SettleRequest::new(relay, vec![lease])
                .with_settlements(vec![settlement(&row, 5, outcome)])
                .with_when_sent(WhenSent::Delete);
            let settled = stage.store.settle(&request).await?;
            equal(&format!("a settle of {who}: fenced"), vec![lease.partition], settled.fenced)?;
            equal(
                &format!("the event after a settle of {who}"),
                &unsettled,
                &stage.record_of(sequence).await?,
            )?;
        }
    }
    stage.expect_no_hold("a").await?;

    // An unhold is fenced as well.
    second.finish(&row, 1, failed(Successors::Park)).await?;
    stage.admin.resume(&key("a")).await?;
    let unhold = Unhold::new(key("a"), row.partition, Some(sequence));
    let request = SettleRequest::new(first.id, vec![old]).with_unholds(vec![unhold]);
    equal(
        "an unhold of the old owner: fenced",
        vec![old.partition],
        stage.store.settle(&request).await?.fenced,
    )?;
    stage.hold_of("a").await?;

    // And so is the settle of a relay that has released.
    let other = stage.commit_one("a").await?;
    stage.store.release(second.id, &[new]).await?;
    let settlements = vec![settlement(&row.clone().with_sequence(other), 1, Outcome::Sent)];
    let settled = second.settle(settlements, Vec::new()).await?;
    equal("a settle after the release: fenced", vec![new.partition], settled.fenced)?;
    equal("the event after it", Status::Pending, stage.record_of(other).await?.status)
}

pub(super) async fn what_the_database_refuses_is_an_error_of_its_own(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "odd", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    if !stage.harness.refuse(&key("odd")).await {
        stage.not_asked("the harness knows of nothing that makes the database refuse");
        return Ok(());
    }
    let before = stage.admin.list(&EventFilter::default(), 10).await?;
    let request = |rows: &[&Row], outcome: &Outcome| {
        SettleRequest::new(relay.id, relay.leases.clone())
            .with_settlements(rows.iter().map(|row| settlement(row, 1, outcome.clone())).collect())
    };
    let odd = &rows[1];
    for outcome in
        [Outcome::Sent, retry(Duration::ZERO), failed(Successors::Release), failed(Successors::Park)]
    {
        for rows in [vec![&rows[0], odd, &rows[2]], vec![odd]] {
            let what = format!("a settle of {} as {outcome:?}, one of which is refused", rows.len());
            expect_refusal(&what, stage.store.settle(&request(&rows, &outcome)).await.map(drop))?;
        }
    }
    let attempt = stage.store.begin_attempt(relay.id, relay.lease_of(odd)?, odd.sequence, 1).await;
    expect_refusal("an attempt that is refused", attempt.map(drop))?;
    equal("the events after it", before, stage.admin.list(&EventFilter::default(), 10).await?)?;
    equal("the holds after it", Vec::new(), stage.admin.holds(10).await?)?;

    relay.finish(&rows[0], 1, Outcome::Sent).await?;
    relay.finish(&rows[2], 1, failed(Successors::Release)).await?;
    let left = stage.admin.list(&EventFilter::status(Status::Pending), 10).await?;
    let left: Vec<Sequence> = left.iter().map(|record| record.sequence).collect();
    equal("what is not recorded in the end", vec![odd.sequence], left)
}

/// By the kind of its error a relay knows that asking again is of no use.
fn expect_refusal(what: &str, answer: Result<(), StoreError>) -> Verdict {
    let kind = answer.err().map(|error| error.kind());
    let refuses = !matches!(kind, None | Some(StoreErrorKind::Unavailable | StoreErrorKind::Conflict));
    that(refuses, format!("{what}: an error that is neither an outage nor a conflict"), kind)
}

pub(super) async fn an_attempt_is_recorded_under_the_lease(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequence = stage.commit_one("a").await?;
    let row = relay.expect_row("the event", sequence).await?;
    let lease = relay.lease_of(&row)?;
    let begun = stage.store.begin_attempt(relay.id, lease, sequence, 4).await?;
    equal("begin_attempt under the lease", true, begun)?;
    let record = stage.record_of(sequence).await?;
    equal("status and attempts", (Status::Pending, 4), (record.status, record.attempts))?;
    relay.renew_reader().await?;
    let row = relay.expect_row("the event, by a new reader", sequence).await?;
    equal("its attempts", 4, row.attempts)?;
    let again = stage.store.begin_attempt(relay.id, lease, sequence, 4).await?;
    equal("begin_attempt again", true, again)?;
    equal("attempts after that", 4, stage.record_of(sequence).await?.attempts)?;

    let other = Relay::without_leases(stage).await?;
    let old = Lease { epoch: lease.epoch - 1, ..lease };
    for (who, relay, lease) in [("another relay", other.id, lease), ("an old epoch", relay.id, old)] {
        let begun = stage.store.begin_attempt(relay, lease, sequence, 9).await?;
        equal(&format!("begin_attempt of {who}"), false, begun)?;
        equal("attempts after that", 4, stage.record_of(sequence).await?.attempts)?;
    }
    Ok(())
}
