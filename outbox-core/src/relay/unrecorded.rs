//! What the store refuses to record: [`Unrecorded`].

use std::{collections::BTreeMap, ops::Bound, time::Duration};

use crate::{
    AggregateKey,
    clock::Monotonic,
    store::{Partition, Settlement, Unhold},
};

/// How soon the store is asked again, and how rarely in the end. The reason lies in the database, such as a
/// trigger or a constraint, and goes when a person takes it away; each question may cost as many statements
/// as there are outcomes.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How many aggregates the store is asked about at once, so that others' outcomes need not wait for long.
const AGGREGATES_AT_ONCE: usize = 64;

/// What is not recorded of one aggregate.
#[derive(Debug, Default)]
struct Aside {
    partition: Partition,
    outcomes: Vec<Settlement>,
    unhold: Option<Unhold>,
    /// An attempt that is to be recorded before its event is published.
    attempt: bool,
}

impl Aside {
    fn is_empty(&self) -> bool {
        self.outcomes.is_empty() && self.unhold.is_none() && !self.attempt
    }
}

/// What is to be asked again.
#[derive(Debug, Default)]
pub(crate) struct Again {
    pub(crate) outcomes: Vec<Settlement>,
    pub(crate) unholds: Vec<Unhold>,
    /// Aggregates whose head may try again to have its attempt recorded.
    pub(crate) attempts: Vec<AggregateKey>,
}

/// Aggregates that are set aside, since the database refuses what became of their events, and would refuse it
/// again at once. Nothing more of them is published meanwhile: what a crash can repeat stays bounded.
#[derive(Debug, Default)]
pub(crate) struct Unrecorded {
    aggregates: BTreeMap<AggregateKey, Aside>,
    outcomes: usize,
    /// The last aggregate that was asked about: the next is the one behind it.
    asked: Option<AggregateKey>,
    retry_at: Monotonic,
    /// Questions in a row that recorded nothing.
    failures: u32,
    /// Something was recorded since the last question.
    progress: bool,
}

impl Unrecorded {
    /// How many outcomes are not recorded.
    pub(crate) fn count(&self) -> usize {
        self.outcomes
    }

    /// When to ask again; `None` if there is nothing.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        (!self.aggregates.is_empty()).then_some(self.retry_at)
    }

    /// The store refuses this outcome. True if the aggregate was not set aside before.
    pub(crate) fn refuse(&mut self, now: Monotonic, settlement: Settlement) -> bool {
        self.outcomes += 1;
        let (new, aside) = self.aside(now, &settlement.key, settlement.partition);
        aside.outcomes.push(settlement);
        new
    }

    /// The store refuses to end this hold.
    pub(crate) fn refuse_unhold(&mut self, now: Monotonic, unhold: Unhold) -> bool {
        let (new, aside) = self.aside(now, &unhold.key, unhold.partition);
        aside.unhold = Some(unhold);
        new
    }

    /// The store refuses to record an attempt of the aggregate's head.
    pub(crate) fn refuse_attempt(
        &mut self,
        now: Monotonic,
        key: &AggregateKey,
        partition: Partition,
    ) -> bool {
        let (new, aside) = self.aside(now, key, partition);
        aside.attempt = true;
        new
    }

    fn aside(&mut self, now: Monotonic, key: &AggregateKey, partition: Partition) -> (bool, &mut Aside) {
        if self.aggregates.is_empty() {
            self.failures = 0;
            self.retry_at = now + RETRY_DELAY.0;
        }
        let new = !self.aggregates.contains_key(key);
        let aside = self.aggregates.entry(key.clone()).or_default();
        aside.partition = partition;
        (new, aside)
    }

    /// What is to be asked again now. Its aggregate stays set aside until [`settled`](Self::settled) says
    /// what came of it, or it is refused again.
    pub(crate) fn due(&mut self, now: Monotonic) -> Option<Again> {
        if self.aggregates.is_empty() || now < self.retry_at {
            return None;
        }
        self.failures = if std::mem::take(&mut self.progress) { 0 } else { self.failures.saturating_add(1) };
        let doubled = RETRY_DELAY.0.saturating_mul(1 << self.failures.min(6));
        self.retry_at = now + doubled.min(RETRY_DELAY.1);
        let behind = self.asked.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys: Vec<AggregateKey> = self
            .aggregates
            .range((behind, Bound::Unbounded))
            .map(|(key, _)| key.clone())
            .take(AGGREGATES_AT_ONCE)
            .collect();
        let more = AGGREGATES_AT_ONCE.saturating_sub(keys.len()).min(self.aggregates.len() - keys.len());
        keys.extend(self.aggregates.keys().take(more).cloned());
        self.asked = keys.last().cloned();
        let mut again = Again::default();
        for key in keys {
            let Some(aside) = self.aggregates.get_mut(&key) else { continue };
            self.outcomes -= aside.outcomes.len();
            again.outcomes.append(&mut aside.outcomes);
            again.unholds.extend(aside.unhold.take());
            if std::mem::take(&mut aside.attempt) {
                again.attempts.push(key);
            }
        }
        Some(again)
    }

    /// Something of the aggregate was recorded. True if it was set aside and nothing of it is left.
    pub(crate) fn settled(&mut self, key: &AggregateKey) -> bool {
        let Some(aside) = self.aggregates.get(key) else { return false };
        self.progress = true;
        let done = aside.is_empty();
        if done {
            self.aggregates.remove(key);
        }
        done
    }

    /// These partitions are lost: what became of their events is for others to find out.
    pub(crate) fn lose(&mut self, gone: impl Fn(Partition) -> bool) {
        self.aggregates.retain(|_, aside| {
            let lost = gone(aside.partition);
            if lost {
                self.outcomes -= aside.outcomes.len();
            }
            !lost
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Outcome, Sequence};

    const SECOND: Duration = Duration::from_secs(1);

    fn settlement(id: &str, sequence: Sequence) -> Settlement {
        Settlement::new(sequence, 0, AggregateKey::new("order", id), 1, Outcome::Sent)
    }

    #[test]
    fn what_is_refused_is_asked_again_ever_more_rarely() {
        let mut aside = Unrecorded::default();
        assert!(aside.due(SECOND).is_none() && aside.next().is_none());
        assert!(aside.refuse(SECOND, settlement("1", 1)));
        assert!(!aside.refuse(SECOND, settlement("1", 2)), "the aggregate is aside already");
        let mut now = SECOND;
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(aside.due(now + wait * SECOND - Duration::from_millis(1)).is_none(), "{wait}");
            now += wait * SECOND;
            let again = aside.due(now).unwrap();
            assert_eq!((again.outcomes.len(), aside.count()), (2, 0));
            for settlement in again.outcomes {
                assert!(!aside.refuse(now, settlement), "it is told once");
            }
        }
        let again = aside.due(now + 60 * SECOND).unwrap();
        assert!(again.outcomes.iter().any(|settlement| aside.settled(&settlement.key)));
        assert!(aside.next().is_none());
    }

    #[test]
    fn every_aggregate_gets_its_turn() {
        let mut aside = Unrecorded::default();
        for number in 0..150 {
            aside.refuse(SECOND, settlement(&number.to_string(), number));
        }
        let (mut asked, mut now) = (std::collections::BTreeSet::new(), SECOND);
        for _ in 0..3 {
            now += 60 * SECOND;
            let again = aside.due(now).unwrap();
            assert!(again.outcomes.len() <= AGGREGATES_AT_ONCE);
            for settlement in again.outcomes {
                asked.insert(settlement.sequence);
                aside.refuse(now, settlement);
            }
        }
        assert_eq!((asked.len(), aside.count()), (150, 150));
        aside.lose(|partition| partition == 0);
        assert_eq!(aside.count(), 0);
    }
}
