//! A broker or a topic that is unavailable: paused, then probed by a single message, then open again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{clock::Monotonic, retry::backoff};

/// The broker and the topics, as far as they do not take messages.
#[derive(Debug)]
pub(crate) struct Scopes {
    delay_min: Duration,
    delay_max: Duration,
    broker: Scope,
    /// The topics that were unavailable when they were last tried.
    topics: HashMap<Arc<str>, Scope>,
    /// The topics that an operator has paused.
    paused: HashSet<String>,
}

/// Whether a message may go to its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It may.
    Open,
    /// An operator has paused the topic.
    Paused,
    /// The topic is unavailable, after so many failures, and is not tried before that time.
    Shut(u32, Monotonic),
}

impl Scopes {
    /// All is open. What is unavailable is tried again after delays between these bounds.
    pub(crate) fn new((delay_min, delay_max): (Duration, Duration)) -> Self {
        let (broker, topics, paused) = (Scope::default(), HashMap::new(), HashSet::new());
        Self { delay_min, delay_max, broker, topics, paused }
    }

    /// How many messages the broker may be given, `in_flight` being out.
    pub(crate) fn room(&self, now: Monotonic, in_flight: usize) -> usize {
        self.broker.room(now, in_flight)
    }

    /// Nothing is sent before this.
    pub(crate) fn shut_until(&self) -> Monotonic {
        self.broker.until
    }

    pub(crate) fn broker_failed(&mut self, now: Monotonic, random: f64) {
        self.broker.failed(now, self.delay_min, self.delay_max, random);
    }

    /// The topic is unavailable, as the broker says: how long it is not tried.
    pub(crate) fn topic_failed(
        &mut self,
        now: Monotonic,
        topic: Arc<str>,
        error: String,
        random: f64,
    ) -> Duration {
        let scope = self.topics.entry(topic).or_default();
        scope.error = error;
        scope.failed(now, self.delay_min, self.delay_max, random);
        scope.until.saturating_sub(now).max(self.delay_min)
    }

    /// The broker took a message.
    pub(crate) fn broker_succeeded(&mut self) {
        self.broker.succeeded();
    }

    /// The broker took a message that went to this topic. True if the topic was unavailable.
    pub(crate) fn topic_succeeded(&mut self, topic: &str) -> bool {
        !self.topics.is_empty() && self.topics.remove(topic).is_some()
    }

    /// The topic was unavailable when it was last tried.
    pub(crate) fn is_shut(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// What the broker said last of a topic that is unavailable.
    pub(crate) fn topic_error(&self, topic: &str) -> &str {
        self.topics.get(topic).map_or("", |scope| &scope.error)
    }

    /// Whether a message may go to the topic now. If the topic was unavailable, the message is its probe.
    pub(crate) fn pass(&mut self, now: Monotonic, topic: &str) -> Passage {
        if self.paused.contains(topic) {
            return Passage::Paused;
        }
        let Some(scope) = self.topics.get_mut(topic) else { return Passage::Open };
        if scope.room(now, usize::from(scope.probing)) == 0 {
            return Passage::Shut(scope.failures, scope.until);
        }
        scope.probing = scope.failures > 0;
        Passage::Open
    }

    /// How long an event is held whose topic was [`Shut`](Passage::Shut).
    pub(crate) fn delay(&self, now: Monotonic, failures: u32, until: Monotonic, random: f64) -> Duration {
        let delay = backoff(self.delay_min, self.delay_max, failures, random);
        delay.max(self.delay_min).max(until.saturating_sub(now))
    }

    /// If the message was its topic's probe, another may follow.
    pub(crate) fn probe_ended(&mut self, topic: &str) {
        if let Some(scope) = self.topics.get_mut(topic) {
            scope.probing = false;
        }
    }

    /// These are the topics that are paused, and no others.
    pub(crate) fn pause(&mut self, topics: Vec<String>) {
        self.paused = topics.into_iter().collect();
    }
}

#[derive(Debug, Default)]
struct Scope {
    /// Failures since the last success.
    failures: u32,
    /// Nothing is sent before this.
    until: Monotonic,
    /// A probe is out.
    probing: bool,
    /// What the broker said last.
    error: String,
}

impl Scope {
    /// How many messages may be sent now, `in_flight` being out: any number when all is well, none during a
    /// pause, one at a time after it.
    fn room(&self, now: Monotonic, in_flight: usize) -> usize {
        match self.failures {
            0 => usize::MAX,
            _ if now < self.until => 0,
            _ => 1_usize.saturating_sub(in_flight),
        }
    }

    /// Something within the scope was unavailable. The many messages that were out at the time count as one
    /// failure.
    fn failed(&mut self, now: Monotonic, min: Duration, max: Duration, random: f64) {
        self.probing = false;
        if now < self.until {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.until = now + backoff(min, max, self.failures, random).max(min);
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_pauses_probes_and_opens() {
        let ms = Duration::from_millis;
        let mut scope = Scope::default();
        assert_eq!(scope.room(ms(0), 10), usize::MAX);
        scope.failed(ms(0), ms(100), ms(400), 1.0);
        scope.failed(ms(1), ms(100), ms(400), 1.0);
        assert_eq!(scope.failures, 1, "messages that were out together fail together");
        assert_eq!((scope.room(ms(99), 0), scope.room(ms(100), 0), scope.room(ms(100), 1)), (0, 1, 0));
        for _ in 0..5 {
            scope.failed(scope.until, ms(100), ms(400), 1.0);
        }
        assert_eq!(scope.failures, 6);
        scope.succeeded();
        assert_eq!(scope.room(ms(0), 1000), usize::MAX);
    }
}
