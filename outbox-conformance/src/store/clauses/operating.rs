//! The operator's side.

use std::time::Duration;

use chrono::TimeDelta;
use outbox_core::{
    Event, EventFilter,
    store::{FailureCause, HoldReason, Outcome, Sequence, Settled, Status, Successors},
};

use crate::{
    store::relay::{Relay, failed, retry},
    store::stage::{HOUR, SHORT, Stage, build, key},
    violation::{Verdict, equal, same_sequences, that},
};

/// The filter that means this event alone.
async fn only(stage: &Stage<'_>, sequence: Sequence) -> Verdict<EventFilter> {
    let ids = stage.record_of(sequence).await?.id.into_iter().collect();
    Ok(EventFilter::default().with_ids(ids))
}

pub(super) async fn a_requeued_event_is_delivered_next(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.finish(&rows[0], 5, failed(Successors::Release)).await?;
    relay.finish(&rows[1], 1, Outcome::Sent).await?;
    let above = stage.commit_one("b").await?;
    relay.expect_rows("what came later", &[above]).await?;

    equal("requeued", 1, stage.admin.requeue(&only(stage, sequences[0]).await?).await?)?;
    let successor = stage.commit_one("a").await?;
    let record = stage.record_of(sequences[0]).await?;
    let found = (record.status, record.attempts, record.cause);
    equal("status, attempts and cause", (Status::Pending, 0, None), found)?;
    equal("its error, which is kept", Some("refused for good".to_owned()), record.last_error)?;
    let hold = stage.hold_of("a").await?;
    let found = (hold.sequence, hold.reason, hold.due_in, hold.paused);
    equal("the hold", (Some(sequences[0]), HoldReason::Requeued, Some(Duration::ZERO), false), found)?;

    let (hold, row) = relay.expect_due_row("after the requeue", &key("a"), sequences[0]).await?;
    equal("its attempts", 0, row.attempts)?;
    relay.finish(&row, 1, Outcome::Sent).await?;
    relay.end(&hold, true);
    relay.expect_rows("its successor", &[successor]).await?;
    equal("its status", Status::Sent, stage.record_of(sequences[0]).await?.status)
}

pub(super) async fn requeued_events_come_in_order(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "a", "b"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    for row in &rows[..3] {
        relay.finish(row, 5, failed(Successors::Release)).await?;
    }
    // A parked aggregate of which its own event is requeued is held by it from now on.
    relay.finish(&rows[3], 5, failed(Successors::Park)).await?;
    let filter = EventFilter::status(Status::Failed).with_cause(FailureCause::Permanent);
    equal("requeued", 4, stage.admin.requeue(&filter).await?)?;
    equal("requeued again", 0, stage.admin.requeue(&filter).await?)?;
    for (id, sequence) in [("a", sequences[0]), ("b", sequences[3])] {
        let hold = stage.hold_of(id).await?;
        let found = (hold.sequence, hold.reason, hold.due_in);
        equal("the hold", (Some(sequence), HoldReason::Requeued, Some(Duration::ZERO)), found)?;
    }
    let (rows, due) = relay.poll(|_, due| due.len() >= 2).await?;
    let plain: Vec<_> = rows.iter().map(|row| row.sequence).collect();
    same_sequences("no row beside the due holds", &[], &plain)?;
    let held: Vec<_> = due.iter().filter_map(|hold| hold.row.as_ref()).map(|row| row.sequence).collect();
    same_sequences("the first event of each aggregate", &[sequences[0], sequences[3]], &held)?;
    for hold in &due {
        if let Some(row) = &hold.row {
            relay.finish(row, 1, Outcome::Sent).await?;
        }
        relay.end(hold, true);
    }
    relay.expect_rows("the others", &sequences[1..3]).await.map(drop)
}

pub(super) async fn a_requeue_beside_a_hold_keeps_its_time(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let an_hour = HOUR - Duration::from_secs(300)..=HOUR;
    for (id, failed_index, held_index) in [("a", 0, 1), ("b", 1, 0)] {
        let sequences = stage.commit(&[id, id]).await?;
        let rows = relay.expect_rows("both events", &sequences).await?;
        relay.finish(&rows[failed_index], 5, failed(Successors::Release)).await?;
        relay.finish(&rows[held_index], 1, retry(HOUR)).await?;
        equal("requeued", 1, stage.admin.requeue(&EventFilter::aggregate(&key(id))).await?)?;
        let hold = stage.hold_of(id).await?;
        equal("the held event", Some(sequences[0]), hold.sequence)?;
        let kept = hold.due_in.is_some_and(|due| an_hour.contains(&due));
        that(kept, "a hold for an hour, as before", &hold)?;
        relay.expect_nothing("while the aggregate is held").await?;
    }
    let sequence = stage.commit_one("c").await?;
    let row = relay.expect_row("the event", sequence).await?;
    relay.finish(&row, 5, failed(Successors::Release)).await?;
    stage.admin.pause(&key("c")).await?;
    equal("requeued", 1, stage.admin.requeue(&EventFilter::aggregate(&key("c"))).await?)?;
    let hold = stage.hold_of("c").await?;
    equal("the pause", (Some(sequence), None, true), (hold.sequence, hold.due_in, hold.paused))?;
    relay.expect_nothing("while the aggregate is paused").await?;
    stage.admin.resume(&key("c")).await?;
    relay.expect_due_row("after resume", &key("c"), sequence).await.map(drop)
}

pub(super) async fn only_failed_events_are_requeued(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["pending", "held", "sent"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.finish(&rows[1], 2, retry(HOUR)).await?;
    relay.finish(&rows[2], 3, Outcome::Sent).await?;
    let before = stage.admin.list(&EventFilter::default(), 10).await?;
    equal("requeued", 0, stage.admin.requeue(&EventFilter::default()).await?)?;
    equal("the events", before, stage.admin.list(&EventFilter::default(), 10).await?)?;
    stage.expect_no_hold("pending").await?;
    stage.expect_no_hold("sent").await?;
    let hold = stage.hold_of("held").await?;
    that(hold.due_in.is_some_and(|due| due > HOUR / 2), "the hold as it was", &hold)
}

pub(super) async fn a_discarded_event_is_given_up(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["failed", "held", "parked", "held", "parked"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    relay.finish(&rows[0], 2, failed(Successors::Release)).await?;
    relay.finish(&rows[1], 3, retry(HOUR)).await?;
    relay.finish(&rows[2], 2, failed(Successors::Park)).await?;
    let waiting = [("failed", 0, None), ("held", 1, Some(3)), ("parked", 2, Some(4))];
    for (id, discarded, successor) in waiting {
        let filter = only(stage, sequences[discarded]).await?;
        equal("discarded", 1, stage.admin.discard(&filter).await?)?;
        let record = stage.record_of(sequences[discarded]).await?;
        let found = (record.status, record.cause);
        equal("status and cause", (Status::Failed, Some(FailureCause::Discarded)), found)?;
        if let Some(successor) = successor {
            let hold = relay.expect_due("after the discard", &key(id)).await?;
            that(hold.row.is_none(), "a due hold without an event", &hold)?;
            equal("the unhold", Settled::default(), relay.unhold(&hold).await?)?;
            relay.end(&hold, true);
            relay.expect_rows("the successor", &[sequences[successor]]).await?;
        }
        stage.expect_no_hold(id).await?;
    }
    Ok(())
}

pub(super) async fn a_plain_pending_event_is_not_discarded(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let later = stage.harness.now().await + TimeDelta::hours(1);
    let sequences = stage.commit(&["in-flight", "sent"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[1], 1, Outcome::Sent).await?;
    stage.commit(&["unread"]).await?;
    stage
        .commit_events(vec![build(Event::builder("order", "x", "order.placed").available_at(later))])
        .await?;
    let before = stage.admin.list(&EventFilter::default(), 10).await?;
    equal("discarded", 0, stage.admin.discard(&EventFilter::default()).await?)?;
    equal("the events", before, stage.admin.list(&EventFilter::default(), 10).await?)?;
    equal("holds", 0, stage.admin.holds(10).await?.len())
}

pub(super) async fn a_paused_aggregate_is_kept_back(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let before = stage.commit_one("a").await?;
    stage.admin.pause(&key("a")).await?;
    stage.admin.pause(&key("a")).await?;
    let sequences = stage.commit(&["a", "b"]).await?;
    relay.expect_rows("the other aggregate", &sequences[1..]).await?;
    relay.renew_reader().await?;
    relay.expect_rows("the other aggregate, by a new reader", &sequences[1..]).await?;
    let hold = stage.hold_of("a").await?;
    let found = (hold.sequence, hold.reason, hold.due_in, hold.paused);
    equal("the hold", (None, HoldReason::Paused, None, true), found)?;

    equal("resume", true, stage.admin.resume(&key("a")).await?)?;
    equal("the pause after resume", false, stage.hold_of("a").await?.paused)?;
    let hold = relay.expect_due("after resume", &key("a")).await?;
    let found = (hold.sequence, hold.row.is_none());
    equal("no event and no row of the due hold", (None, true), found)?;
    relay.expect_nothing("until the hold is removed").await?;
    equal("the unhold", Settled::default(), relay.unhold(&hold).await?)?;
    stage.expect_no_hold("a").await?;
    relay.end(&hold, true);
    relay.expect_rows("the aggregate that was paused", &[before, sequences[0]]).await.map(drop)
}

pub(super) async fn a_pause_is_told_to_the_reader(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a", "b"]).await?;
    relay.expect_rows("all events", &sequences).await?;
    stage.admin.pause(&key("a")).await?;
    for _ in 0..100 {
        if !relay.paused.is_empty() {
            break;
        }
        relay.fetch_all().await?;
        stage.harness.advance(SHORT * 5).await;
    }
    equal("paused aggregates", vec![key("a")], relay.paused.iter().cloned().collect())
}

pub(super) async fn a_pause_outlasts_its_event(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    // In flight when the pause comes; sent, given up, or to be tried again.
    let outcomes = [("a", Outcome::Sent), ("b", failed(Successors::Release)), ("c", retry(SHORT))];
    for (id, outcome) in outcomes {
        let sequences = stage.commit(&[id, id]).await?;
        let rows = relay.expect_rows("both events", &sequences).await?;
        stage.admin.pause(&key(id)).await?;
        relay.drop_rows_of(&key(id));
        let retried = matches!(outcome, Outcome::Retry { .. });
        relay.finish(&rows[0], 1, outcome).await?;
        stage.wait_short().await;
        let hold = stage.hold_of(id).await?;
        equal("paused, without an end", (true, None), (hold.paused, hold.due_in))?;
        equal("the event it holds", retried.then_some(sequences[0]), hold.sequence)?;
        relay.expect_nothing("while the aggregate is paused").await?;
    }
    // Held, taken out as due, paused, and then sent: what is left is a plain pause.
    let sequences = stage.commit(&["d", "d"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[0], 1, retry(Duration::ZERO)).await?;
    let (hold, row) = relay.expect_due_row("before the pause", &key("d"), sequences[0]).await?;
    stage.admin.pause(&key("d")).await?;
    relay.finish(&row, 2, Outcome::Sent).await?;
    relay.end(&hold, false);
    let hold = stage.hold_of("d").await?;
    let found = (hold.sequence, hold.reason, hold.due_in, hold.paused);
    equal("the hold", (None, HoldReason::Paused, None, true), found)?;
    relay.expect_nothing("while the aggregate is paused").await?;
    stage.admin.resume(&key("d")).await?;
    let hold = relay.expect_due("after resume", &key("d")).await?;
    relay.unhold(&hold).await?;
    relay.end(&hold, true);
    relay.expect_rows("the successor", &sequences[1..]).await.map(drop)
}

pub(super) async fn a_pause_keeps_the_hold_beneath_it(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "a"]).await?;
    let rows = relay.expect_rows("both events", &sequences).await?;
    relay.finish(&rows[0], 1, retry(SHORT)).await?;
    stage.admin.pause(&key("a")).await?;
    let hold = stage.hold_of("a").await?;
    let found = (hold.sequence, hold.due_in, hold.paused);
    equal("the hold", (Some(sequences[0]), None, true), found)?;
    stage.wait_short().await;
    relay.expect_nothing("while the aggregate is paused, though the back-off is over").await?;
    stage.admin.resume(&key("a")).await?;
    let (hold, row) = relay.expect_due_row("after resume", &key("a"), sequences[0]).await?;
    relay.finish(&row, 2, Outcome::Sent).await?;
    relay.end(&hold, true);
    relay.expect_rows("the successor", &sequences[1..]).await.map(drop)
}

pub(super) async fn resume_says_whether_there_was_a_hold(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    equal("resume of what was never paused", false, stage.admin.resume(&key("a")).await?)?;
    stage.admin.pause(&key("a")).await?;
    equal("resume of what is paused", true, stage.admin.resume(&key("a")).await?)?;
    equal("resume of its neighbour", false, stage.admin.resume(&key("A")).await?)?;
    let hold = relay.expect_due("after resume", &key("a")).await?;
    relay.unhold(&hold).await?;
    equal("resume after the hold was removed", false, stage.admin.resume(&key("a")).await?)
}

pub(super) async fn a_paused_topic_is_in_the_membership(stage: &Stage<'_>) -> Verdict {
    let relay = Relay::without_leases(stage).await?;
    let topics = async || -> Verdict<(Vec<String>, Vec<String>)> {
        let mut listed = stage.admin.paused_topics().await?;
        let mut seen = stage.store.membership(relay.id).await?.paused_topics;
        listed.sort_unstable();
        seen.sort_unstable();
        Ok((listed, seen))
    };
    equal("no topic at first", (Vec::new(), Vec::new()), topics().await?)?;
    for topic in ["orders", "Orders", "örders", "orders"] {
        stage.admin.pause_topic(topic).await?;
    }
    let all = vec!["Orders".to_owned(), "orders".to_owned(), "örders".to_owned()];
    equal("the paused topics", (all.clone(), all), topics().await?)?;
    equal("resume of a paused topic", true, stage.admin.resume_topic("orders").await?)?;
    equal("resume of a topic that is not paused", false, stage.admin.resume_topic("orders").await?)?;
    let left = vec!["Orders".to_owned(), "örders".to_owned()];
    equal("the paused topics that are left", (left.clone(), left), topics().await?)
}

pub(super) async fn resuming_a_topic_makes_its_holds_due(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["topic", "backoff", "paused"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    for row in &rows {
        let reason = if row.key == key("backoff") { HoldReason::Backoff } else { HoldReason::Topic };
        let outcome = Outcome::Retry { after: HOUR, error: "no topic".to_owned(), reason };
        relay.finish(row, 0, outcome).await?;
    }
    stage.admin.pause(&key("paused")).await?;
    stage.admin.pause_topic("orders").await?;
    relay.expect_nothing("while the topic is paused").await?;
    stage.admin.resume_topic("orders").await?;
    let (_, row) = relay.expect_due_row("after resume_topic", &key("topic"), sequences[0]).await?;
    equal("its attempts, of which none was spent", 0, row.attempts)?;
    equal("the pause", true, stage.hold_of("paused").await?.paused)
}

pub(super) async fn a_list_is_filtered_and_paged(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let events: Vec<Event> = (0..12)
        .map(|number| {
            let kind = if number % 2 == 0 { "order" } else { "invoice" };
            let what = if number < 6 { "placed" } else { "paid" };
            build(Event::builder(kind, format!("k{}", number % 3), what))
        })
        .collect();
    let ids = vec![events[1].id(), events[7].id(), events[8].id()];
    let all = stage.commit_events(events).await?;
    let rows = relay.expect_rows("all events", &all).await?;
    relay.finish(&rows[0], 1, Outcome::Sent).await?;
    relay.finish(&rows[1], 1, failed(Successors::Release)).await?;
    let (cause, error) = (FailureCause::Exhausted, "no more".to_owned());
    relay.finish(&rows[2], 1, Outcome::Failed { cause, error, successors: Successors::Release }).await?;
    let any = EventFilter::default;
    let cases: Vec<(&str, EventFilter, u32, &[usize])> = vec![
        ("all", any(), 100, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("a page", any(), 4, &[0, 1, 2, 3]),
        ("the next page", any().after(all[3]), 4, &[4, 5, 6, 7]),
        ("after the last", any().after(all[11]), 4, &[]),
        ("ids", any().with_ids(ids.clone()), 100, &[1, 7, 8]),
        ("ids and a type", any().with_ids(ids).with_aggregate_type("order".into()), 100, &[8]),
        ("sent", EventFilter::status(Status::Sent), 100, &[0]),
        ("failed", EventFilter::status(Status::Failed), 100, &[1, 2]),
        ("pending", EventFilter::status(Status::Pending), 100, &[3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("exhausted", any().with_cause(FailureCause::Exhausted), 100, &[2]),
        ("expired", any().with_cause(FailureCause::Expired), 100, &[]),
        ("a type", any().with_aggregate_type("order".into()), 100, &[0, 2, 4, 6, 8, 10]),
        ("another case", any().with_aggregate_type("Order".into()), 100, &[]),
        ("an aggregate id", any().with_aggregate_id("k1".into()), 100, &[1, 4, 7, 10]),
        ("an aggregate", EventFilter::aggregate(&key("k1")), 100, &[4, 10]),
        ("an event type", any().with_event_type("paid".into()), 3, &[6, 7, 8]),
        ("an unknown id", EventFilter::id(uuid::Uuid::from_u128(7)), 100, &[]),
    ];
    for (what, filter, rows_max, indexes) in cases {
        let listed = stage.admin.list(&filter, rows_max).await?;
        let found: Vec<_> = listed.iter().map(|record| record.sequence).collect();
        let expected: Vec<_> = indexes.iter().map(|index| all[*index]).collect();
        equal(&format!("the list by {what}"), expected, found)?;
    }
    // The same filters choose what is requeued.
    let filter = any().with_cause(FailureCause::Exhausted);
    equal("requeued", 1, stage.admin.requeue(&filter).await?)?;
    equal("the other failed event", Status::Failed, stage.record_of(all[1]).await?.status)
}

pub(super) async fn holds_are_listed_as_they_become_due(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    // Neither the names nor the sequences are in the order of the times.
    let waits = [("b", Some(3)), ("a-park", None), ("d", Some(1)), ("c", Some(2))];
    for (id, hours) in waits {
        let sequence = stage.commit_one(id).await?;
        let row = relay.expect_row("the event", sequence).await?;
        let outcome = hours.map_or(failed(Successors::Park), |hours| retry(HOUR * hours));
        relay.finish(&row, 1, outcome).await?;
    }
    for rows_max in [10, 3, 1] {
        let holds = stage.admin.holds(rows_max).await?;
        let found: Vec<_> = holds.iter().map(|hold| hold.key.aggregate_id()).collect();
        let expected = &["d", "c", "b", "a-park"][..4.min(rows_max as usize)];
        equal(&format!("at most {rows_max} holds"), expected, &found)?;
    }
    Ok(())
}
