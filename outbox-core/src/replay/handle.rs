//! A running replay seen from outside: [`ReplayHandle`].

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::ReplayProgress;
use crate::relay::Phase;

/// A handle on a replay: cheap to clone, usable from any task.
#[derive(Debug, Clone)]
pub struct ReplayHandle {
    stop: Arc<watch::Sender<bool>>,
    progress: watch::Receiver<ReplayProgress>,
}

/// The replay has ended, or was dropped, so that what was waited for does not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayEnded {
    progress: Box<ReplayProgress>,
}

impl ReplayEnded {
    /// How far it was.
    pub fn progress(&self) -> &ReplayProgress {
        &self.progress
    }
}

impl fmt::Display for ReplayEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.progress.phase {
            Phase::Dropped => {
                "the replay was dropped before it had ended; keep the future of Replay::run alive"
            }
            _ => "the replay has ended",
        })
    }
}

impl std::error::Error for ReplayEnded {}

impl ReplayHandle {
    /// Asks the replay to wait for what is in flight, for at most the publish time-out, and end.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// How far it is.
    pub fn progress(&self) -> ReplayProgress {
        self.progress.borrow().clone()
    }

    /// Waits until the progress is as wanted, and returns it. Cancel safe.
    ///
    /// # Errors
    /// The replay has ended, or was dropped, and its last progress is not as wanted.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&ReplayProgress) -> bool,
    ) -> Result<ReplayProgress, ReplayEnded> {
        let seen = self.progress.wait_for(|progress| wanted(progress) || progress.phase.is_over()).await;
        let progress =
            seen.map(|progress| progress.clone()).unwrap_or_else(|_| self.progress.borrow().clone());
        if wanted(&progress) { Ok(progress) } else { Err(ReplayEnded { progress: Box::new(progress) }) }
    }
}

/// The replay's end of its handle. When it is dropped, the handle tells that the replay is gone.
#[derive(Debug)]
pub(super) struct Signals {
    stop: watch::Receiver<bool>,
    progress: watch::Sender<ReplayProgress>,
}

impl Signals {
    pub(super) fn pair() -> (Self, ReplayHandle) {
        let (stop, stopped) = watch::channel(false);
        let (progress, seen) = watch::channel(ReplayProgress::default());
        (Self { stop: stopped, progress }, ReplayHandle { stop: Arc::new(stop), progress: seen })
    }

    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            // Every handle is gone: no caller can ask any more, and the replay goes on.
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn publish(&self, progress: &ReplayProgress) {
        self.progress.send_if_modified(|seen| {
            let changed = seen != progress;
            if changed {
                seen.clone_from(progress);
            }
            changed
        });
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.progress.send_if_modified(|progress| {
            let dropped = !progress.phase.is_over();
            if dropped {
                progress.phase = Phase::Dropped;
            }
            dropped
        });
    }
}
