//! The operator's list beyond the table: a range of time, and the archive.

use outbox_core::{
    EventFilter, WhenSent,
    store::{EventRecord, FailureCause, Outcome, Sequence, Status, Successors},
};

use crate::{
    store::relay::{Relay, failed, retry},
    store::stage::{HOUR, SHORT, Stage, key},
    violation::{Verdict, equal, that},
};

/// What is archived for these clauses.
const ARCHIVED: [&str; 5] = ["a", "b", "a", "c", "a"];

/// Sends five events at three different times and archives them, and leaves one more in the table that is
/// sent.
async fn archive(stage: &Stage<'_>) -> Verdict<(Vec<EventRecord>, Sequence)> {
    let mut relay = Relay::new(stage).await?;
    let mut sequences = stage.commit(&ARCHIVED[..2]).await?;
    for id in &ARCHIVED[2..4] {
        stage.wait_short().await;
        sequences.push(stage.commit_one(id).await?);
    }
    sequences.push(stage.commit_one(ARCHIVED[4]).await?);
    let rows = relay.expect_rows("all events", &sequences).await?;
    let mut records = Vec::new();
    for sequence in &sequences {
        records.push(stage.record_of(*sequence).await?);
    }
    relay.when_sent = WhenSent::Archive;
    for row in &rows {
        relay.finish(row, 3, Outcome::Sent).await?;
    }
    let left = stage.commit_one("a").await?;
    let row = relay.expect_row("the last event", left).await?;
    relay.when_sent = WhenSent::Keep;
    relay.finish(&row, 1, Outcome::Sent).await?;
    Ok((records, left))
}

/// The list by each filter, as the indexes of `all`.
async fn expect_lists(
    stage: &Stage<'_>,
    all: &[Sequence],
    cases: Vec<(&str, EventFilter, u32, &[usize])>,
) -> Verdict {
    for (what, filter, rows_max, indexes) in cases {
        let listed = stage.admin.list(&filter, rows_max).await?;
        let found: Vec<_> = listed.iter().map(|record| record.sequence).collect();
        let expected: Vec<_> = indexes.iter().map(|index| all[*index]).collect();
        equal(&format!("the list by {what}"), expected, found)?;
    }
    Ok(())
}

pub(super) async fn a_list_keeps_to_a_time_range(stage: &Stage<'_>) -> Verdict {
    let mut sequences = Vec::new();
    for id in ["a", "b", "c"] {
        sequences.push(stage.commit_one(id).await?);
        stage.wait_short().await;
    }
    let second = stage.record_of(sequences[1]).await?.created_at;
    let third = stage.record_of(sequences[2]).await?.created_at;
    that(second < third, "times that ascend with the store's clock", (second, third))?;
    let any = EventFilter::default;
    let (from, before) = (Some(second), Some(second));
    let cases: Vec<(&str, EventFilter, u32, &[usize])> = vec![
        ("its start", any().with_created_from(from), 10, &[1, 2]),
        ("its end", any().with_created_before(before), 10, &[0]),
        ("both", any().with_created_from(from).with_created_before(third), 10, &[1]),
        ("an empty range", any().with_created_from(from).with_created_before(before), 10, &[]),
        ("a start later than all", any().with_created_from(third + SHORT), 10, &[]),
        ("a start and a key", EventFilter::aggregate(&key("c")).with_created_from(from), 10, &[2]),
    ];
    expect_lists(stage, &sequences, cases).await?;
    // The same filters choose what is requeued.
    let mut relay = Relay::new(stage).await?;
    for row in relay.expect_rows("all events", &sequences).await? {
        relay.finish(&row, 1, failed(Successors::Release)).await?;
    }
    equal("requeued", 1, stage.admin.requeue(&any().with_created_before(before)).await?)?;
    equal("the others", Status::Failed, stage.record_of(sequences[1]).await?.status)
}

pub(super) async fn archived_events_are_listed(stage: &Stage<'_>) -> Verdict {
    let (records, left) = archive(stage).await?;
    let archived = || EventFilter::default().in_archive();
    let of = |filter: EventFilter| filter.in_archive();
    let mut all: Vec<_> = records.iter().map(|record| record.sequence).collect();
    all.push(left);
    let ids = records[1].id.into_iter().chain(records[3].id).collect();
    let (from, before) = (Some(records[2].created_at), Some(records[3].created_at));
    let cases: Vec<(&str, EventFilter, u32, &[usize])> = vec![
        ("no condition, of the table", EventFilter::default(), 10, &[5]),
        ("the archive", archived(), 10, &[0, 1, 2, 3, 4]),
        ("a page of the archive", archived(), 2, &[0, 1]),
        ("its next page", archived().after(all[1]), 2, &[2, 3]),
        ("after its last", archived().after(all[4]), 2, &[]),
        ("ids, archived", archived().with_ids(ids), 10, &[1, 3]),
        ("an aggregate, archived", of(EventFilter::aggregate(&key("a"))), 10, &[0, 2, 4]),
        ("sent, archived", of(EventFilter::status(Status::Sent)), 10, &[0, 1, 2, 3, 4]),
        ("failed, archived", of(EventFilter::status(Status::Failed)), 10, &[]),
        ("a cause, archived", archived().with_cause(FailureCause::Exhausted), 10, &[]),
        ("another type, archived", archived().with_event_type("order.paid"), 10, &[]),
        ("times, archived", archived().with_created_from(from).with_created_before(before), 10, &[2]),
    ];
    expect_lists(stage, &all, cases).await?;
    // Moving an event changes nothing of it but what the settle says.
    let listed = stage.admin.list(&archived(), 10).await?;
    for (before, after) in records.into_iter().zip(&listed) {
        let settled = before.with_status(Status::Sent).with_attempts(3).with_sent_at(after.sent_at);
        equal("the archived event", &settled, after)?;
        that(after.sent_at.is_some(), "the time at which it was sent", after.sent_at)?;
    }
    Ok(())
}

pub(super) async fn archived_events_are_neither_requeued_nor_discarded(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["sent", "failed", "held"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.when_sent = WhenSent::Archive;
    relay.finish(&rows[0], 1, Outcome::Sent).await?;
    relay.finish(&rows[1], 1, failed(Successors::Release)).await?;
    relay.finish(&rows[2], 1, retry(HOUR)).await?;
    let archived = EventFilter::default().in_archive();
    let before =
        (stage.admin.list(&archived, 10).await?, stage.admin.list(&EventFilter::default(), 10).await?);
    equal("requeued", 0, stage.admin.requeue(&archived).await?)?;
    equal("discarded", 0, stage.admin.discard(&archived).await?)?;
    let after =
        (stage.admin.list(&archived, 10).await?, stage.admin.list(&EventFilter::default(), 10).await?);
    equal("the events of the archive and of the table", before, after)
}
