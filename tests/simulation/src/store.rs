//! The reference store behind a network that delays, fails and loses answers; with bugs planted on request.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use outbox::{
    EventFilter, Finding, OutboxAdmin, OutboxStore, StoreError, StoreErrorKind,
    memory::MemoryStore,
    store::{
        Claimed, Epoch, FetchRequest, Fetched, Lease, Membership, OutboxReader, Outcome, Owner, Partition,
        PurgeRequest, Purged, QuickStats, RelayId, Row, Sequence, SettleRequest, Settled, Status,
        StoreCapabilities, StoreStats, StoredEvent,
    },
};

use super::{
    checker::Checker,
    executor::{Process, Sim, WORLD},
};

/// A bug that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// A settle answers before it has committed, so successors are released too soon.
    EagerRelease,
    /// A settle does not look at the lease.
    UnfencedSettle,
    /// The reader never looks below what it has returned.
    BareCursor,
    /// A due hold puts its aggregate back into the scan, at the read position.
    DueHoldReadmitted,
    /// The publisher takes an unknown outcome for success.
    UnknownIsSuccess,
    /// A settle says it has committed, and has not.
    LostSettle,
    /// Retention looks at the status, and deletes later without looking again.
    PurgeOfRequeued,
    /// A relay does not say of which aggregates it has enough.
    FullNotNamed,
    /// The store calls a refusal an outage, so that it is asked the same for ever.
    RefusalCalledOutage,
}

/// What every process's connection shares: the database.
pub(crate) struct Database {
    pub sim: Sim,
    pub checker: Arc<Checker>,
    pub memory: MemoryStore,
    /// The probability of each fault, for one statement.
    pub faults: Mutex<f64>,
    pub down: Mutex<bool>,
    pub bug: Option<Bug>,
    /// Rows that a planted bug has deleted.
    pub vanished: Mutex<BTreeSet<Sequence>>,
    /// Rows that an eager settle believes to be settled.
    pub hidden: Mutex<BTreeSet<Sequence>>,
    pub relays: Mutex<BTreeSet<RelayId>>,
}

/// One process's connection to the database.
#[derive(Clone)]
pub(crate) struct SimStore {
    pub database: Arc<Database>,
    pub process: Process,
}

fn unavailable(what: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, format!("simulated: {what}"))
}

impl Database {
    fn fault(&self) -> bool {
        self.sim.chance(*self.faults.lock().expect("faults"))
    }

    fn is_down(&self) -> bool {
        *self.down.lock().expect("down")
    }

    /// The planted bug: the store says of what it refuses that it could not be reached.
    fn misname(&self, error: StoreError) -> StoreError {
        match error.kind() {
            StoreErrorKind::Unexpected if self.bug == Some(Bug::RefusalCalledOutage) => {
                unavailable("refused")
            }
            _ => error,
        }
    }

    fn record(&self, sequence: Sequence) -> Option<outbox::store::EventRecord> {
        let filter = EventFilter::default().after(sequence - 1);
        let listed = futures::executor::block_on(self.memory.list(&filter, 1)).ok()?;
        listed.into_iter().find(|record| record.sequence == sequence)
    }

    fn owner_of(&self, partition: Partition) -> Option<(RelayId, Epoch)> {
        let relays: Vec<RelayId> = self.relays.lock().expect("relays").iter().copied().collect();
        relays.into_iter().find_map(|relay| {
            let membership = futures::executor::block_on(self.memory.membership(relay)).ok()?;
            let view = membership.partitions.iter().find(|view| view.partition == partition)?;
            (view.owner == Owner::Mine).then_some((relay, view.epoch))
        })
    }

    /// Settles, and tells the checker what became of whom. The lease is looked at by the store, and here
    /// again.
    async fn settle(&self, process: Process, request: &SettleRequest) -> Result<Settled, StoreError> {
        let before: Vec<_> =
            request.settlements.iter().map(|settlement| self.record(settlement.sequence)).collect();
        // A claim of a partition raises its epoch; an owner that merely expired still has its lease.
        let views = self.memory.membership(request.relay).await?.partitions;
        let epochs: BTreeSet<Lease> =
            views.iter().map(|view| Lease { partition: view.partition, epoch: view.epoch }).collect();
        let stale: BTreeSet<Partition> = request
            .leases
            .iter()
            .filter(|lease| !epochs.contains(lease))
            .map(|lease| lease.partition)
            .collect();
        let settled = if self.bug == Some(Bug::UnfencedSettle) {
            self.settle_unfenced(request).await?
        } else {
            self.memory.settle(request).await.map_err(|error| self.misname(error))?
        };
        for (settlement, before) in request.settlements.iter().zip(before) {
            let after = self.record(settlement.sequence);
            let changed = before != after;
            if changed && stale.contains(&settlement.partition) {
                self.checker.stale_settle(process, settlement.sequence);
            }
            if changed {
                let status = match &settlement.outcome {
                    Outcome::Sent => Status::Sent,
                    Outcome::Failed { .. } => Status::Failed,
                    Outcome::Retry { .. } => Status::Pending,
                };
                self.checker.state(settlement.sequence, status);
            }
            self.sim
                .note(|| format!("settled {} as {:?}: {changed}", settlement.sequence, settlement.outcome));
        }
        Ok(settled)
    }

    async fn settle_unfenced(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        for lease in &request.leases {
            let mut part = request.clone();
            part.settlements.retain(|settlement| settlement.partition == lease.partition);
            part.unholds.retain(|unhold| unhold.partition == lease.partition);
            if let Some((relay, epoch)) = self.owner_of(lease.partition) {
                part.relay = relay;
                part.leases = vec![Lease { partition: lease.partition, epoch }];
            }
            self.memory.settle(&part).await?;
        }
        Ok(Settled::default())
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        if self.bug != Some(Bug::PurgeOfRequeued) {
            return self.memory.purge(request).await;
        }
        let failed = self.memory.list(&EventFilter::status(Status::Failed), request.rows_max).await?;
        self.sim.sleep(Duration::from_millis(300)).await;
        self.vanished.lock().expect("vanished").extend(failed.iter().map(|record| record.sequence));
        Ok(Purged::default().with_failed(failed.len() as u64))
    }
}

impl SimStore {
    /// Runs a statement on the server: it goes on there whatever becomes of the process that asked.
    async fn ask<T, F>(
        &self,
        what: &'static str,
        run: impl FnOnce(Arc<Database>) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let database = Arc::clone(&self.database);
        let sim = database.sim.clone();
        sim.clone().spawn(WORLD, async move {
            let slow = if database.fault() { 1500 } else { 6 };
            sim.sleep(sim.millis(0..slow)).await;
            if database.is_down() || database.fault() {
                let _ = reply.send(Err(unavailable(what)));
                return;
            }
            let result = run(Arc::clone(&database)).await;
            sim.sleep(sim.millis(0..6)).await;
            let lost = database.is_down() || database.fault();
            let _ = reply.send(if lost { Err(unavailable(what)) } else { result });
        });
        answer.await.unwrap_or_else(|_| Err(unavailable("the server is gone")))
    }
}

#[async_trait]
impl OutboxStore for SimStore {
    fn capabilities(&self) -> StoreCapabilities {
        self.database.memory.capabilities()
    }

    async fn check(&self) -> Result<Vec<Finding>, StoreError> {
        self.database.memory.check().await
    }

    async fn join(&self, ttl: Duration) -> Result<RelayId, StoreError> {
        self.ask("join", move |database| async move {
            let relay = database.memory.join(ttl).await?;
            database.relays.lock().expect("relays").insert(relay);
            Ok(relay)
        })
        .await
    }

    async fn beat(&self, relay: RelayId, ttl: Duration) -> Result<bool, StoreError> {
        self.ask("beat", move |database| async move { database.memory.beat(relay, ttl).await }).await
    }

    async fn membership(&self, relay: RelayId) -> Result<Membership, StoreError> {
        self.ask("membership", move |database| async move { database.memory.membership(relay).await }).await
    }

    async fn claim(&self, relay: RelayId, seen: &[(Partition, Epoch)]) -> Result<Vec<Claimed>, StoreError> {
        let seen = seen.to_vec();
        self.ask("claim", move |database| async move { database.memory.claim(relay, &seen).await }).await
    }

    async fn release(&self, relay: RelayId, leases: &[Lease]) -> Result<(), StoreError> {
        let leases = leases.to_vec();
        self.ask("release", move |database| async move { database.memory.release(relay, &leases).await })
            .await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.ask("leave", move |database| async move { database.memory.leave(relay).await }).await
    }

    async fn reader(&self, relay: RelayId) -> Result<Box<dyn OutboxReader>, StoreError> {
        let inner =
            self.ask("reader", move |database| async move { database.memory.reader(relay).await }).await?;
        Ok(Box::new(SimReader { store: self.clone(), inner, position: 0 }))
    }

    async fn begin_attempt(
        &self,
        relay: RelayId,
        lease: Lease,
        sequence: Sequence,
        attempts: u32,
    ) -> Result<bool, StoreError> {
        self.ask("begin_attempt", move |database| async move {
            let begun = database.memory.begin_attempt(relay, lease, sequence, attempts).await;
            begun.map_err(|error| database.misname(error))
        })
        .await
    }

    async fn settle(&self, request: &SettleRequest) -> Result<Settled, StoreError> {
        let (request, process) = (request.clone(), self.process);
        let owned = request.clone();
        let settled = match self.database.bug {
            Some(Bug::LostSettle) if self.database.sim.chance(0.1) => Settled::default(),
            Some(Bug::EagerRelease) => {
                let (store, request) = (self.clone(), request.clone());
                let sequences = request.settlements.iter().map(|settlement| settlement.sequence);
                self.database.hidden.lock().expect("hidden").extend(sequences);
                self.database.sim.spawn(WORLD, async move {
                    store.database.sim.sleep(store.database.sim.millis(0..400)).await;
                    let _ = store.database.settle(process, &request).await;
                    let mut hidden = store.database.hidden.lock().expect("hidden");
                    request.settlements.iter().for_each(|settlement| _ = hidden.remove(&settlement.sequence));
                });
                Settled::default()
            }
            _ => {
                self.ask("settle", move |database| async move { database.settle(process, &owned).await })
                    .await?
            }
        };
        for settlement in &request.settlements {
            let closes = !matches!(settlement.outcome, Outcome::Retry { .. });
            if closes && !settled.fenced.contains(&settlement.partition) {
                self.database.checker.closed(process, settlement.sequence);
            }
        }
        Ok(settled)
    }

    async fn purge(&self, request: PurgeRequest) -> Result<Purged, StoreError> {
        self.ask("purge", move |database| async move { database.purge(request).await }).await
    }

    async fn quick_stats(&self) -> Result<QuickStats, StoreError> {
        self.database.memory.quick_stats().await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.database.memory.stats().await
    }
}

struct SimReader {
    store: SimStore,
    inner: Box<dyn OutboxReader>,
    /// The highest sequence returned, for a bare cursor.
    position: Sequence,
}

#[async_trait]
impl OutboxReader for SimReader {
    async fn fetch(&mut self, mut request: FetchRequest) -> Result<Fetched, StoreError> {
        let database = Arc::clone(&self.store.database);
        let sim = &database.sim;
        if database.bug == Some(Bug::FullNotNamed) {
            request.full.clear();
        }
        sim.sleep(sim.millis(0..8)).await;
        if database.is_down() || database.fault() {
            return Err(unavailable("fetch"));
        }
        let mut fetched = self.inner.fetch(request).await?;
        sim.sleep(sim.millis(0..8)).await;
        if database.fault() {
            return Err(unavailable("fetch: answer lost"));
        }
        // A store may look for pauses after it has read its rows.
        let holds = database.memory.holds(u32::MAX).await?;
        fetched.paused.extend(holds.into_iter().filter(|hold| hold.paused).map(|hold| hold.key));
        let mut vanished = database.vanished.lock().expect("vanished").clone();
        vanished.extend(database.hidden.lock().expect("hidden").iter());
        fetched.rows.retain(|row| !vanished.contains(&row.sequence));
        for hold in &mut fetched.due_holds {
            hold.row.take_if(|row| vanished.contains(&row.sequence));
        }
        match database.bug {
            Some(Bug::BareCursor) => {
                let position = self.position;
                self.position = fetched.rows.iter().map(|row| row.sequence).fold(position, Sequence::max);
                fetched.rows.retain(|row| row.sequence > position);
            }
            Some(Bug::DueHoldReadmitted) => readmit(&database, &mut fetched).await?,
            _ => {}
        }
        Ok(fetched)
    }
}

/// The planted bug: what stands behind the held event is returned in its place.
async fn readmit(database: &Database, fetched: &mut Fetched) -> Result<(), StoreError> {
    for hold in std::mem::take(&mut fetched.due_holds) {
        let filter = EventFilter::aggregate(&hold.key).with_status(Status::Pending).after(hold.sequence);
        let behind = database.memory.list(&filter, 10).await?;
        if behind.is_empty() {
            fetched.due_holds.push(hold);
            continue;
        }
        fetched.rows.extend(behind.into_iter().map(|record| {
            Row::new(
                record.sequence,
                record.partition,
                record.key,
                Ok(StoredEvent::new(record.id.unwrap_or_default(), record.event_type, "", record.created_at)
                    .with_payload(record.payload)
                    .with_version(record.version)
                    .with_content_type(record.content_type)
                    .with_headers(record.headers)
                    .with_topic(record.topic)),
            )
            .with_attempts(record.attempts)
        }));
    }
    Ok(())
}
