//! Membership and leases.

use std::collections::BTreeMap;

use outbox_core::store::{Epoch, Lease, Owner, Partition, RelayId};

use crate::{
    store::relay::Relay,
    store::stage::{HOUR, SHORT, Stage},
    violation::{Verdict, equal, that},
};

pub(super) async fn a_relay_lives_as_long_as_it_beats(stage: &Stage<'_>) -> Verdict {
    let relay = stage.store.join(HOUR).await?;
    let other = stage.store.join(HOUR).await?;
    that(relay != other, "a fresh id for every relay", (relay, other))?;
    equal("live relays", 2, stage.store.membership(relay).await?.relays_live)?;
    for _ in 0..3 {
        equal("the answer to a beat of a live relay", true, stage.store.beat(relay, HOUR).await?)?;
        stage.wait_short().await;
    }
    // A beat counts from now, so it can shorten a life too.
    equal("the answer to the last beat", true, stage.store.beat(relay, SHORT).await?)?;
    stage.wait_short().await;
    equal("live relays after one expired", 1, stage.store.membership(other).await?.relays_live)
}

pub(super) async fn an_expired_relay_is_buried(stage: &Stage<'_>) -> Verdict {
    let mut relay = Relay::without_leases(stage).await?;
    relay.expire().await?;
    equal("the answer to a beat after expiry", false, stage.store.beat(relay.id, HOUR).await?)?;
    equal("the answer to the next beat", false, stage.store.beat(relay.id, HOUR).await?)?;
    // Buried by another relay's beat, it is gone as well.
    let mut buried = Relay::without_leases(stage).await?;
    let other = Relay::without_leases(stage).await?;
    buried.expire().await?;
    equal("the other relay's beat", true, stage.store.beat(other.id, HOUR).await?)?;
    equal("the answer to a beat after burial", false, stage.store.beat(buried.id, HOUR).await?)?;
    equal("live relays", 1, stage.store.membership(other.id).await?.relays_live)
}

pub(super) async fn an_expired_relay_is_not_counted(stage: &Stage<'_>) -> Verdict {
    let mut dead = Relay::new(stage).await?;
    let live = Relay::without_leases(stage).await?;
    dead.expire().await?;
    let before = stage.store.membership(live.id).await?;
    equal("live relays before the burial", 1, before.relays_live)?;
    equal("the live relay's beat", true, stage.store.beat(live.id, HOUR).await?)?;
    let after = stage.store.membership(live.id).await?;
    equal("live relays after the burial", 1, after.relays_live)?;
    for membership in [before, after] {
        let taken: Vec<_> = membership.partitions.iter().filter(|view| view.owner != Owner::Free).collect();
        that(taken.is_empty(), "the partitions of the expired relay free", taken)?;
    }
    Ok(())
}

pub(super) async fn the_membership_names_every_partition(stage: &Stage<'_>) -> Verdict {
    let partitions = stage.store.capabilities().partitions;
    let mut first = Relay::without_leases(stage).await?;
    let second = Relay::without_leases(stage).await?;
    let view = stage.store.membership(first.id).await?;
    let mut named: Vec<_> = view.partitions.iter().map(|view| view.partition).collect();
    named.sort_unstable();
    equal("partitions", (0..partitions).collect::<Vec<_>>(), named)?;
    that(view.partitions.iter().all(|view| view.owner == Owner::Free), "all of them free", &view)?;

    first.claim_all().await?;
    equal("claimed partitions", usize::from(partitions), first.leases.len())?;
    let of_first = stage.store.membership(first.id).await?;
    that(of_first.partitions.iter().all(|view| view.owner == Owner::Mine), "all of them mine", &of_first)?;
    let of_second = stage.store.membership(second.id).await?;
    that(of_second.partitions.iter().all(|view| view.owner == Owner::Other), "all of another", &of_second)?;
    let epochs: Vec<_> = of_second.partitions.iter().map(|view| (view.partition, view.epoch)).collect();
    for lease in &first.leases {
        that(epochs.contains(&(lease.partition, lease.epoch)), format!("the epoch of {lease:?}"), &epochs)?;
    }
    Ok(())
}

pub(super) async fn a_claim_needs_the_epoch_that_was_seen(stage: &Stage<'_>) -> Verdict {
    let relay = Relay::without_leases(stage).await?;
    let seen = epochs(stage, relay.id).await?;
    let wrong: Vec<_> =
        seen.iter().flat_map(|(part, epoch)| [(*part, epoch - 1), (*part, epoch + 1)]).collect();
    let claimed = stage.store.claim(relay.id, &wrong).await?;
    that(claimed.is_empty(), "nothing claimed with other epochs", &claimed)?;
    equal("epochs after a refused claim", &seen, &epochs(stage, relay.id).await?)?;
    let unknown = (stage.store.capabilities().partitions, 0);
    let (partition, epoch) = first_of(&seen);
    let claimed = stage.store.claim(relay.id, &[unknown, (partition, epoch)]).await?;
    let leases: Vec<_> = claimed.iter().map(|claimed| claimed.lease).collect();
    equal("the lease", vec![Lease { partition, epoch: epoch + 1 }], leases)?;
    stage.store.release(relay.id, &[Lease { partition, epoch: epoch + 1 }]).await?;
    let claimed = stage.store.claim(relay.id, &[(partition, epoch)]).await?;
    that(claimed.is_empty(), "nothing claimed with an epoch of the past", &claimed)
}

pub(super) async fn the_partition_of_a_live_relay_is_not_claimed(stage: &Stage<'_>) -> Verdict {
    let owner = Relay::new(stage).await?;
    let other = Relay::without_leases(stage).await?;
    let seen: Vec<_> = epochs(stage, other.id).await?.into_iter().collect();
    for relay in [other.id, owner.id] {
        let claimed = stage.store.claim(relay, &seen).await?;
        that(claimed.is_empty(), "nothing claimed of a live relay", &claimed)?;
    }
    let settled = stage.store.membership(owner.id).await?;
    that(settled.partitions.iter().all(|view| view.owner == Owner::Mine), "the owner undisturbed", &settled)
}

pub(super) async fn of_racing_claims_one_wins(stage: &Stage<'_>) -> Verdict {
    for round in 0..5 {
        let mut relays = Vec::new();
        for _ in 0..4 {
            relays.push(stage.store.join(HOUR).await?);
        }
        let seen: Vec<_> = epochs(stage, relays[0]).await?.into_iter().collect();
        let reversed: Vec<_> = seen.iter().rev().copied().collect();
        let claims = relays.iter().enumerate().map(|(index, relay)| {
            let (store, relay) = (stage.store.clone(), *relay);
            let seen = if index % 2 == 0 { seen.clone() } else { reversed.clone() };
            // Tasks of their own, so that they run on several threads. A conflict is for the caller to try
            // again.
            tokio::spawn(async move {
                let mut answer = store.claim(relay, &seen).await;
                for _ in 0..20 {
                    match &answer {
                        Err(error) if error.kind() == outbox_core::StoreErrorKind::Conflict => {
                            answer = store.claim(relay, &seen).await;
                        }
                        _ => break,
                    }
                }
                answer
            })
        });
        let mut winners: BTreeMap<Partition, u32> =
            seen.iter().map(|(partition, _)| (*partition, 0)).collect();
        for answer in futures::future::join_all(claims).await {
            let answer = answer.unwrap_or_else(|error| panic!("a claim panicked: {error}"));
            for claimed in answer? {
                *winners.entry(claimed.lease.partition).or_default() += 1;
            }
        }
        winners.retain(|_, count| *count != 1);
        that(winners.is_empty(), format!("round {round}: one winner for each partition"), winners)?;
        for relay in relays {
            stage.store.leave(relay).await?;
        }
    }
    Ok(())
}

pub(super) async fn an_expired_relay_claims_nothing(stage: &Stage<'_>) -> Verdict {
    let mut expired = Relay::without_leases(stage).await?;
    expired.expire().await?;
    let left = Relay::without_leases(stage).await?;
    stage.store.leave(left.id).await?;
    let observer = Relay::without_leases(stage).await?;
    let seen: Vec<_> = epochs(stage, observer.id).await?.into_iter().collect();
    for relay in [expired.id, left.id] {
        let claimed = stage.store.claim(relay, &seen).await?;
        that(claimed.is_empty(), "nothing claimed by a relay that is not alive", &claimed)?;
    }
    equal("epochs", seen, epochs(stage, observer.id).await?.into_iter().collect())
}

pub(super) async fn a_claim_says_whether_the_owner_died(stage: &Stage<'_>) -> Verdict {
    let observer = Relay::without_leases(stage).await?;
    let partition = first_of(&epochs(stage, observer.id).await?).0;
    let claim = async |relay: RelayId| -> Verdict<Option<(Lease, bool)>> {
        let epoch = epochs(stage, relay).await?.get(&partition).copied().unwrap_or_default();
        let claimed = stage.store.claim(relay, &[(partition, epoch)]).await?;
        Ok(claimed.first().map(|claimed| (claimed.lease, claimed.owner_died)))
    };
    let died = |claimed: Option<(Lease, bool)>| claimed.map(|(_, died)| died);

    let mut first = Relay::without_leases(stage).await?;
    equal("owner_died where there was no owner", Some(false), died(claim(first.id).await?))?;
    first.expire().await?;
    let second = Relay::without_leases(stage).await?;
    let claimed = claim(second.id).await?;
    equal("owner_died after the owner expired", Some(true), died(claimed))?;
    let lease = claimed.map(|(lease, _)| lease);
    stage.store.release(second.id, &lease.into_iter().collect::<Vec<_>>()).await?;
    let mut third = Relay::without_leases(stage).await?;
    equal("owner_died after a release", Some(false), died(claim(third.id).await?))?;
    third.expire().await?;
    stage.store.beat(observer.id, HOUR).await?;
    let fourth = Relay::without_leases(stage).await?;
    equal("owner_died after the owner expired and was buried", Some(true), died(claim(fourth.id).await?))?;
    stage.store.leave(fourth.id).await?;
    let fifth = Relay::without_leases(stage).await?;
    equal("owner_died after the owner left", Some(false), died(claim(fifth.id).await?))
}

pub(super) async fn a_stale_release_changes_nothing(stage: &Stage<'_>) -> Verdict {
    let mut first = Relay::new(stage).await?;
    first.expire().await?;
    let second = Relay::new(stage).await?;
    stage.store.release(first.id, &first.leases).await?;
    stage.store.release(first.id, &second.leases).await?;
    stage.store.release(second.id, &first.leases).await?;
    stage.store.leave(first.id).await?;
    let view = stage.store.membership(second.id).await?;
    that(
        view.partitions.iter().all(|view| view.owner == Owner::Mine),
        "all partitions of the second relay",
        &view,
    )
}

pub(super) async fn leaving_releases_everything(stage: &Stage<'_>) -> Verdict {
    let first = Relay::new(stage).await?;
    let second = Relay::without_leases(stage).await?;
    stage.store.leave(first.id).await?;
    let view = stage.store.membership(second.id).await?;
    equal("live relays", 1, view.relays_live)?;
    that(view.partitions.iter().all(|view| view.owner == Owner::Free), "all partitions free", &view)?;
    let seen: Vec<_> = view.partitions.iter().map(|view| (view.partition, view.epoch)).collect();
    let claimed = stage.store.claim(second.id, &seen).await?;
    equal("claimed partitions", seen.len(), claimed.len())?;
    that(claimed.iter().all(|claimed| !claimed.owner_died), "no owner that died", &claimed)?;
    // Leaving twice, or under an id that no relay has, is not an error.
    stage.store.leave(first.id).await?;
    equal("a beat after leaving", false, stage.store.beat(first.id, HOUR).await?)
}

async fn epochs(stage: &Stage<'_>, relay: RelayId) -> Verdict<BTreeMap<Partition, Epoch>> {
    let membership = stage.store.membership(relay).await?;
    Ok(membership.partitions.iter().map(|view| (view.partition, view.epoch)).collect())
}

fn first_of(epochs: &BTreeMap<Partition, Epoch>) -> (Partition, Epoch) {
    epochs.first_key_value().map(|(partition, epoch)| (*partition, *epoch)).unwrap_or_default()
}
