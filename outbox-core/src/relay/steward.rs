//! The relay's place among the others: joins, beats, claims its fair share, gives up what is too much.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use super::{
    RelayConfig, StoreWork,
    happening::{Happening, Standing},
    share,
};
use crate::{
    OutboxStore, StoreError, StoreErrorKind,
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

    async fn trouble(&mut self, work: StoreWork, failures: u32, error: StoreError) {
        self.say(Standing::Trouble(work, error));
        self.clock.sleep(pause(&self.config, failures, self.rng.f64())).await;
    }

    async fn join(&mut self) -> (RelayId, Monotonic) {
        let mut failures = 0;
        loop {
            let asked_at = self.clock.now();
            match self.store.join(self.config.lease_ttl).await {
                Ok(relay) => return (relay, asked_at + self.config.lease_ttl),
                Err(error) => {
                    failures += 1;
                    self.trouble(StoreWork::Lease, failures, error).await;
                }
            }
        }
    }

    /// Serves until the relay is buried.
    async fn serve(&mut self, relay: RelayId) {
        let (bury, buried) = oneshot::channel();
        let beats = Beats {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            config: self.config.clone(),
            rng: self.rng.fork(),
            tell: self.tell.clone(),
        };
        // A task of its own: whatever else the store is asked and does not answer, the lease is renewed.
        let _beats = self.clock.spawn(Box::pin(beats.run(relay, bury)));
        tokio::select! {
            biased;
            _ = buried => {}
            () = self.look(relay) => {}
        }
    }

    /// Looks around again and again.
    async fn look(&mut self, relay: RelayId) {
        let mut owned = Owned::default();
        let mut failures = 0;
        // The engine is told that the store answers once after joining, and after each trouble.
        let mut told = false;
        loop {
            let look_at = self.clock.now() + self.config.membership_interval;
            match self.look_around(relay, &mut owned).await {
                Ok(()) => {
                    failures = 0;
                    if !std::mem::replace(&mut told, true) {
                        self.say(Standing::Looked);
                    }
                }
                Err(error) => {
                    failures += 1;
                    told = false;
                    self.trouble(StoreWork::Membership, failures, error).await;
                    continue;
                }
            }
            let pause = look_at.saturating_sub(self.clock.now());
            self.wait(relay, &mut owned, pause).await;
        }
    }

    /// What the store answers, if that is within the time between two beats: what it takes longer for, such
    /// as a claim of what a dead relay's transaction has locked, is asked again. If it was done all the same,
    /// the next look around shows it.
    async fn soon<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        within(&*self.clock, self.config.beat_interval, what, answer).await
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
            let released = self.soon("release partitions", self.store.release(relay, &leases)).await;
            if let Err(error) = released {
                self.say(Standing::Trouble(StoreWork::Membership, error));
            }
            for lease in leases {
                owned.leases.remove(&lease.partition);
                owned.draining.retain(|partition| *partition != lease.partition);
            }
        }
    }

    async fn look_around(&mut self, relay: RelayId, owned: &mut Owned) -> Result<(), StoreError> {
        let membership = self.soon("read the membership", self.store.membership(relay)).await?;
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
            let claimed = self.soon("claim partitions", self.store.claim(relay, &wanted)).await?;
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

/// Keeps a relay alive, and depends on nothing else that it does.
struct Beats {
    store: Arc<dyn OutboxStore>,
    clock: Arc<dyn Clock>,
    config: RelayConfig,
    rng: fastrand::Rng,
    tell: mpsc::UnboundedSender<Happening>,
}

impl Beats {
    /// Beats until the relay is buried, and says so.
    async fn run(mut self, relay: RelayId, bury: oneshot::Sender<()>) {
        let (interval, ttl) = (self.config.beat_interval, self.config.lease_ttl);
        let mut failures = 0;
        let mut wait = interval;
        loop {
            self.clock.sleep(wait).await;
            let asked_at = self.clock.now();
            let beat = within(&*self.clock, interval, "renew the lease", self.store.beat(relay, ttl)).await;
            let standing = match beat {
                Ok(true) => {
                    failures = 0;
                    wait = (asked_at + interval).saturating_sub(self.clock.now());
                    Standing::Renewed(asked_at + ttl)
                }
                Ok(false) => {
                    // The receiver is gone only when the relay ends.
                    let _ = bury.send(());
                    return;
                }
                Err(error) => {
                    failures += 1;
                    wait = pause(&self.config, failures, self.rng.f64());
                    Standing::Trouble(StoreWork::Lease, error)
                }
            };
            let _ = self.tell.send(Happening::Standing(standing));
        }
    }
}

/// How long to wait after so many failures. A relay that waits longer than a beat loses its lease although
/// the store is back.
fn pause(config: &RelayConfig, failures: u32, random: f64) -> Duration {
    let (min, max) = config.unavailable_delay;
    let max = max.min(config.beat_interval).max(min);
    backoff(min, max, failures, random).max(min)
}

/// The answer, or an error where there is none in time.
async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = clock.sleep(limit);
    tokio::select! {
        biased;
        answer = answer => answer,
        () = late => {
            let text = format!("cannot {what}: the store did not answer within {limit:?}");
            Err(StoreError::new(StoreErrorKind::Unavailable, text))
        }
    }
}
