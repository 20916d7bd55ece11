//! Holds as settling makes them and a reader returns them.

use std::{collections::BTreeSet, time::Duration};

use outbox_core::store::{
    HoldReason, HoldRecord, Outcome, Row, Sequence, Settled, Status, Successors, Unhold,
};

use crate::{
    store::relay::{Relay, failed, retry, settlement},
    store::stage::{HOUR, SHORT, Stage, key},
    violation::{Verdict, equal, that},
};

pub(super) async fn a_retry_holds_its_aggregate_alone(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.finish(&rows[0], 1, retry(HOUR)).await?;
    let after = stage.commit(&["a", "b"]).await?;
    relay.expect_rows("the other aggregate, by the same reader", &after[1..]).await?;
    relay.renew_reader().await?;
    let others = [sequences[2], after[1]];
    relay.expect_rows("the other aggregate, by a new reader", &others).await?;

    let hold = stage.hold_of("a").await?;
    let found = (hold.sequence, hold.reason, hold.paused);
    equal("the hold", (Some(sequences[0]), HoldReason::Backoff, false), found)?;
    expect_an_hour(&hold)?;
    let record = stage.record_of(sequences[0]).await?;
    equal("status and attempts", (Status::Pending, 1), (record.status, record.attempts))?;
    equal("its error", Some("refused for now".to_owned()), record.last_error)?;
    equal("its available_at, which a back-off never touches", None, record.available_at)?;
    equal("holds", 1, stage.admin.holds(10).await?.len())
}

pub(super) async fn a_due_hold_is_returned_alone(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[0], 1, retry(SHORT)).await?;
    let while_held = stage.commit_one("a").await?;
    stage.wait_short().await;
    let what = "after the back-off";
    let (hold, row) = relay.expect_due_row(what, &key("a"), sequences[0]).await?;
    equal("attempts of the held event", 1, row.attempts)?;
    equal("partition of the hold", rows[0].partition, hold.partition)?;
    let while_due = stage.commit_one("a").await?;
    relay.expect_nothing("until the due hold is dealt with").await?;
    relay.finish(&row, 2, Outcome::Sent).await?;
    stage.expect_no_hold("a").await?;
    relay.end(&hold, true);
    let successors = [sequences[1], while_held, while_due];
    relay.expect_rows("the successors, after the hold was removed", &successors).await.map(drop)
}

pub(super) async fn a_hold_that_goes_on_becomes_due_again(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[0], 1, retry(SHORT)).await?;
    for attempt in 2..5 {
        stage.wait_short().await;
        let what = format!("before attempt {attempt}");
        let (hold, row) = relay.expect_due_row(&what, &key("a"), sequences[0]).await?;
        equal("attempts of the held event", attempt - 1, row.attempts)?;
        relay.finish(&row, attempt, retry(SHORT)).await?;
        relay.end(&hold, false);
    }
    stage.wait_short().await;
    let (hold, row) = relay.expect_due_row("before the last attempt", &key("a"), sequences[0]).await?;
    relay.finish(&row, 5, retry(HOUR)).await?;
    relay.end(&hold, false);
    relay.expect_nothing("while it is held for an hour").await
}

pub(super) async fn every_due_hold_gets_its_turn(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..30).map(|number| format!("k{number}")).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let settlements = rows.iter().map(|row| settlement(row, 1, retry(SHORT))).collect();
    equal("the settle", Settled::default(), relay.settle(settlements, Vec::new()).await?)?;
    let plain = stage.commit_one("plain").await?;
    stage.wait_short().await;
    let (mut due, mut rows) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..200 {
        let fetched = relay.fetch_page(8, 1 << 20).await?;
        let held = fetched.due_holds.iter().filter_map(|hold| hold.row.as_ref());
        let held: Vec<_> = held.map(|row| row.sequence).collect();
        let count = held.len() + fetched.rows.len();
        that(count <= 8, "at most 8 rows, held ones included", count)?;
        due.extend(held);
        rows.extend(fetched.rows.iter().map(|row| row.sequence));
        if due.len() == sequences.len() && !rows.is_empty() {
            break;
        }
        // A relay deals with what it is given, as slowly as it likes; every second one here, at once.
        for hold in fetched.due_holds.iter().step_by(2) {
            if let Some(row) = &hold.row {
                relay.finish(row, 2, Outcome::Sent).await?;
            }
            relay.end(hold, true);
        }
    }
    equal("due holds", sequences.into_iter().collect::<BTreeSet<_>>(), due)?;
    equal("rows", BTreeSet::from([plain]), rows)
}

pub(super) async fn the_longest_due_hold_comes_first(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["c", "a", "d", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    for row in rows.iter().rev() {
        relay.finish(row, 1, retry(Duration::ZERO)).await?;
        stage.wait_short().await;
    }
    let mut found = Vec::new();
    for _ in 0..50 {
        let fetched = relay.fetch_page(1, 1 << 20).await?;
        found.extend(fetched.due_holds.iter().filter_map(|hold| hold.sequence));
    }
    let expected: Vec<_> = sequences.iter().rev().copied().collect();
    equal("due holds, one at a time", expected, found)
}

pub(super) async fn a_hold_outlives_its_relay(stage: &Stage<'_>) -> Verdict {
    let mut first = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "b", "b"]).await?;
    let rows = first.expect_rows("all events", &sequences).await?;
    first.finish(&rows[0], 3, retry(SHORT)).await?;
    first.finish(&rows[2], 3, retry(HOUR)).await?;
    first.expire().await?;
    let mut second = Relay::new(stage).await?;
    let (hold, row) = second.expect_due_row("by the next owner", &key("a"), sequences[0]).await?;
    equal("attempts of the held event", 3, row.attempts)?;
    second.finish(&row, 4, Outcome::Sent).await?;
    second.end(&hold, true);
    second.expect_rows("its successor", &sequences[1..2]).await.map(drop)
}

pub(super) async fn a_parked_aggregate_waits_for_an_operator(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.finish(&rows[0], 3, failed(Successors::Park)).await?;
    let record = stage.record_of(sequences[0]).await?;
    equal("the parked event's status", Status::Failed, record.status)?;
    let hold = stage.hold_of("a").await?;
    let found = (hold.sequence, hold.reason, hold.due_in, hold.paused);
    equal("the hold", (Some(sequences[0]), HoldReason::Parked, None, false), found)?;
    let after = stage.commit_one("a").await?;
    relay.expect_nothing("while it is parked").await?;

    equal("resume", true, stage.admin.resume(&key("a")).await?)?;
    let hold = relay.expect_due("after resume", &key("a")).await?;
    let found = (hold.sequence, hold.row.as_ref().map(|row| row.sequence));
    equal("the due hold's event and row", (Some(sequences[0]), None), found)?;
    relay.expect_nothing("until the hold is removed").await?;
    equal("the unhold", Settled::default(), relay.unhold(&hold).await?)?;
    stage.expect_no_hold("a").await?;
    relay.end(&hold, true);
    relay.expect_rows("the successors", &[sequences[1], after]).await.map(drop)
}

pub(super) async fn a_hold_keeps_the_lower_sequence_and_the_later_time(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    // For each aggregate: which of its two events is retried first, and after how long; then the other one.
    let cases = [
        ("a", (1, HOUR), (0, SHORT)),
        ("b", (0, HOUR), (1, SHORT)),
        ("c", (0, SHORT), (1, HOUR)),
        ("d", (1, SHORT), (0, HOUR)),
    ];
    for (id, first, second) in cases {
        let sequences = stage.commit(&[id, id]).await?;
        let rows = relay.expect_rows("both events", &sequences).await?;
        for (index, after) in [first, second] {
            relay.finish(&rows[index], 1, retry(after)).await?;
        }
        let hold = stage.hold_of(id).await?;
        equal(&format!("the held event of {id}"), Some(sequences[0]), hold.sequence)?;
        expect_an_hour(&hold)?;
    }
    // A park has no end, whatever is retried beside it.
    let sequences = stage.commit(&["f", "f"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[0], 1, failed(Successors::Park)).await?;
    relay.finish(&rows[1], 1, retry(SHORT)).await?;
    let hold = stage.hold_of("f").await?;
    equal("the hold beside a park", (Some(sequences[0]), None), (hold.sequence, hold.due_in))?;
    // Of its own event, the new time and reason count, sooner or later.
    let sequence = stage.commit_one("e").await?;
    let row = relay.expect_row("the event", sequence).await?;
    relay.finish(&row, 1, retry(HOUR)).await?;
    let outcome = Outcome::Retry { after: SHORT, error: "no topic".to_owned(), reason: HoldReason::Topic };
    relay.finish(&row, 2, outcome).await?;
    let hold = stage.hold_of("e").await?;
    equal("the hold", (Some(sequence), HoldReason::Topic), (hold.sequence, hold.reason))?;
    that(hold.due_in.is_some_and(|due| due <= SHORT), format!("due within {SHORT:?}"), hold.due_in)
}

pub(super) async fn the_end_of_another_event_leaves_the_hold(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    for (id, outcome) in [("a", Outcome::Sent), ("b", failed(Successors::Release))] {
        let sequences = stage.commit(&[id, id]).await?;
        let rows = relay.expect_rows("both events", &sequences).await?;
        relay.finish(&rows[0], 1, retry(HOUR)).await?;
        relay.finish(&rows[1], 1, outcome).await?;
        equal("the held event", Some(sequences[0]), stage.hold_of(id).await?.sequence)?;
        // The end of its own event removes it.
        relay.finish(&rows[0], 2, Outcome::Sent).await?;
        stage.expect_no_hold(id).await?;
    }
    Ok(())
}

pub(super) async fn an_unhold_removes_only_what_holds_nothing(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["pending", "parked"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    let (pending, row) = (&rows[0], &rows[1]);
    // Its event is pending and due.
    relay.finish(pending, 1, retry(Duration::ZERO)).await?;
    expect_kept(stage, &mut relay, "pending", pending, Some(pending.sequence)).await?;
    // It is not due.
    relay.finish(row, 1, failed(Successors::Park)).await?;
    expect_kept(stage, &mut relay, "parked", row, Some(row.sequence)).await?;
    // It is of another event than the one that was read, or of none.
    stage.admin.resume(&key("parked")).await?;
    expect_kept(stage, &mut relay, "parked", row, Some(row.sequence + 1)).await?;
    expect_kept(stage, &mut relay, "parked", row, None).await?;
    // It is paused.
    stage.admin.pause(&key("parked")).await?;
    expect_kept(stage, &mut relay, "parked", row, Some(row.sequence)).await?;
    // Resumed, and of the same event, it goes.
    stage.admin.resume(&key("parked")).await?;
    let unhold = Unhold::new(row.key.clone(), row.partition, Some(row.sequence));
    relay.settle(Vec::new(), vec![unhold]).await?;
    stage.expect_no_hold("parked").await
}

async fn expect_kept(
    stage: &Stage<'_>,
    relay: &mut Relay<'_>,
    id: &str,
    row: &Row,
    sequence: Option<Sequence>,
) -> Verdict {
    stage.wait_short().await;
    let before = stage.hold_of(id).await?;
    let unhold = Unhold::new(row.key.clone(), row.partition, sequence);
    equal("the unhold", Settled::default(), relay.settle(Vec::new(), vec![unhold]).await?)?;
    let after = stage.hold_of(id).await?;
    equal(
        "the hold",
        (before.sequence, before.reason, before.paused),
        (after.sequence, after.reason, after.paused),
    )
}

fn expect_an_hour(hold: &HoldRecord) -> Verdict {
    let an_hour = HOUR - Duration::from_secs(300)..=HOUR;
    that(hold.due_in.is_some_and(|due| an_hour.contains(&due)), "a hold for an hour", hold)
}
