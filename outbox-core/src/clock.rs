//! The seam between the engine and time: [`Clock`]. The simulation puts its own behind it.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;

/// Monotonic time since an origin that only this clock knows. Never compared with a store's clock.
pub type Monotonic = Duration;

/// Time and tasks, as the engine needs them. Nothing in the engine asks the operating system or the runtime
/// directly.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Monotonic;

    /// Completes once `duration` has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs a task beside the others. Dropping the returned handle ends it.
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task;

    /// Runs a task to its end although the one who asks is about to go, as well as that can be done: called
    /// from destructors, where the runtime may be gone. Does nothing by default, as when a process is killed.
    fn detach(&self, task: BoxFuture<'static, ()>) {
        drop(task);
    }
}

/// A running task: a future that completes when the task has ended, and ends the task when it is dropped.
pub struct Task(BoxFuture<'static, ()>);

impl Task {
    /// A handle on a task that ends when `handle` is dropped.
    pub fn new(handle: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(handle))
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.0.as_mut().poll(context)
    }
}

/// Tokio's time and tasks.
#[derive(Debug, Clone)]
pub struct TokioClock {
    origin: Instant,
}

impl Default for TokioClock {
    #[expect(clippy::disallowed_methods, reason = "the real clock behind the seam")]
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

#[expect(clippy::disallowed_methods, reason = "the real time and the real tasks behind the seam")]
impl Clock for TokioClock {
    fn now(&self) -> Monotonic {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Task {
        let mut handle = AbortOnDrop(tokio::spawn(task));
        Task::new(async move {
            if let Err(error) = (&mut handle.0).await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }

    fn detach(&self, task: BoxFuture<'static, ()>) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
