//! A broker that does whatever brokers have been seen to do.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use outbox::{
    Finding, Publisher,
    publisher::{Message, PublishError, PublishErrorScope, Reporter, Stored},
};

use super::{
    checker::Checker,
    executor::{Process, Sim, WORLD},
};

/// The broker, shared by all processes.
pub(crate) struct Broker {
    pub sim: Sim,
    pub checker: Arc<Checker>,
    /// The probability of each fault, for one message.
    pub faults: Mutex<f64>,
    pub down: AtomicBool,
    pub topics_down: Mutex<BTreeSet<String>>,
    pub publish_max: usize,
}

/// One process's connection to the broker.
pub(crate) struct SimPublisher {
    pub broker: Arc<Broker>,
    pub process: Process,
    /// A planted bug: an unknown outcome is taken for success.
    pub unknown_is_success: bool,
}

/// A message on its way. Called back when its publish call is dropped, unless the whole process died: then it
/// travels on.
struct Wire {
    sim: Sim,
    process: Process,
    recalled: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.sim.is_dead(self.process) {
            self.recalled.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells the checker that a message is no longer in flight, however that came.
struct InFlight<'a> {
    checker: &'a Checker,
    process: Process,
    message: &'a Message,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.checker.publish_ended(self.process, &self.message.key);
    }
}

impl SimPublisher {
    async fn send(&self, message: &Arc<Message>) -> Result<(), PublishError> {
        let Broker { sim, checker, .. } = &*self.broker;
        checker.publish_began(self.process, message, self.broker.publish_max);
        let _in_flight = InFlight { checker, process: self.process, message };
        sim.sleep(sim.millis(0..15)).await;
        match message.event.event_type.as_str() {
            "permanent" => return Err(PublishError::permanent("Refused", "never")),
            "batch" => return Err(PublishError::permanent("TooLarge", "it").scope(PublishErrorScope::Batch)),
            "transient" => return Err(PublishError::transient("Busy", "always")),
            _ => {}
        }
        if self.broker.down.load(Ordering::Relaxed) {
            return Err(PublishError::unavailable("Down", "the broker is down").stored(Stored::No));
        }
        if self.broker.topics_down.lock().expect("topics").contains(&*message.topic) {
            return Err(PublishError::unavailable("NoTopic", "the topic is down")
                .scope(PublishErrorScope::Destination)
                .stored(Stored::No));
        }
        let faults = *self.broker.faults.lock().expect("faults");
        if sim.chance(faults) {
            return Err(PublishError::transient("Busy", "this once").stored(Stored::No));
        }
        if sim.chance(faults) {
            // Never answers, and was never sent.
            std::future::pending::<()>().await;
        }
        self.store(message, faults).await
    }

    /// The message goes over the wire; its acknowledgement may not come back.
    async fn store(&self, message: &Arc<Message>, faults: f64) -> Result<(), PublishError> {
        let sim = &self.broker.sim;
        let recalled = Arc::new(AtomicBool::new(false));
        let _wire = Wire { sim: sim.clone(), process: self.process, recalled: Arc::clone(&recalled) };
        let (stored, acknowledged) = tokio::sync::oneshot::channel();
        let (broker, process, message) = (Arc::clone(&self.broker), self.process, Arc::clone(message));
        let (twice, lost, hang) = (sim.chance(faults / 4.0), sim.chance(faults), sim.chance(faults / 2.0));
        sim.spawn(WORLD, async move {
            broker.sim.sleep(broker.sim.millis(1..20)).await;
            if recalled.load(Ordering::Relaxed) {
                return;
            }
            for _ in 0..=usize::from(twice) {
                broker.checker.delivered(broker.sim.now(), process, &message);
                broker.sim.note(|| format!("delivered {} {} by {process}", message.key, message.sequence));
            }
            broker.sim.sleep(broker.sim.millis(0..10)).await;
            let _ = stored.send(());
        });
        if hang {
            std::future::pending::<()>().await;
        }
        let answer = acknowledged.await;
        if lost || answer.is_err() {
            return Err(PublishError::transient("ConnectionLost", "no acknowledgement"));
        }
        Ok(())
    }
}

#[async_trait]
impl Publisher for SimPublisher {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        // Which of them is too large is not said: all fail.
        let spoilt = messages.len() > 1 && messages.iter().any(|message| message.event.event_type == "batch");
        let mut sends: FuturesUnordered<_> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| async move {
                if spoilt {
                    self.broker.sim.sleep(self.broker.sim.millis(1..5)).await;
                    let error =
                        PublishError::permanent("TooLarge", "the batch").scope(PublishErrorScope::Batch);
                    return (index, Err(error));
                }
                (index, self.send(message).await)
            })
            .collect();
        let mut reported = vec![false; messages.len()];
        let mut deadline = self.broker.sim.sleep(timeout.mul_f64(0.9));
        loop {
            tokio::select! {
                biased;
                next = sends.next() => match next {
                    Some((index, result)) => {
                        reported[index] = true;
                        let result = match result {
                            Err(error) if self.unknown_is_success && error.stored == Stored::Unknown => Ok(()),
                            result => result,
                        };
                        reporter.report(index, result);
                    }
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        if self.unknown_is_success {
            for (index, _) in reported.iter().enumerate().filter(|(_, reported)| !**reported) {
                reporter.report(index, Ok(()));
            }
        }
    }
}
