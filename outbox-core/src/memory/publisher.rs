//! [`MemoryPublisher`]: a broker in memory.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::{
    AggregateKey, Finding, Publisher,
    publisher::{Message, PublishError, Reporter},
};

/// A publisher that keeps what it is given, in order. Cheap to clone; all clones are the same publisher.
#[derive(Clone, Default)]
pub struct MemoryPublisher(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    delivery: Notify,
}

#[derive(Default)]
struct State {
    delivered: Vec<Arc<Message>>,
    failures: Vec<Failure>,
}

struct Failure {
    matches: Box<dyn Fn(&Message) -> bool + Send>,
    error: PublishError,
    times_left: u32,
}

impl MemoryPublisher {
    /// A publisher that has nothing and takes everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was acknowledged, in the order in which it arrived, duplicates included.
    pub fn delivered(&self) -> Vec<Arc<Message>> {
        self.lock().delivered.clone()
    }

    /// Waits until at least `count` messages have been acknowledged, and returns all of them. Bound the wait
    /// with a timeout of your own.
    pub async fn delivered_at_least(&self, count: usize) -> Vec<Arc<Message>> {
        loop {
            let delivery = self.0.delivery.notified();
            let delivered = self.delivered();
            if delivered.len() >= count {
                return delivered;
            }
            delivery.await;
        }
    }

    /// Refuses the next `times` messages of an aggregate with `error`.
    pub fn fail_next(&self, key: &AggregateKey, error: PublishError, times: u32) {
        let key = key.clone();
        self.fail_next_where(move |message| message.key == key, error, times);
    }

    /// Refuses the next `times` messages for which `matches` is true with `error`. Of several that match, the
    /// one that was added first counts.
    pub fn fail_next_where(
        &self,
        matches: impl Fn(&Message) -> bool + Send + 'static,
        error: PublishError,
        times: u32,
    ) {
        self.lock().failures.push(Failure { matches: Box::new(matches), error, times_left: times });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemoryPublisher")
            .field("delivered", &state.delivered.len())
            .field("failures", &state.failures.len())
            .finish()
    }
}

impl State {
    fn take(&mut self, message: &Arc<Message>) -> Result<(), PublishError> {
        let failure =
            self.failures.iter_mut().find(|failure| failure.times_left > 0 && (failure.matches)(message));
        if let Some(failure) = failure {
            failure.times_left -= 1;
            return Err(failure.error.clone());
        }
        self.delivered.push(Arc::clone(message));
        Ok(())
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, _timeout: Duration, reporter: Reporter) {
        for (index, message) in messages.iter().enumerate() {
            let result = self.lock().take(message);
            reporter.report(index, result);
        }
        self.0.delivery.notify_waiters();
    }
}
