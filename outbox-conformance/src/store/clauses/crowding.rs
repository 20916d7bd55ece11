//! Aggregates that are full: the relay has enough of them, and wants the others.

use std::collections::BTreeMap;

use outbox_core::{
    AggregateKey,
    store::{Outcome, Row, Sequence},
};

use crate::{
    store::relay::{Relay, retry},
    store::stage::{SHORT, Stage, event, key},
    violation::{Verdict, equal, same_sequences, that},
};

/// Fetches that must be enough to read what a clause wrote, whatever the limits.
const FETCHES_MAX: usize = 400;
const BYTES_PLENTY: usize = 64 << 20;

pub(super) async fn a_full_aggregate_is_not_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let before = stage.commit(&["hot", "hot", "other"]).await?;
    let rows = relay.expect_rows("all events", &before).await?;
    relay.full = vec![key("hot")];
    let after = stage.commit(&["hot", "other", "hot"]).await?;
    relay.expect_rows("the others, while one is full", &after[1..2]).await?;
    relay.finish(&rows[0], 1, Outcome::Sent).await?;
    relay.renew_reader().await?;
    relay.expect_rows("the others, by a new reader", &[before[2], after[1]]).await.map(drop)
}

pub(super) async fn a_full_aggregate_keeps_nobody_back(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    for _ in 0..3 {
        stage.commit(&["hot"; 200]).await?;
    }
    let others = stage.commit(&["a", "b", "a"]).await?;
    relay.full = vec![key("hot")];
    let mut found = Vec::new();
    for _ in 0..FETCHES_MAX {
        let fetched = relay.fetch_page(8, BYTES_PLENTY).await?;
        found.extend(fetched.rows.iter().map(|row| row.sequence));
        if found.len() >= others.len() {
            break;
        }
    }
    same_sequences("the others, behind a long backlog of one that is full", &others, &found)
}

pub(super) async fn what_was_full_comes_in_order(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let mut expected: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
    let mut found: BTreeMap<AggregateKey, Vec<Sequence>> = BTreeMap::new();
    let ids = ["hot", "warm", "hot", "other", "hot"];
    let (mut total, mut count) = (0, 0);
    for fetches in 0..FETCHES_MAX {
        // Some are written while one of them is full, and some while none is.
        if fetches < 40 {
            for (id, sequence) in ids.iter().zip(stage.commit(&ids).await?) {
                expected.entry(key(id)).or_default().push(sequence);
                total += 1;
            }
        } else if count == total {
            break;
        }
        relay.full = match fetches % 10 {
            3..6 => vec![key("hot")],
            6..8 => vec![key("warm"), key("hot")],
            _ => Vec::new(),
        };
        let fetched = relay.fetch_page(1 + fetches % 9, BYTES_PLENTY).await?;
        for (number, row) in fetched.rows.iter().enumerate() {
            that(!relay.full.contains(&row.key), "no row of a full aggregate", &row.key)?;
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

pub(super) async fn a_late_commit_of_what_was_full_is_returned(stage: &Stage<'_>) -> Verdict {
    if !stage.has_concurrent_writers() {
        return Ok(());
    }
    let mut relay = Relay::new(stage).await?;
    for round in 0..3 {
        let late = stage.harness.begin(vec![event("hot"), event("other"), event("hot")]).await;
        let latest = stage.harness.begin(vec![event("hot")]).await;
        let early = stage.commit(&["hot", "other"]).await?;
        relay.expect_rows(&format!("round {round}: what is committed"), &early).await?;
        relay.full = vec![key("hot")];
        let lower = late.sequences();
        late.commit().await;
        let upper = stage.commit(&["hot", "other"]).await?;
        let what = format!("round {round}: the others, while one is full");
        relay.expect_rows(&what, &[lower[1], upper[1]]).await?;
        relay.full.clear();
        let what = format!("round {round}: what came late and what came after, in order");
        relay.expect_rows(&what, &[lower[0], lower[2], upper[0]]).await?;
        let last = latest.sequences();
        latest.commit().await;
        relay.expect_rows(&format!("round {round}: the latest commit"), &last).await?;
    }
    Ok(())
}

pub(super) async fn a_full_aggregate_that_is_claimed_anew_comes_from_the_beginning(
    stage: &Stage<'_>,
) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let before = stage.commit(&["hot", "hot", "hot"]).await?;
    let rows = relay.expect_rows("all events", &before).await?;
    relay.full = vec![key("hot")];
    let after = stage.commit_one("hot").await?;
    relay.expect_nothing("while it is full").await?;
    // The lease goes and comes back under another epoch; the relay drops what it held.
    let lease = relay.lease_of(&rows[0])?;
    stage.store.release(relay.id, &[lease]).await?;
    relay.drop_rows_of(&key("hot"));
    relay.leases.retain(|held| *held != lease);
    relay.expect_nothing("without the lease").await?;
    relay.claim_all().await?;
    relay.expect_nothing("while it is full still").await?;
    relay.full.clear();
    let all = [before, vec![after]].concat();
    relay.expect_rows("all that is pending, under the new lease", &all).await.map(drop)
}

pub(super) async fn a_due_hold_of_a_full_aggregate_is_returned(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["hot", "hot", "hot"]).await?;
    let rows: Vec<Row> = relay.expect_rows("all events", &sequences).await?;
    relay.full = vec![key("hot")];
    let after = stage.commit_one("hot").await?;
    relay.expect_nothing("while it is full").await?;
    relay.finish(&rows[0], 1, retry(SHORT)).await?;
    stage.wait_short().await;
    let (hold, row) = relay.expect_due_row("after the back-off", &key("hot"), sequences[0]).await?;
    relay.finish(&row, 2, Outcome::Sent).await?;
    relay.end(&hold, true);
    relay.expect_nothing("while it is full still").await?;
    relay.full.clear();
    let successors = [sequences[1], sequences[2], after];
    relay.expect_rows("the successors, once it is not full", &successors).await.map(drop)
}
