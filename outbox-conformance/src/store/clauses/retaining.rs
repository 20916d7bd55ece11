//! Retention, numbers and findings.

use std::{sync::Arc, time::Duration};

use outbox_core::{
    Disposal, EventFilter, OutboxAdmin, OutboxStore, StoreError, StoreErrorKind,
    store::{Count, Outcome, PurgeRequest, Purged, QuickStats, Row, Sequence, Status, Successors},
};

use crate::{
    store::relay::{Relay, failed, retry, settlement},
    store::stage::{HOUR, SHORT, Stage},
    violation::{Verdict, equal, same_sequences, that},
};

/// Reads and settles one event of each kind: two pending, of which one is held, three sent, and two failed.
async fn one_of_each(stage: &Stage<'_>) -> Verdict<Vec<Sequence>> {
    let mut relay = Relay::new(stage).await?;
    let sequences = stage.commit(&["p1", "p2", "s1", "s2", "s3", "f1", "f2"]).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let outcome = |row: &Row| match row.key.aggregate_id() {
        "p1" => None,
        "p2" => Some(retry(HOUR)),
        "f1" => Some(failed(Successors::Release)),
        "f2" => Some(failed(Successors::Park)),
        _ => Some(Outcome::Sent),
    };
    let settlements = rows.iter().filter_map(|row| Some(settlement(row, 1, outcome(row)?))).collect();
    relay.settle(settlements, Vec::new()).await?;
    Ok(sequences)
}

async fn left(stage: &Stage<'_>) -> Verdict<Vec<Sequence>> {
    let listed = stage.admin.list(&EventFilter::default(), 1000).await?;
    Ok(listed.iter().map(|record| record.sequence).collect())
}

fn request(sent: Option<Duration>, failed: Option<Duration>, rows_max: u32) -> PurgeRequest {
    let deleted = |age| (age, Disposal::Delete);
    PurgeRequest::new(rows_max).with_sent(sent.map(deleted)).with_failed(failed.map(deleted))
}

pub(super) async fn a_purge_removes_what_is_old_and_asked_for(stage: &Stage<'_>) -> Verdict {
    let all = one_of_each(stage).await?;
    stage.wait_short().await;
    let purged = stage.store.purge(request(Some(HOUR), Some(HOUR), 100)).await?;
    equal("removed while all are young", Purged::default(), purged)?;
    let purged = stage.store.purge(request(None, None, 100)).await?;
    equal("removed while nothing was asked", Purged::default(), purged)?;
    same_sequences("left", &all, &left(stage).await?)?;

    let mut counts = Vec::new();
    for _ in 0..3 {
        let purged = stage.store.purge(request(Some(SHORT), None, 2)).await?;
        equal("failed rows removed, which was not asked for", 0, purged.failed)?;
        counts.push(purged.sent);
    }
    equal("sent rows removed, two at a time", vec![2, 1, 0], counts)?;
    same_sequences("left", &[&all[..2], &all[5..]].concat(), &left(stage).await?)?;

    let purged = stage.store.purge(request(Some(SHORT), Some(SHORT), 100)).await?;
    equal("removed", Purged::default().with_failed(2), purged)?;
    same_sequences("left, which is pending", &all[..2], &left(stage).await?)?;
    equal("the archive", Vec::new(), stage.harness.archived().await)
}

pub(super) async fn a_purge_can_archive(stage: &Stage<'_>) -> Verdict {
    let all = one_of_each(stage).await?;
    let listed = stage.admin.list(&EventFilter::default(), 100).await?;
    let ids = |status: Status| {
        listed.iter().filter(move |record| record.status == status).filter_map(|record| record.id)
    };
    stage.wait_short().await;
    let archive = |sent: bool| {
        PurgeRequest::new(100)
            .with_sent(sent.then_some((SHORT, Disposal::Archive)))
            .with_failed((!sent).then_some((SHORT, Disposal::Archive)))
    };
    equal("removed", Purged::default().with_sent(3), stage.store.purge(archive(true)).await?)?;
    let mut archived = stage.harness.archived().await;
    let mut expected: Vec<_> = ids(Status::Sent).collect();
    archived.sort_unstable();
    expected.sort_unstable();
    equal("the archive", &expected, &archived)?;
    equal("removed", Purged::default().with_failed(2), stage.store.purge(archive(false)).await?)?;
    expected.extend(ids(Status::Failed));
    expected.sort_unstable();
    archived = stage.harness.archived().await;
    archived.sort_unstable();
    equal("the archive", &expected, &archived)?;
    same_sequences("left", &all[..2], &left(stage).await?)
}

pub(super) async fn a_requeued_event_is_not_purged(stage: &Stage<'_>) -> Verdict {
    const EVENTS: usize = 200;
    let mut relay = Relay::new(stage).await?;
    let ids: Vec<String> = (0..EVENTS).map(|number| format!("k{number}")).collect();
    let sequences = stage.commit(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let rows = relay.expect_rows("all events", &sequences).await?;
    let settlements = rows.iter().map(|row| settlement(row, 1, failed(Successors::Release))).collect();
    relay.settle(settlements, Vec::new()).await?;
    stage.wait_short().await;
    // Before the purge: a quarter.
    let ids: Vec<_> = rows.iter().filter_map(|row| row.content.as_ref().ok()).map(|event| event.id).collect();
    let filter = |ids: &[uuid::Uuid]| EventFilter::default().with_ids(ids.to_vec());
    let first = stage.admin.requeue(&filter(&ids[..EVENTS / 4])).await?;
    equal("requeued", EVENTS as u64 / 4, first)?;
    // Beside the purge: the others, a few at a time from both sides.
    let chunks: Vec<_> = ids[EVENTS / 4..].chunks(10).rev().map(filter).collect();
    let requeue = tokio::spawn(requeue_each(stage.admin.clone(), chunks));
    let purge = tokio::spawn(purge_often(stage.store.clone(), EVENTS / 10));
    let joined = |answer: Result<_, tokio::task::JoinError>| answer.unwrap_or_else(|error| panic!("{error}"));
    let (requeued, purged) = (joined(requeue.await)?, joined(purge.await)?);
    equal("requeued and purged together", EVENTS as u64, first + requeued + purged)?;
    let pending = stage.admin.list(&EventFilter::status(Status::Pending), 1000).await?;
    equal("the requeued events that are there", (first + requeued) as usize, pending.len())?;
    equal("all that is there", pending.len(), left(stage).await?.len())
}

/// How often a caller tries again where the store says that two transactions were in each other's way.
const TRIES_MAX: u32 = 50;

async fn requeue_each(admin: Arc<dyn OutboxAdmin>, filters: Vec<EventFilter>) -> Result<u64, StoreError> {
    let mut count = 0;
    for filter in filters {
        let mut answer = admin.requeue(&filter).await;
        for _ in 0..TRIES_MAX {
            if !is_conflict(&answer) {
                break;
            }
            answer = admin.requeue(&filter).await;
        }
        count += answer?;
    }
    Ok(count)
}

async fn purge_often(store: Arc<dyn OutboxStore>, times: usize) -> Result<u64, StoreError> {
    let request = request(None, Some(SHORT), 10);
    let mut count = 0;
    for _ in 0..times {
        let mut answer = store.purge(request).await;
        for _ in 0..TRIES_MAX {
            if !is_conflict(&answer) {
                break;
            }
            answer = store.purge(request).await;
        }
        count += answer?.failed;
    }
    Ok(count)
}

fn is_conflict<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(error) if error.kind() == StoreErrorKind::Conflict)
}

pub(super) async fn stats_count_what_is_there(stage: &Stage<'_>) -> Verdict {
    let empty = stage.store.stats().await?;
    let found =
        (empty.pending, empty.sent, empty.failed, empty.holds, empty.relays_live, empty.partitions_owned);
    equal("pending, sent, failed, holds, relays and partitions at first", (0, 0, 0, 0, 0, 0), found)?;
    equal("the age of the oldest pending event at first", None, empty.oldest_pending_age)?;
    one_of_each(stage).await?;
    stage.wait_short().await;
    let mut dead = Relay::without_leases(stage).await?;
    dead.expire().await?;
    let stats = stage.store.stats().await?;
    let found =
        (stats.pending, stats.sent, stats.failed, stats.holds, stats.relays_live, stats.partitions_owned);
    let partitions = u32::from(stage.store.capabilities().partitions);
    equal("pending, sent, failed, holds, relays and partitions", (2, 3, 2, 2, 1, partitions), found)?;
    let age = stats.oldest_pending_age;
    that(age.is_some_and(|age| age >= SHORT && age < HOUR), format!("an age of at least {SHORT:?}"), age)
}

pub(super) async fn quick_stats_count_what_waits(stage: &Stage<'_>) -> Verdict {
    let counts = |stats: &QuickStats| (stats.pending, stats.failed, stats.holds);
    let empty = stage.store.quick_stats().await?;
    equal(
        "pending, failed and holds at first",
        (Count::default(), Count::default(), Count::default()),
        counts(&empty),
    )?;
    equal("relays and partitions at first", (0, 0), (empty.relays_live, empty.partitions_owned))?;
    equal("the age of the oldest pending event at first", None, empty.oldest_pending_age)?;
    one_of_each(stage).await?;
    stage.wait_short().await;
    let mut dead = Relay::without_leases(stage).await?;
    dead.expire().await?;
    let stats = stage.store.quick_stats().await?;
    let expected = (Count::exactly(2), Count::exactly(2), Count::exactly(2));
    equal("pending, failed and holds", expected, counts(&stats))?;
    let partitions = u32::from(stage.store.capabilities().partitions);
    equal("live relays and owned partitions", (1, partitions), (stats.relays_live, stats.partitions_owned))?;
    let age = stats.oldest_pending_age;
    that(age.is_some_and(|age| age >= SHORT && age < HOUR), format!("an age of at least {SHORT:?}"), age)
}

pub(super) async fn a_fresh_store_has_no_findings(stage: &Stage<'_>) -> Verdict {
    equal("findings", Vec::new(), stage.store.check().await?)?;
    one_of_each(stage).await?;
    equal("findings of a store in use", Vec::new(), stage.store.check().await?)
}
