//! A running relay seen from outside: [`RelayHandle`] and [`RelayStatus`].

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::RelayId;

/// Where a relay is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Phase {
    /// Not yet running.
    #[default]
    Starting,
    /// Relaying, or waiting for a store or a broker.
    Running,
    /// Finishing what is in flight.
    Draining,
    /// Ended.
    Stopped,
}

/// What a relay has done and is doing. Counts are since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its id in the store, while it is alive there.
    pub relay: Option<RelayId>,
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
    /// Leases that a settle found lost.
    pub fenced: u64,
    /// Times that its row expired before it was renewed.
    pub buried: u64,
    /// Reads of the table.
    pub fetches: u64,
    /// Reads that found nothing while nothing was in memory. When this rises, everything that was visible and due at the time of
    /// the read has been dealt with or is held.
    pub idle_reads: u64,
    /// Errors of the store, each waited out.
    pub store_errors: u64,
    /// The last of them.
    pub last_store_error: Option<String>,
    /// What the broker said last of a message that it did not acknowledge.
    pub last_publish_error: Option<String>,
    /// The broker took the last message, or nothing has been sent.
    pub broker_available: bool,
}

/// A handle on a relay: cheap to clone, usable from any task.
#[derive(Debug, Clone)]
pub struct RelayHandle {
    wake: Arc<Notify>,
    stop: Arc<watch::Sender<bool>>,
    status: watch::Receiver<RelayStatus>,
}

impl RelayHandle {
    /// Tells the relay that there may be something new. Call it after a commit: it costs nothing, and saves the
    /// rest of a poll interval.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks the relay to finish what is in flight, give its partitions back and end. `Relay::run` returns then.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// The status now.
    pub fn status(&self) -> RelayStatus {
        self.status.borrow().clone()
    }

    /// Waits until the status is as wanted, and returns it; or the last status once the relay has ended.
    pub async fn wait_for(&mut self, wanted: impl FnMut(&RelayStatus) -> bool) -> RelayStatus {
        let wanted = self.status.wait_for(wanted).await.map(|status| status.clone());
        wanted.unwrap_or_else(|_| self.status())
    }

    /// Waits until a read that began after this call finds nothing left to do: everything that was committed before is sent, failed or held.
    pub async fn caught_up(&mut self) -> RelayStatus {
        // A read that is running now may have begun before the caller's commit, so the one after it counts.
        let from = self.status().idle_reads;
        self.wake();
        let first = self.wait_for(|status| status.idle_reads > from).await.idle_reads;
        self.wake();
        self.wait_for(|status| status.idle_reads > first).await
    }
}

/// The relay's end of its handle.
#[derive(Debug)]
pub(crate) struct Signals {
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
    status: watch::Sender<RelayStatus>,
}

impl Signals {
    pub(crate) fn pair() -> (Self, RelayHandle) {
        let wake = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let (status, seen) = watch::channel(RelayStatus::default());
        let handle = RelayHandle { wake: Arc::clone(&wake), stop: Arc::new(stop), status: seen };
        (Self { wake, stop: stopped, status }, handle)
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            // Every handle is gone: nobody can ask any more, and the relay goes on.
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
