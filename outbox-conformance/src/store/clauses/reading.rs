//! The fetch contract.

use std::{collections::BTreeMap, time::Duration};

use chrono::TimeDelta;
use outbox_core::{
    AggregateKey, Event,
    store::{FailureCause, Outcome, Partition, Row, Sequence, Status, Successors},
};

use crate::{
    store::relay::{Relay, retry},
    store::stage::{HOUR, Stage, build, event, key},
    violation::{Verdict, equal, same_sequences, that},
};

/// Fetches that must be enough to read what a clause wrote, whatever the limits.
const FETCHES_MAX: usize = 400;

const BYTES_PLENTY: usize = 64 << 20;

pub(super) async fn an_aggregate_is_returned_in_order(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let mut expected: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
    let mut total = 0;
    for transaction in 0..20 {
        let ids: Vec<String> =
            (0..15).map(|number| format!("k{}", (number * 7 + transaction) % 11)).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for (id, sequence) in ids.iter().zip(stage.commit(&ids).await?) {
            expected.entry(key(id)).or_default().push(sequence);
            total += 1;
        }
    }
    let mut found: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
    let mut count = 0;
    for fetches in 0..FETCHES_MAX {
        if count == total {
            break;
        }
        // Settling some in between moves whatever the reader goes by.
        let fetched = relay.fetch_page(1 + fetches % 7, BYTES_PLENTY).await?;
        for (number, row) in fetched.rows.iter().enumerate() {
            found.entry(row.key.clone()).or_default().push(row.sequence);
            count += 1;
            if number % 3 == 0 {
                relay.finish(row, 1, Outcome::Sent).await?;
            }
        }
        for (key, sequences) in &found {
            let wanted = &expected.get(key).map(Vec::as_slice).unwrap_or_default();
            let prefix = &wanted[..wanted.len().min(sequences.len())];
            equal(&format!("the first {} events of {key}", sequences.len()), prefix, sequences)?;
        }
    }
    equal("all events of all aggregates", expected, found)
}

pub(super) async fn events_max_is_kept(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let mut found = Vec::new();
    for _ in 0..FETCHES_MAX {
        let fetched = relay.fetch_page(8, BYTES_PLENTY).await?;
        that(fetched.rows.len() <= 8, "at most 8 rows", fetched.rows.len())?;
        found.extend(fetched.rows.iter().map(|row| row.sequence));
        if fetched.rows.len() == 8 && found.len() < sequences.len() {
            that(fetched.more, "more, since the limit was hit and rows are left", fetched.more)?;
        }
        if found.len() >= sequences.len() {
            break;
        }
    }
    same_sequences("all events", &sequences, &found)?;
    let last = relay.fetch(8, BYTES_PLENTY).await?;
    that(!last.more, "no more after everything was returned", last.more)
}

pub(super) async fn bytes_max_is_kept(stage: &Stage<'_>) -> Verdict {
    const BYTES_MAX: usize = 25_000;
    let mut relay = Relay::new(stage).await?;
    let large = |number: i32| {
        build(Event::builder("order", format!("k{}", number % 5), "order.placed").payload(vec![7; 10_000]))
    };
    let sequences = stage.commit_events((0..20).map(large).collect()).await?;
    let mut found = Vec::new();
    for _ in 0..FETCHES_MAX {
        let fetched = relay.fetch_page(1000, BYTES_MAX).await?;
        let sizes: Vec<usize> = fetched.rows.iter().map(Row::bytes).collect();
        let but_last: usize = sizes.iter().rev().skip(1).sum();
        that(but_last < BYTES_MAX, format!("no row after the first {BYTES_MAX} bytes"), sizes)?;
        found.extend(fetched.rows.iter().map(|row| row.sequence));
        if found.len() >= sequences.len() {
            break;
        }
        if !fetched.rows.is_empty() {
            that(fetched.more, "more, since the limit was hit and rows are left", fetched.more)?;
        }
    }
    same_sequences("all events", &sequences, &found)
}

pub(super) async fn one_huge_row_is_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let huge = |id: &str| build(Event::builder("order", id, "order.placed").payload(vec![7; 300_000]));
    let sequences = stage.commit_events(vec![huge("a"), huge("b"), huge("c")]).await?;
    let mut found = Vec::new();
    for _ in 0..FETCHES_MAX {
        let fetched = relay.fetch_page(10, 1).await?;
        that(fetched.rows.len() <= 1, "one row at a time", fetched.rows.len())?;
        found.extend(fetched.rows.iter().map(|row| row.sequence));
        if found.len() >= sequences.len() {
            break;
        }
    }
    same_sequences("three rows, each larger than bytes_max", &sequences, &found)
}

pub(super) async fn a_late_commit_is_returned_by_the_same_reader(stage: &Stage<'_>) -> Verdict {
    if !stage.has_concurrent_writers() {
        return Ok(());
    }
    let mut relay = Relay::new(stage).await?;
    // Several rounds, with two late writers that end in the other order, since a reader could lose only what
    // straddles its position.
    for round in 0..4 {
        let first = stage.harness.begin(vec![event("late-1"), event("late-1")]).await;
        let second = stage.harness.begin(vec![event("late-2")]).await;
        let higher = stage.commit(&["early", "early"]).await?;
        relay.expect_rows(&format!("round {round}: what is committed"), &higher).await?;
        let lower = second.sequences();
        second.commit().await;
        relay.expect_rows(&format!("round {round}: the late commit"), &lower).await?;
        let above = stage.commit(&["early"]).await?;
        relay.expect_rows(&format!("round {round}: what came after"), &above).await?;
        let lowest = first.sequences();
        first.commit().await;
        relay.expect_rows(&format!("round {round}: the latest commit"), &lowest).await?;
    }
    Ok(())
}

pub(super) async fn a_late_commit_below_settled_rows_is_returned(stage: &Stage<'_>) -> Verdict {
    if !stage.has_concurrent_writers() {
        return Ok(());
    }
    let mut relay = Relay::new(stage).await?;
    for round in 0..3 {
        let late = stage.harness.begin(vec![event("late")]).await;
        let higher = stage.commit(&["early", "early"]).await?;
        let rows = relay.expect_rows(&format!("round {round}: what is committed"), &higher).await?;
        for row in &rows {
            relay.finish(row, 1, Outcome::Sent).await?;
        }
        relay.expect_nothing(&format!("round {round}: while the late writer is open")).await?;
        let lower = late.sequences();
        late.commit().await;
        let rows = relay.expect_rows(&format!("round {round}: the late commit"), &lower).await?;
        relay.finish(&rows[0], 1, Outcome::Sent).await?;
    }
    relay.expect_nothing("after everything is settled").await
}

pub(super) async fn known_rows_are_returned_by_a_new_reader(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let first = stage.commit(&["a", "b", "a"]).await?;
    let rows = relay.expect_rows("the first events", &first).await?;
    let successors = stage.commit(&["a", "b"]).await?;
    relay.expect_rows("the successors, while the first are in flight", &successors).await?;
    relay.finish(&rows[0], 1, Outcome::Sent).await?;
    relay.renew_reader().await?;
    let left = [&first[1..], &successors].concat();
    relay.expect_rows("all that is not settled, by a new reader", &left).await.map(drop)
}

pub(super) async fn a_partition_that_is_claimed_anew_is_read_from_the_beginning(
    stage: &Stage<'_>,
) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["a", "b", "c", "a", "b", "c"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    // Release and claim the partition of the first row. The relay drops the rows that it held of it.
    let lease = relay.lease_of(&rows[0])?;
    stage.store.release(relay.id, &[lease]).await?;
    let again: Vec<&Row> = rows.iter().filter(|row| row.partition == lease.partition).collect();
    for row in &again {
        relay.drop_rows_of(&row.key);
    }
    relay.leases.retain(|held| *held != lease);
    relay.expect_nothing("without the lease").await?;
    relay.claim_all().await?;
    let again: Vec<_> = again.iter().map(|row| row.sequence).collect();
    relay.expect_rows("the rows of the partition that was claimed anew", &again).await.map(drop)
}

pub(super) async fn only_rows_of_the_leases_are_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    // The lower half of the partitions; none of one.
    let half = stage.store.capabilities().partitions / 2;
    relay.leases.retain(|lease| lease.partition < half);
    let (mut mine, mut others) = (Vec::new(), Vec::new());
    for sequence in sequences {
        let partition = stage.record_of(sequence).await?.partition;
        if partition < half {
            mine.push(sequence);
        } else {
            others.push(sequence);
        };
    }
    relay.expect_rows(&format!("rows of the partitions below {half}"), &mine).await?;
    let leases = std::mem::take(&mut relay.leases);
    relay.expect_nothing("without any lease").await?;
    relay.leases = leases;
    let mut other = Relay::without_leases(stage).await?;
    let free: Vec<_> = stage.store.membership(relay.id).await?.partitions;
    stage.store.leave(relay.id).await?;
    let upper = free.iter().filter(|view| view.partition >= half).map(|view| (view.partition, view.epoch));
    let claimed = stage.store.claim(other.id, &upper.collect::<Vec<_>>()).await?;
    other.leases = claimed.iter().map(|claimed| claimed.lease).collect();
    other.expect_rows(&format!("rows of the partitions from {half}"), &others).await.map(drop)
}

pub(super) async fn an_aggregate_has_one_partition(stage: &Stage<'_>) -> Verdict {
    const KEYS: usize = 200;
    let partitions = stage.store.capabilities().partitions;
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..2 * KEYS).map(|number| format!("k{}", number % KEYS)).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let mut seen: BTreeMap<AggregateKey, Partition> = BTreeMap::new();
    for row in rows {
        that(row.partition < partitions, format!("a partition below {partitions}"), row.partition)?;
        let partition = *seen.entry(row.key.clone()).or_insert(row.partition);
        equal(&format!("the partition of {}", row.key), partition, row.partition)?;
    }
    // 200 keys leave fewer than half of 64 partitions empty, unless the hash spreads badly.
    let used: std::collections::BTreeSet<_> = seen.values().collect();
    let used_min = usize::from(partitions).div_ceil(2);
    that(
        used.len() >= used_min,
        format!("at least {used_min} partitions in use by {KEYS} aggregates"),
        used.len(),
    )
}

pub(super) async fn a_scheduled_event_waits_for_its_time(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let soon = stage.harness.now().await + TimeDelta::milliseconds(250);
    let scheduled = build(Event::builder("order", "a", "order.placed").available_at(soon));
    let sequence = stage.commit_events(vec![scheduled]).await?[0];
    // What is above it moves whatever position the reader keeps past it.
    let above = stage.commit(&["a", "b"]).await?;
    let rows = relay.fetch_all().await?.rows;
    let early = rows.iter().any(|row| row.sequence == sequence);
    // On a slow machine its time may have come by now, in which case being returned is right.
    let now = stage.harness.now().await;
    that(!early || now >= soon, format!("the scheduled event not before {soon}"), now)?;
    let mut found: Vec<_> = rows.iter().map(|row| row.sequence).collect();
    stage.harness.advance(Duration::from_millis(260)).await;
    let (rows, _) = relay.poll(|rows, _| rows.len() + found.len() >= 3).await?;
    found.extend(rows.iter().map(|row| row.sequence));
    same_sequences("the scheduled event and the others", &[above, vec![sequence]].concat(), &found)
}

pub(super) async fn a_scheduled_event_keeps_nobody_back(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let later = stage.harness.now().await + TimeDelta::hours(1);
    let scheduled = build(Event::builder("order", "a", "order.placed").available_at(later));
    let past = build(Event::builder("order", "a", "order.placed").available_at(later - TimeDelta::hours(2)));
    let sequences = stage.commit_events(vec![scheduled, event("a"), past, event("b")]).await?;
    let rows = relay.expect_rows("all but the scheduled event", &sequences[1..]).await?;
    for row in &rows {
        relay.finish(row, 1, Outcome::Sent).await?;
    }
    relay.expect_nothing("until the scheduled event is due").await?;
    relay.renew_reader().await?;
    relay.expect_nothing("until the scheduled event is due, by a new reader").await?;
    let at = stage.record_of(sequences[0]).await?.available_at;
    let close = at.is_some_and(|at| (at - later).abs() < TimeDelta::milliseconds(2));
    that(close, format!("the operator's available_at of {later}"), at)
}

pub(super) async fn next_due_is_when_the_next_event_is_due(stage: &Stage<'_>) -> Verdict {
    // Three minutes of tolerance, since the machine may be slow: to be wrong here is to be wrong by half an
    // hour.
    let around = |due: Duration, minutes: u64| {
        let due_minutes = due.as_secs() / 60;
        (minutes - 3..=minutes).contains(&due_minutes)
    };
    let mut relay = Relay::new(stage).await?;
    let sequence = stage.commit_one("held").await?;
    let row = relay.expect_row("the event", sequence).await?;
    let later = stage.harness.now().await + TimeDelta::hours(1);
    stage
        .commit_events(vec![build(Event::builder("order", "a", "order.placed").available_at(later))])
        .await?;
    let fetched = relay.fetch_all().await?;
    let due = fetched.next_due;
    that(due.is_none_or(|due| around(due, 60)), "next_due in an hour, or not known", due)?;
    relay.finish(&row, 1, retry(HOUR / 2)).await?;
    let due = relay.fetch_all().await?.next_due;
    that(due.is_none_or(|due| around(due, 30)), "next_due in half an hour, or not known", due)
}

pub(super) async fn an_undecodable_row_is_returned_alone(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let before = stage.commit_one("a").await?;
    let Some(broken) = stage.harness.insert_undecodable(&key("a")).await else {
        stage.not_asked("the schema refuses every row that is not an event");
        return Ok(());
    };
    let after = stage.commit(&["a", "b"]).await?;
    let sequences = [vec![before, broken], after].concat();
    let rows = relay.expect_rows("the undecodable row and all others", &sequences).await?;
    for row in &rows {
        equal("readable", row.sequence != broken, row.content.is_ok())?;
    }
    let row = &rows[1];
    equal("its aggregate", &key("a"), &row.key)?;
    let error = "headers are not a map".to_owned();
    let outcome =
        Outcome::Failed { cause: FailureCause::Undecodable, error, successors: Successors::Release };
    relay.finish(row, 1, outcome).await?;
    let record = stage.record_of(broken).await?;
    equal("its status", Status::Failed, record.status)?;
    equal("its cause", Some(FailureCause::Undecodable), record.cause)
}
