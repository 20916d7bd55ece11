//! The relay's place among the others: joins, beats, claims its fair share, gives up what is too much.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    RelayConfig,
    happening::{Happening, Standing},
    share,
};
use crate::{
    OutboxStore, StoreError,
    clock::{Clock, Monotonic},
    retry::backoff,
    store::{Claimed, Epoch, Lease, Membership, Owner, Partition, RelayId},
};

pub(crate) struct Steward {
    pub(crate) store: Arc<dyn OutboxStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: RelayConfig,
    pub(crate) rng: fastrand::Rng,
    pub(crate) tell: mpsc::UnboundedSender<Happening>,
    /// Leases that the engine has done with.
    pub(crate) releases: mpsc::UnboundedReceiver<Vec<Lease>>,
    /// The paused topics that the engine was told last; it keeps them under a new relay id.
    pub(crate) paused_topics: Vec<String>,
}

/// What the steward believes to own. The truth is the store's.
#[derive(Default)]
struct Owned {
    leases: BTreeMap<Partition, Epoch>,
    draining: Vec<Partition>,
}

impl Steward {
    /// Runs until the relay ends. Errors of the store are told and waited out.
    pub(crate) async fn run(mut self) {
        loop {
            let (relay, lease_until) = self.join().await;
            self.say(Standing::Joined(relay, lease_until));
            self.serve(relay).await;
            self.say(Standing::Buried);
        }
    }

    fn say(&self, standing: Standing) {
        // The receiver is gone only when the relay ends, and then the message does not matter.
        let _ = self.tell.send(Happening::Standing(standing));
    }

    async fn trouble(&mut self, failures: u32, error: StoreError) {
        let (min, max) = self.config.unavailable_delay;
        // A relay that waits longer than a beat loses its lease although the store is back.
        let max = max.min(self.config.beat_interval).max(min);
        self.say(Standing::Trouble(error));
        self.clock.sleep(backoff(min, max, failures, self.rng.f64()).max(min)).await;
    }

    async fn join(&mut self) -> (RelayId, Monotonic) {
        let mut failures = 0;
        loop {
            let asked_at = self.clock.now();
            match self.store.join(self.config.lease_ttl).await {
                Ok(relay) => return (relay, asked_at + self.config.lease_ttl),
                Err(error) => {
                    failures += 1;
                    self.trouble(failures, error).await;
                }
            }
        }
    }

    /// Serves until the relay is buried.
    async fn serve(&mut self, relay: RelayId) {
        let mut owned = Owned::default();
        let mut look_at = self.clock.now();
        let mut beat_at = look_at + self.config.beat_interval;
        let mut failures = 0;
        // The engine is told that the store answers once after joining, and after each trouble.
        let mut look_told = false;
        loop {
            let now = self.clock.now();
            let mut looked = false;
            let turn = if now >= beat_at {
                let beat = self.store.beat(relay, self.config.lease_ttl).await;
                match beat {
                    Ok(true) => {
                        self.say(Standing::Renewed(now + self.config.lease_ttl));
                        beat_at = now + self.config.beat_interval;
                        Ok(())
                    }
                    Ok(false) => return,
                    Err(error) => Err(error),
                }
            } else {
                // A time of its own: where beats are more frequent than this, they must not take its place.
                look_at = now + self.config.membership_interval;
                looked = true;
                self.look_around(relay, &mut owned).await
            };
            match turn {
                Ok(()) => {
                    failures = 0;
                    if looked && !look_told {
                        look_told = true;
                        self.say(Standing::Looked);
                    }
                }
                Err(error) => {
                    failures += 1;
                    look_told = false;
                    self.trouble(failures, error).await;
                    continue;
                }
            }
            let pause = look_at.min(beat_at).saturating_sub(self.clock.now());
            self.wait(relay, &mut owned, pause).await;
        }
    }

    /// Waits for `pause`, and releases meanwhile what the engine has done with.
    async fn wait(&mut self, relay: RelayId, owned: &mut Owned, pause: Duration) {
        let mut sleep = self.clock.sleep(pause);
        loop {
            let leases = tokio::select! {
                biased;
                Some(leases) = self.releases.recv() => leases,
                () = &mut sleep => return,
            };
            // A release that fails is seen by the next look around, as a partition that is owned and unknown.
            if let Err(error) = self.store.release(relay, &leases).await {
                self.say(Standing::Trouble(error));
            }
            for lease in leases {
                owned.leases.remove(&lease.partition);
                owned.draining.retain(|partition| *partition != lease.partition);
            }
        }
    }

    async fn look_around(&mut self, relay: RelayId, owned: &mut Owned) -> Result<(), StoreError> {
        let membership = self.store.membership(relay).await?;
        if membership.paused_topics != self.paused_topics {
            self.paused_topics.clone_from(&membership.paused_topics);
            self.say(Standing::PausedTopics(membership.paused_topics.clone()));
        }
        self.notice_changes(&membership, owned);
        let surplus = share::surplus(&membership, owned.leases.len() - owned.draining.len());
        if surplus > 0 {
            let give: Vec<Partition> = owned
                .leases
                .keys()
                .rev()
                .filter(|partition| !owned.draining.contains(partition))
                .take(surplus)
                .copied()
                .collect();
            owned.draining.extend(&give);
            self.say(Standing::Drain(give));
        }
        let wanted = share::wanted(&membership, owned.leases.len(), &mut self.rng);
        if !wanted.is_empty() {
            let claimed = self.store.claim(relay, &wanted).await?;
            for Claimed { lease, .. } in &claimed {
                owned.leases.insert(lease.partition, lease.epoch);
            }
            if !claimed.is_empty() {
                self.say(Standing::Claimed(claimed));
            }
        }
        Ok(())
    }

    /// Compares what the store says with what is believed.
    fn notice_changes(&self, membership: &Membership, owned: &mut Owned) {
        let mut lost = Vec::new();
        let mut found = Vec::new();
        for view in &membership.partitions {
            let partition = view.partition;
            let believed = owned.leases.get(&partition).copied();
            let truth = (view.owner == Owner::Mine).then_some(view.epoch);
            if believed == truth {
                continue;
            }
            if let Some(epoch) = believed {
                lost.push(Lease { partition, epoch });
                owned.leases.remove(&partition);
                owned.draining.retain(|draining| *draining != partition);
            }
            if let Some(epoch) = truth {
                // A claim or a release whose answer was lost. Whether the last owner died is lost with it.
                found.push(Claimed { lease: Lease { partition, epoch }, owner_died: true });
                owned.leases.insert(partition, epoch);
            }
        }
        if !lost.is_empty() {
            self.say(Standing::Lost(lost));
        }
        if !found.is_empty() {
            self.say(Standing::Claimed(found));
        }
    }
}
