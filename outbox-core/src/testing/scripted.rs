//! A broker that fails as told: [`ScriptedPublisher`].

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    Finding, Publisher,
    memory::MemoryPublisher,
    publisher::{Message, PublishError, PublisherCapabilities, Reporter, Stored},
};

/// A publisher around another one, such as a [`MemoryPublisher`] or the real broker's, that fails as told:
/// message by message, in the order in which the relay sends them. What it is told nothing about goes
/// through. Cheap to clone; all clones are the same publisher.
///
/// For the failures of one aggregate, [`MemoryPublisher::fail_next`] chooses by key.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use outbox_core::{Event, Relay, RelayConfig, memory::{MemoryPublisher, MemoryStore}, publisher::PublishError, relay::TokioClock};
/// use outbox_core::testing::ScriptedPublisher;
///
/// let broker = MemoryPublisher::new();
/// let publisher = ScriptedPublisher::around(broker.clone());
/// publisher.fail_next(PublishError::transient("Busy", "try again"), 1);
/// publisher.lose_answer_next(1);
///
/// let store = MemoryStore::new(Arc::new(TokioClock::default()));
/// let mut transaction = store.begin();
/// transaction.enqueue(&Event::builder("order", "4711", "order.placed").build()?)?;
/// transaction.commit();
/// let mut config = RelayConfig::default();
/// config.retry.delay_min = std::time::Duration::from_millis(1);
/// config.retry.delay_max = std::time::Duration::from_millis(1);
/// let relay = Relay::new(store, publisher, config)?;
/// let (handle, relay) = (relay.handle(), tokio::spawn(relay.run()));
///
/// // Refused once, stored without an answer once, and so it is there twice.
/// let attempts: Vec<_> = broker.delivered_at_least(2).await.iter().map(|message| message.attempt).collect();
/// assert_eq!(attempts, [2, 3]);
/// handle.shutdown();
/// relay.await?;
/// # Ok(()) }
/// ```
pub struct ScriptedPublisher<P = MemoryPublisher>(Arc<Shared<P>>);

struct Shared<P> {
    publisher: P,
    script: Mutex<VecDeque<(Fault, u32)>>,
    /// Messages that hang now.
    hanging: watch::Sender<usize>,
    /// Raised by each release.
    released: watch::Sender<u64>,
}

#[derive(Clone)]
enum Fault {
    Refuse(PublishError),
    LoseAnswer,
    Hang,
}

/// A message on its way to the publisher inside.
struct Passed {
    /// Its place in the relay's call.
    index: usize,
    message: Arc<Message>,
    answer_lost: bool,
}

impl ScriptedPublisher {
    /// A script around a [`MemoryPublisher`] of its own: see [`inner`](Self::inner).
    pub fn new() -> Self {
        Self::around(MemoryPublisher::new())
    }
}

impl Default for ScriptedPublisher {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> ScriptedPublisher<P> {
    /// A script around `publisher`, which gets what goes through.
    pub fn around(publisher: P) -> Self {
        Self(Arc::new(Shared {
            publisher,
            script: Mutex::default(),
            hanging: watch::Sender::new(0),
            released: watch::Sender::new(0),
        }))
    }

    /// The publisher inside.
    pub fn inner(&self) -> &P {
        &self.0.publisher
    }

    /// Refuses the next `times` messages with `error`: [`PublishError::transient`],
    /// [`permanent`](PublishError::permanent) or [`unavailable`](PublishError::unavailable). They do not
    /// reach the publisher inside. Behind what was told before.
    pub fn fail_next(&self, error: PublishError, times: u32) {
        self.tell(Fault::Refuse(error), times);
    }

    /// Lets the next `times` messages through and loses the broker's positive answer: the relay is told that
    /// the outcome is unknown, and sends them again.
    pub fn lose_answer_next(&self, times: u32) {
        self.tell(Fault::LoseAnswer, times);
    }

    /// Keeps the next `times` messages without an answer, until [`release`](Self::release) or until the
    /// relay's `publish_timeout` has passed, after which they never reach the publisher inside.
    pub fn hang_next(&self, times: u32) {
        self.tell(Fault::Hang, times);
    }

    /// Waits until at least `count` messages hang. Bound the wait with a timeout of your own.
    pub async fn hanging_at_least(&self, count: usize) {
        // It fails when the sender is gone, and that is in `self`.
        _ = self.0.hanging.subscribe().wait_for(|hanging| *hanging >= count).await;
    }

    /// Lets all messages through that hang now.
    pub fn release(&self) {
        self.0.released.send_modify(|releases| *releases += 1);
    }

    fn tell(&self, fault: Fault, times: u32) {
        self.script().push_back((fault, times));
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut script = self.script();
        while script.front()?.1 == 0 {
            script.pop_front();
        }
        let (fault, times_left) = script.front_mut()?;
        *times_left -= 1;
        Some(fault.clone())
    }

    fn script(&self) -> MutexGuard<'_, VecDeque<(Fault, u32)>> {
        self.0.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Publisher> ScriptedPublisher<P> {
    /// Gives messages to the publisher inside, and its outcomes to the relay, under the relay's numbers.
    async fn pass(&self, passed: Vec<Passed>, timeout: Duration, reporter: &Reporter) {
        if passed.is_empty() {
            return;
        }
        let (tell, mut told) = mpsc::unbounded_channel();
        let messages = passed.iter().map(|passed| Arc::clone(&passed.message)).collect();
        let publish = self.0.publisher.publish(messages, timeout, Reporter::new(0, tell));
        let forward = async {
            while let Some(report) = told.recv().await {
                let Some(Passed { index, answer_lost, .. }) = passed.get(report.index as usize) else {
                    continue;
                };
                let result = match report.result {
                    Ok(()) if *answer_lost => {
                        let lost = PublishError::transient("AnswerLost", "told to lose the broker's answer");
                        Err(lost.stored(Stored::Unknown))
                    }
                    result => result,
                };
                reporter.report(*index, result);
            }
        };
        futures::join!(publish, forward);
    }

    async fn hang(&self, held: Vec<Passed>, timeout: Duration, reporter: &Reporter) {
        if held.is_empty() {
            return;
        }
        let mut released = self.0.released.subscribe();
        {
            let _hanging = Hanging::new(&self.0.hanging, held.len());
            // It fails when the sender is gone, and that is in `self`.
            _ = released.changed().await;
        }
        self.pass(held, timeout, reporter).await;
    }
}

/// Counts messages as hanging for as long as it lives: the relay drops the call when its time has passed.
struct Hanging<'a> {
    hanging: &'a watch::Sender<usize>,
    count: usize,
}

impl<'a> Hanging<'a> {
    fn new(hanging: &'a watch::Sender<usize>, count: usize) -> Self {
        hanging.send_modify(|hanging| *hanging += count);
        Self { hanging, count }
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.hanging.send_modify(|hanging| *hanging -= self.count);
    }
}

impl<P> Clone for ScriptedPublisher<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: fmt::Debug> fmt::Debug for ScriptedPublisher<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedPublisher")
            .field("publisher", &self.0.publisher)
            .field("told", &self.script().len())
            .field("hanging", &*self.0.hanging.borrow())
            .finish()
    }
}

#[async_trait]
impl<P: Publisher> Publisher for ScriptedPublisher<P> {
    fn capabilities(&self) -> PublisherCapabilities {
        self.0.publisher.capabilities()
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        self.0.publisher.check(topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        let (mut passed, mut held) = (Vec::new(), Vec::new());
        for (index, message) in messages.into_iter().enumerate() {
            let mut on = Passed { index, message, answer_lost: false };
            match self.next_fault() {
                None => passed.push(on),
                Some(Fault::Refuse(error)) => reporter.report(index, Err(error)),
                Some(Fault::LoseAnswer) => {
                    on.answer_lost = true;
                    passed.push(on);
                }
                Some(Fault::Hang) => held.push(on),
            }
        }
        futures::join!(self.pass(passed, timeout, &reporter), self.hang(held, timeout, &reporter));
    }

    async fn close(&self) {
        self.0.publisher.close().await;
    }
}
