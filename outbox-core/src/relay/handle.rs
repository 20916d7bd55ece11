//! A running relay seen from outside: [`RelayHandle`] and [`RelayStatus`].

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

use crate::{
    clock::{Clock, Monotonic},
    store::RelayId,
};

/// Where a relay or a replay is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Not yet running.
    #[default]
    Starting,
    /// At work, or waiting for a store or a broker.
    Running,
    /// Finishing what is in flight.
    Draining,
    /// It has ended as it should.
    Stopped,
    /// It, or the future of its run, was dropped before it had ended: by a `select!`, an abort or a panic.
    Dropped,
}

impl Phase {
    /// True of [`Stopped`](Self::Stopped) and [`Dropped`](Self::Dropped): nothing happens any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Dropped)
    }
}

/// Whether a relay can use its store or its broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Availability {
    /// It has not answered yet.
    #[default]
    Unknown,
    /// The last that was asked of it was done.
    Available,
    /// It is waited for.
    #[non_exhaustive]
    Unavailable {
        /// Since when, by the relay's clock ([`Clock::now`]).
        since: Monotonic,
    },
}

impl Availability {
    /// True if it is waited for. Not yet known is neither this nor available.
    pub fn is_unavailable(self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// What a relay has done and is doing. Counts are since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its id in the store, while it is alive there.
    pub relay: Option<RelayId>,
    /// Until when its leases hold unless they are renewed, by the relay's clock ([`Clock::now`]).
    pub lease_until: Option<Monotonic>,
    /// It has looked at the partitions and their owners under this id.
    pub membership_seen: bool,
    /// Partitions it owns.
    pub partitions: usize,
    /// Events in memory, in flight or unsettled included.
    pub buffered: usize,
    /// Events that are with the publisher.
    pub in_flight: usize,
    /// Messages that the broker acknowledged.
    pub published: u64,
    /// Messages that the broker did not acknowledge.
    pub refused: u64,
    /// Events recorded as sent.
    pub sent: u64,
    /// Events recorded to be tried again.
    pub retried: u64,
    /// Events recorded as failed.
    pub failed: u64,
    /// Outcomes that the database refuses to record: the aggregates wait, and a restart repeats what was
    /// published. See [`Change::Unrecorded`](crate::relay::Change::Unrecorded).
    pub unrecorded: usize,
    /// Leases that a settle found lost.
    pub fenced: u64,
    /// Times that its row expired before it was renewed.
    pub buried: u64,
    /// Reads of the table.
    pub fetches: u64,
    /// Reads that found nothing while nothing was in memory. When this rises, everything that was visible and
    /// due at the time of the read has been dealt with or is held.
    pub idle_reads: u64,
    /// Errors of the store, each waited out.
    pub store_errors: u64,
    /// The last of them, with its causes.
    pub last_store_error: Option<String>,
    /// What the broker said last of a message that it did not acknowledge.
    pub last_publish_error: Option<String>,
    /// Whether the store does what it is asked.
    pub store: Availability,
    /// Whether the broker takes messages. Not known before the first of them.
    pub broker: Availability,
}

/// The relay has ended, or was dropped, so that what was waited for does not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayEnded {
    status: Box<RelayStatus>,
}

impl RelayEnded {
    fn new(status: &RelayStatus) -> Self {
        Self { status: Box::new(status.clone()) }
    }

    /// The last status.
    pub fn status(&self) -> &RelayStatus {
        &self.status
    }
}

impl fmt::Display for RelayEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.status.phase {
            Phase::Dropped => {
                "the relay was dropped before it had ended; keep the future of Relay::run alive"
            }
            _ => "the relay has ended",
        })
    }
}

impl std::error::Error for RelayEnded {}

/// Why a relay cannot relay now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// Its run has not begun.
    #[error("the relay is not running yet")]
    Starting,
    /// It has not yet joined the others, or not yet seen which partitions there are.
    #[error("the relay has not joined yet: the store has not answered")]
    Joining,
    /// The store does not do what it is asked.
    #[error("the store has been unavailable for {lasting:?}: {error}")]
    #[non_exhaustive]
    Store {
        /// How long.
        lasting: Duration,
        /// What the store said last, with its causes.
        error: String,
    },
    /// The store did not renew the leases in time, and has not said why.
    #[error("the relay's leases have expired: the store has not answered for longer than lease_ttl")]
    LeaseExpired,
    /// It was asked to end, and finishes what is in flight.
    #[error("the relay is ending")]
    Draining,
    /// It has ended, or was dropped.
    #[error(transparent)]
    Ended(#[from] RelayEnded),
}

/// A handle on a relay: cheap to clone, usable from any task.
#[derive(Clone)]
pub struct RelayHandle {
    wake: Arc<Notify>,
    stop: Arc<watch::Sender<bool>>,
    status: watch::Receiver<RelayStatus>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayHandle").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl RelayHandle {
    /// Tells the relay that there may be something new. Call it after a commit: it costs nothing, and saves
    /// the rest of a poll interval.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks the relay to finish what is in flight, give its partitions back and end. `Relay::run` returns
    /// then. It needs the store and the broker for that: close them afterwards.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// The status now.
    pub fn status(&self) -> RelayStatus {
        self.status.borrow().clone()
    }

    /// Whether the relay can relay now: it runs, has joined, the store answers, and it has seen which
    /// partitions there are. That others own all of them does not matter, and neither does a broker that is
    /// away, which is waited for: [`RelayStatus::broker`] tells.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn ready(&self) -> Result<(), NotReady> {
        let status = self.status.borrow();
        let now = self.clock.now();
        match status.phase {
            Phase::Starting => return Err(NotReady::Starting),
            Phase::Draining => return Err(NotReady::Draining),
            Phase::Stopped | Phase::Dropped => return Err(RelayEnded::new(&status).into()),
            Phase::Running => {}
        }
        if let Availability::Unavailable { since } = status.store {
            let error = status.last_store_error.clone().unwrap_or_default();
            return Err(NotReady::Store { lasting: now.saturating_sub(since), error });
        }
        match status.lease_until {
            None => Err(NotReady::Joining),
            Some(until) if until < now => Err(NotReady::LeaseExpired),
            Some(_) if status.membership_seen => Ok(()),
            Some(_) => Err(NotReady::Joining),
        }
    }

    /// Waits until the status is as wanted, and returns it. Cancel safe.
    ///
    /// # Errors
    /// The relay has ended, or was dropped, and its last status is not as wanted.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&RelayStatus) -> bool,
    ) -> Result<RelayStatus, RelayEnded> {
        // The relay may be gone before its last status is seen, or its status be over before the relay is
        // gone.
        let seen = self.status.wait_for(|status| wanted(status) || status.phase.is_over()).await;
        let status = seen.map(|status| status.clone()).unwrap_or_else(|_| self.status.borrow().clone());
        if wanted(&status) { Ok(status) } else { Err(RelayEnded::new(&status)) }
    }

    /// Waits until everything that was committed before this call, in the partitions that this relay owns, is
    /// sent, failed or held: until two reads one after the other have found nothing left to do. Where other
    /// relays own partitions, ask each of them. A relay that owns no partition, or whose store or broker is
    /// away, does not catch up meanwhile: bound the wait with a timeout of your own. Cancel safe.
    ///
    /// # Errors
    /// The relay has ended, or was dropped.
    pub async fn caught_up(&mut self) -> Result<RelayStatus, RelayEnded> {
        // A read that is running now may have begun before the caller's commit, so the one after it counts.
        let from = self.status().idle_reads;
        self.wake();
        let first = self.wait_for(|status| status.idle_reads > from).await?.idle_reads;
        self.wake();
        self.wait_for(|status| status.idle_reads > first).await
    }
}

/// The relay's end of its handle. When it is dropped, the handle tells that the relay is gone.
#[derive(Debug)]
pub(crate) struct Signals {
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
    status: watch::Sender<RelayStatus>,
}

impl Signals {
    pub(crate) fn pair(clock: Arc<dyn Clock>) -> (Self, RelayHandle) {
        let wake = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let (status, seen) = watch::channel(RelayStatus::default());
        let handle = RelayHandle { wake: Arc::clone(&wake), stop: Arc::new(stop), status: seen, clock };
        (Self { wake, stop: stopped, status }, handle)
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            // Every handle is gone: no caller can ask any more, and the relay goes on.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn publish(&self, status: &RelayStatus) {
        self.status.send_if_modified(|seen| {
            let changed = seen != status;
            if changed {
                seen.clone_from(status);
            }
            changed
        });
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.status.send_if_modified(|status| {
            let dropped = !status.phase.is_over();
            if dropped {
                status.phase = Phase::Dropped;
                (status.relay, status.lease_until, status.membership_seen) = (None, None, false);
                (status.partitions, status.buffered, status.in_flight) = (0, 0, 0);
            }
            dropped
        });
    }
}
