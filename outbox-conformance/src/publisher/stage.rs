//! What every clause stands on: the harness, messages, and short ways to publish and look.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chrono::DateTime;
use outbox_core::{
    AggregateKey, Publisher,
    publisher::{Message, PublishErrorKind, PublishErrorScope},
    store::{Sequence, StoredEvent},
};
use uuid::Uuid;

use crate::{
    Outage, PublisherHarness, StoredMessage,
    publisher::call::{Call, Outcome},
    violation::{Verdict, Violation, same_sequences},
};

/// What a call may take while nothing is wrong, beyond what the publisher itself allows for.
const HEALTHY_MAX: Duration = Duration::from_secs(30);

/// What a call may take during an outage if the publisher declares no delivery timeout.
const OUTAGE_MAX_DEFAULT: Duration = Duration::from_secs(2);

/// How long a publisher may take to find its broker again.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// The pause before a message is published once more, or a destination is looked at once more.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a destination is looked at to see that nothing more comes.
const LOOKS_QUIET: u32 = 3;

/// How often a message that was not to blame is published again.
const ROUNDS_MAX: u32 = 5;

pub(crate) struct Stage<'a> {
    pub(crate) harness: &'a dyn PublisherHarness,
    pub(crate) publisher: Arc<dyn Publisher>,
    /// Why the clause was not asked, if so.
    pub(crate) not_asked: OnceLock<String>,
    /// The sequence of each message, by the id of its event.
    made: Mutex<BTreeMap<String, Sequence>>,
    calls: AtomicU64,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(harness: &'a dyn PublisherHarness) -> Self {
        Self {
            harness,
            publisher: harness.publisher(),
            not_asked: OnceLock::new(),
            made: Mutex::default(),
            calls: AtomicU64::new(0),
        }
    }

    /// Notes why the clause was not asked, for the table.
    pub(crate) fn not_asked(&self, why: &str) {
        self.not_asked.get_or_init(|| why.to_owned());
    }

    /// What takes the broker away, or nothing, after noting that the clause is not asked.
    pub(crate) fn outage(&self) -> Option<&'a dyn Outage> {
        let outage = self.harness.outage();
        if outage.is_none() {
            self.not_asked("the harness cannot take the broker away");
        }
        outage
    }

    /// A message of its own aggregate.
    pub(crate) fn message(&self, destination: &str) -> Message {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = Sequence::try_from(made.len()).unwrap_or(Sequence::MAX) + 1;
        let id = Uuid::now_v7();
        made.insert(id.to_string(), sequence);
        Message::new(
            Arc::from(destination),
            AggregateKey::new("order", &format!("a{sequence}")),
            sequence,
            Arc::from("/conformance"),
            StoredEvent::new(
                id,
                "order.placed".to_owned(),
                Bytes::from(format!("{{\"sequence\":{sequence}}}")),
                DateTime::from_timestamp_micros(1_790_000_000_000_001).unwrap_or_default(),
            ),
        )
    }

    /// Messages of as many aggregates.
    pub(crate) fn messages(&self, destination: &str, count: usize) -> Vec<Arc<Message>> {
        (0..count).map(|_| Arc::new(self.message(destination))).collect()
    }

    /// The sequence of a stored message; 0 if it is not one of this clause's.
    pub(crate) fn sequence_of(&self, stored: &StoredMessage) -> Sequence {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(stored.id()).copied().unwrap_or(0)
    }

    /// The time that a call gets while nothing is wrong.
    pub(crate) fn healthy_timeout(&self) -> Duration {
        HEALTHY_MAX + self.delivery_timeout().unwrap_or_default() * 2
    }

    /// The time that a call gets during an outage: more than the publisher declares that it needs.
    pub(crate) fn outage_timeout(&self) -> Duration {
        self.delivery_timeout().map_or(OUTAGE_MAX_DEFAULT, |time| time * 2 + Duration::from_secs(1))
    }

    pub(crate) fn delivery_timeout(&self) -> Option<Duration> {
        self.publisher.capabilities().delivery_timeout
    }

    pub(crate) fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// One call that ends with its timeout, as a relay's does.
    pub(crate) async fn call(&self, messages: &[Arc<Message>], timeout: Duration) -> Call {
        Call::make(&*self.publisher, self.next_call(), messages, timeout, timeout).await
    }

    /// One call that is dropped early.
    pub(crate) async fn drop_call(&self, messages: &[Arc<Message>], patience: Duration) -> Call {
        Call::make(&*self.publisher, self.next_call(), messages, self.healthy_timeout(), patience).await
    }

    /// The outcome of each message of a call while nothing is wrong.
    pub(crate) async fn outcomes(&self, what: &str, messages: &[Arc<Message>]) -> Verdict<Vec<Outcome>> {
        self.call(messages, self.healthy_timeout()).await.outcomes(what)
    }

    /// Publishes messages that must all succeed.
    pub(crate) async fn publish(&self, what: &str, messages: &[Arc<Message>]) -> Verdict {
        let outcomes = self.outcomes(what, messages).await?;
        for (message, outcome) in messages.iter().zip(outcomes) {
            if let Err(error) = outcome {
                let expected = format!("{what}: message {} to be taken", message.sequence);
                return Err(Violation::new(expected, format!("{:?} {:?}, {error}", error.kind, error.scope)));
            }
        }
        Ok(())
    }

    /// Publishes messages as a relay does: what failed together with others is sent again, alone where the
    /// error demands it. The last outcome of each; those in `innocent` must not be failed for good, and
    /// succeed in the end.
    pub(crate) async fn relay(
        &self,
        what: &str,
        messages: &[Arc<Message>],
        innocent: impl Fn(&Message) -> bool,
    ) -> Verdict<Vec<Outcome>> {
        let mut outcomes = self.outcomes(what, messages).await?;
        for (message, outcome) in messages.iter().zip(&mut outcomes) {
            let mut alone = false;
            for _ in 0..ROUNDS_MAX {
                let Err(error) = &*outcome else { break };
                let of_others = error.scope == PublishErrorScope::Batch && !alone;
                let for_good = error.kind == PublishErrorKind::Permanent && !of_others;
                if for_good || !(of_others || innocent(message)) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
                let again = self.outcomes(&format!("{what}, alone"), std::slice::from_ref(message)).await?;
                *outcome = again.into_iter().next().unwrap_or(Ok(()));
                alone = true;
            }
            if let (true, Err(error)) = (innocent(message), &*outcome) {
                let expected = format!("{what}: message {}, which is sound, to be taken", message.sequence);
                return Err(Violation::new(expected, format!("{:?} {:?}, {error}", error.kind, error.scope)));
            }
        }
        Ok(outcomes)
    }

    /// Publishes until each message has succeeded once: what is done before an outage, and after it.
    pub(crate) async fn publish_at_last(&self, what: &str, messages: &[Arc<Message>]) -> Verdict {
        let mut last = String::new();
        let publishing = async {
            let mut left = messages.to_vec();
            while !left.is_empty() {
                let call = self.call(&left, self.outage_timeout()).await;
                let mut reports = call.reports.into_iter();
                left.retain(|_| match reports.next().and_then(|reports| reports.into_iter().next()) {
                    Some(Ok(())) => false,
                    Some(Err(error)) => {
                        last = error.to_string();
                        true
                    }
                    None => true,
                });
                if !left.is_empty() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        if tokio::time::timeout(RECOVERY_MAX, publishing).await.is_ok() {
            return Ok(());
        }
        let expected = format!("{what}: success within {RECOVERY_MAX:?}, by the same publisher");
        Err(Violation::new(expected, format!("none; the last error: {last:?}")))
    }

    /// A destination that the publisher has already reached.
    pub(crate) async fn reached_destination(&self) -> Verdict<String> {
        let destination = self.harness.destination().await;
        self.publish_at_last("before the outage", &self.messages(&destination, 1)).await?;
        Ok(destination)
    }

    pub(crate) async fn stored(&self, destination: &str) -> Vec<StoredMessage> {
        self.harness.stored(destination).await
    }

    /// Holds if exactly these messages are at the destination, each once, in any order. Returned as they were
    /// given.
    pub(crate) async fn expect_stored(
        &self,
        what: &str,
        destination: &str,
        messages: &[Arc<Message>],
    ) -> Verdict<Vec<StoredMessage>> {
        let mut stored = self.stored(destination).await;
        let expected: Vec<_> = messages.iter().map(|message| message.sequence).collect();
        let found: Vec<_> = stored.iter().map(|stored| self.sequence_of(stored)).collect();
        same_sequences(what, &expected, &found)?;
        stored.sort_by_key(|stored| {
            let sequence = self.sequence_of(stored);
            expected.iter().position(|expected| *expected == sequence)
        });
        Ok(stored)
    }

    /// Publishes one message that must succeed, and returns what was stored of it.
    pub(crate) async fn store_one(&self, what: &str, message: Message) -> Verdict<StoredMessage> {
        let destination = message.topic.to_string();
        let before = self.stored(&destination).await.len();
        let messages = [Arc::new(message)];
        self.publish(what, &messages).await?;
        let mut stored = self.stored(&destination).await.split_off(before);
        match stored.pop() {
            Some(last) if stored.is_empty() && self.sequence_of(&last) == messages[0].sequence => Ok(last),
            last => {
                stored.extend(last);
                let expected = format!("{what}: message {}, once", messages[0].sequence);
                Err(Violation::new(expected, crate::violation::short(&stored)))
            }
        }
    }

    /// Holds if none of these messages is at the destination, now and a little later, once others pass.
    pub(crate) async fn expect_never_stored(
        &self,
        what: &str,
        destination: &str,
        messages: &[Arc<Message>],
    ) -> Verdict {
        self.publish_at_last("after the outage", &self.messages(destination, 1)).await?;
        for _ in 0..LOOKS_QUIET {
            let stored: Vec<_> =
                self.stored(destination).await.iter().map(|stored| self.sequence_of(stored)).collect();
            let found: Vec<_> =
                messages.iter().map(|message| message.sequence).filter(|id| stored.contains(id)).collect();
            same_sequences(what, &[], &found)?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
