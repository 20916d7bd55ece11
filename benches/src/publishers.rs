//! The publishers of the measurements: one that acknowledges at once, and one that notes when each event
//! arrived.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use outbox::{
    Finding, Publisher,
    publisher::{Message, Reporter},
};
use tokio::sync::mpsc;

/// Acknowledges at once: what is left is the store and the relay itself.
#[derive(Debug)]
pub struct Swallow;

#[async_trait]
impl Publisher for Swallow {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, _timeout: Duration, reporter: Reporter) {
        (0..messages.len()).for_each(|index| reporter.report(index, Ok(())));
    }
}

/// When each event was committed and when it was acknowledged, in nanoseconds of one clock; 0 is never.
///
/// The number of an event stands in the first 16 bytes of its payload, in hexadecimal digits.
#[derive(Debug)]
pub struct Times {
    origin: Instant,
    pub committed: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

impl Times {
    pub fn new(events_max: usize) -> Arc<Self> {
        let slots = || (0..events_max).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { origin: Instant::now(), committed: slots(), acknowledged: slots() })
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn acknowledge(&self, message: &Message) {
        let number = message.event.body().get(..16).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(number) = number.and_then(|digits| usize::from_str_radix(digits, 16).ok())
            && let Some(slot) = self.acknowledged.get(number)
        {
            // The first delivery counts.
            let _ = slot.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Events that are acknowledged, of those whose commit fell between the two times; with their latencies,
    /// ascending.
    pub fn latencies(&self, from: u64, to: u64) -> (usize, Vec<Duration>) {
        let mut missing = 0;
        let mut latencies = Vec::new();
        for (committed, acknowledged) in self.committed.iter().zip(&self.acknowledged) {
            let committed = committed.load(Ordering::Relaxed);
            if committed == 0 || !(from..to).contains(&committed) {
                continue;
            }
            match acknowledged.load(Ordering::Relaxed) {
                0 => missing += 1,
                // The relay may be faster than the answer to the writer's commit.
                at => latencies.push(Duration::from_nanos(at.saturating_sub(committed))),
            }
        }
        latencies.sort_unstable();
        (missing, latencies)
    }

    /// How many were acknowledged between the two times.
    pub fn acknowledged_between(&self, from: u64, to: u64) -> usize {
        self.acknowledged.iter().filter(|at| (from.max(1)..to).contains(&at.load(Ordering::Relaxed))).count()
    }
}

/// Passes everything on, and notes the time at which each acknowledgement arrived.
pub struct Timed {
    pub inner: Arc<dyn Publisher>,
    pub times: Arc<Times>,
}

#[async_trait]
impl Publisher for Timed {
    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        self.inner.check(topics).await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        let (tell, mut reports) = mpsc::unbounded_channel();
        let publish = self.inner.publish(messages.clone(), timeout, Reporter::new(0, tell));
        let pass_on = async {
            while let Some(report) = reports.recv().await {
                if report.result.is_ok() {
                    self.times.acknowledge(&messages[report.index as usize]);
                }
                reporter.report(report.index as usize, report.result);
            }
        };
        futures::join!(publish, pass_on);
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
