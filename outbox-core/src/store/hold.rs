//! Holds: what keeps one aggregate back, and the rules by which that changes.
//!
//! A back-off, a park, a pause and a requeue are one thing: a [`Hold`], the one row that an aggregate has
//! while it waits. The rules are functions from the hold before to the hold after, without a database, so
//! that a store that can read, change and write a hold in one transaction calls them. A store that keeps the
//! rules in SQL is compared with them by the conformance suite.

use std::time::Duration;

use super::{HoldReason, Outcome, Sequence, Settlement, Successors, Unhold};

/// The hold of one aggregate. `T` is a time as the store keeps it: only the store's own clock is compared
/// with it.
///
/// A pause lies over what is held: the event and the reason beneath it stay, and change by the same rules. A
/// paused hold has no time, since resuming it makes it due whatever it waited for before. So `until` is
/// `None` for a pause and for a park, and neither is ever due.
///
/// Each rule takes the hold before, if there is one, and returns the hold after, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold<T> {
    /// The event that is held: the first that is delivered when the hold is due. `None` for a plain pause.
    pub sequence: Option<Sequence>,
    /// When the hold is due; `None` is without end.
    pub until: Option<T>,
    /// Why the aggregate waits.
    pub reason: HoldReason,
    /// Since when an operator has paused the aggregate, if one has.
    pub paused_at: Option<T>,
}

impl<T: Copy + Ord> Hold<T> {
    /// A hold as it is stored.
    pub fn new(
        sequence: Option<Sequence>,
        until: Option<T>,
        reason: HoldReason,
        paused_at: Option<T>,
    ) -> Self {
        Self { sequence, until, reason, paused_at }
    }

    /// An operator has paused the aggregate.
    pub fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    /// The hold's time has come.
    pub fn is_due(&self, now: T) -> bool {
        !self.is_paused() && self.until.is_some_and(|until| until <= now)
    }

    /// What the outcome of an event makes of its aggregate's hold. `after` is the store's time so much later.
    pub fn settled(
        before: Option<Self>,
        settlement: &Settlement,
        now: T,
        after: impl FnOnce(T, Duration) -> T,
    ) -> Option<Self> {
        let sequence = settlement.sequence;
        match &settlement.outcome {
            Outcome::Sent | Outcome::Failed { successors: Successors::Release, .. } => {
                before.and_then(|hold| hold.ended(sequence))
            }
            Outcome::Failed { successors: Successors::Park, .. } => Some(Self::parked(before, sequence)),
            Outcome::Retry { after: wait, reason, .. } => {
                Some(Self::retried(before, sequence, after(now, *wait), *reason))
            }
        }
    }

    /// An event is to be tried again at a time.
    ///
    /// The hold of the same event takes the new time and reason. Of two events the lower sequence is held,
    /// and the later time counts; the reason goes with the time, since it says what the aggregate waits for.
    /// A pause stays a pause, without a time.
    pub fn retried(before: Option<Self>, sequence: Sequence, until: T, reason: HoldReason) -> Self {
        Self::put(before, sequence, Some(until), reason)
    }

    /// An event was given up, and its successors wait for an operator: as [`retried`](Self::retried) with a
    /// time without end.
    pub fn parked(before: Option<Self>, sequence: Sequence) -> Self {
        Self::put(before, sequence, None, HoldReason::Parked)
    }

    fn put(before: Option<Self>, sequence: Sequence, until: Option<T>, reason: HoldReason) -> Self {
        let Some(hold) = before else { return Self::new(Some(sequence), until, reason, None) };
        let is_own = hold.sequence.is_none_or(|held| held == sequence);
        let is_later = !hold.is_paused() && is_later(until, hold.until);
        let replaces = is_own || is_later;
        Self {
            sequence: Some(hold.sequence.map_or(sequence, |held| held.min(sequence))),
            until: if replaces && !hold.is_paused() { until } else { hold.until },
            reason: if replaces { reason } else { hold.reason },
            paused_at: hold.paused_at,
        }
    }

    /// An event has come to its end. A hold of that event is removed, or goes on as a plain pause; a hold of
    /// another one stays as it is.
    pub fn ended(self, sequence: Sequence) -> Option<Self> {
        if self.sequence != Some(sequence) {
            return Some(self);
        }
        self.paused_at.map(|at| Self::new(None, None, HoldReason::Paused, Some(at)))
    }

    /// An operator puts failed events of the aggregate back, which are `sequences`, one at least.
    ///
    /// The first of them is held with a time of now. A hold of one of them, or of none, waits for nothing
    /// else than this; a hold of another event keeps its own time and reason, with the lower sequence. A
    /// pause stays a pause.
    pub fn requeued(before: Option<Self>, sequences: &[Sequence], now: T) -> Option<Self> {
        let Some(first) = sequences.iter().copied().min() else { return before };
        let Some(hold) = before else {
            return Some(Self::new(Some(first), Some(now), HoldReason::Requeued, None));
        };
        let is_own = hold.sequence.is_none_or(|held| sequences.contains(&held));
        Some(Self {
            sequence: Some(hold.sequence.map_or(first, |held| held.min(first))),
            until: if is_own && !hold.is_paused() { Some(now) } else { hold.until },
            reason: if is_own { HoldReason::Requeued } else { hold.reason },
            paused_at: hold.paused_at,
        })
    }

    /// An operator gives an event up: a hold of it, which may be a park, becomes due, and its successors go
    /// on. A pause stays a pause.
    #[must_use]
    pub fn discarded(self, sequence: Sequence, now: T) -> Self {
        if self.sequence == Some(sequence) { self.made_due(now) } else { self }
    }

    /// An operator pauses the aggregate. The event and the reason beneath stay, the time does not.
    pub fn paused(before: Option<Self>, now: T) -> Self {
        let paused_at = Some(now);
        match before {
            Some(hold) => Self { until: None, paused_at, ..hold },
            None => Self::new(None, None, HoldReason::Paused, paused_at),
        }
    }

    /// An operator ends a pause or a park: the hold becomes due now.
    #[must_use]
    pub fn resumed(self, now: T) -> Self {
        Self { until: Some(now), paused_at: None, ..self }
    }

    /// An operator ends the pause of a topic: a hold for the sake of a topic becomes due now. A pause stays a
    /// pause.
    #[must_use]
    pub fn topic_resumed(self, now: T) -> Self {
        if self.reason == HoldReason::Topic { self.made_due(now) } else { self }
    }

    /// A relay found that the hold holds nothing. It is removed if it has not changed since it was read, is
    /// due, and the event that it names is not `pending`: still to be delivered, with its scheduled time
    /// come.
    pub fn unheld(self, unhold: &Unhold, now: T, pending: impl FnOnce(Sequence) -> bool) -> Option<Self> {
        let is_same = self.sequence == unhold.sequence && self.is_due(now);
        let removed = is_same && !self.sequence.is_some_and(pending);
        if removed { None } else { Some(self) }
    }

    fn made_due(self, now: T) -> Self {
        Self { until: if self.is_paused() { None } else { Some(now) }, ..self }
    }
}

/// Whether `left` is later than `right`, where `None` is without end.
fn is_later<T: Ord>(left: Option<T>, right: Option<T>) -> bool {
    match (left, right) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(left), Some(right)) => left > right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HoldReason::{Backoff, Parked, Paused, Requeued, Topic};

    const NOW: i64 = 100;

    /// `sequence until reason`, and whether it is paused.
    fn hold(sequence: Option<Sequence>, until: Option<i64>, reason: HoldReason, paused: bool) -> Hold<i64> {
        Hold::new(sequence, until, reason, paused.then_some(1))
    }

    /// Every state a hold can be in, as seen by an event 5 that comes to it.
    fn states() -> Vec<Option<Hold<i64>>> {
        let mut states = vec![None, Some(hold(None, None, Paused, true))];
        for sequence in [3, 5, 8] {
            for reason in [Backoff, Topic, Requeued] {
                for until in [NOW - 10, NOW, NOW + 10, NOW + 30] {
                    states.push(Some(hold(Some(sequence), Some(until), reason, false)));
                }
                states.push(Some(hold(Some(sequence), None, reason, true)));
            }
            states.push(Some(hold(Some(sequence), None, Parked, false)));
            states.push(Some(hold(Some(sequence), None, Parked, true)));
            // What a resume leaves of a park.
            states.push(Some(hold(Some(sequence), Some(NOW), Parked, false)));
        }
        // What a resume leaves of a plain pause.
        states.push(Some(hold(None, Some(NOW), Paused, false)));
        states
    }

    #[test]
    fn a_retry_or_a_park_holds_the_lower_event_for_the_longer_time() {
        for before in states() {
            for until in [Some(NOW + 20), None] {
                let reason = if until.is_some() { Backoff } else { Parked };
                let after = match until {
                    Some(until) => Hold::retried(before, 5, until, Backoff),
                    None => Hold::parked(before, 5),
                };
                let held = before.and_then(|hold| hold.sequence);
                assert_eq!(after.sequence, Some(held.map_or(5, |held| held.min(5))), "{before:?}");
                let expected = match before {
                    None => (until, reason),
                    Some(hold) if hold.is_paused() && held.is_none_or(|held| held == 5) => (None, reason),
                    Some(hold) if hold.is_paused() => (None, hold.reason),
                    Some(_) if held.is_none_or(|held| held == 5) => (until, reason),
                    Some(hold) if hold.until.is_some_and(|old| until.is_none_or(|new| new > old)) => {
                        (until, reason)
                    }
                    Some(hold) => (hold.until, hold.reason),
                };
                assert_eq!((after.until, after.reason), expected, "{before:?} and then {until:?}");
                assert_eq!(after.paused_at, before.and_then(|hold| hold.paused_at), "{before:?}");
            }
        }
    }

    #[test]
    fn the_end_of_an_event_ends_its_own_hold_and_no_pause() {
        for before in states().into_iter().flatten() {
            let after = before.ended(5);
            match (before.sequence, before.is_paused()) {
                (Some(5), false) => assert_eq!(after, None),
                (Some(5), true) => assert_eq!(after, Some(hold(None, None, Paused, true))),
                _ => assert_eq!(after, Some(before)),
            }
        }
    }

    #[test]
    fn a_requeue_makes_due_what_waited_for_it_and_leaves_the_others_their_time() {
        for before in states() {
            let after = Hold::requeued(before, &[5, 8], NOW).unwrap();
            let held = before.and_then(|hold| hold.sequence);
            assert_eq!(after.sequence, Some(held.map_or(5, |held| held.min(5))), "{before:?}");
            let expected = match before {
                Some(hold) if held == Some(3) => (hold.until, hold.reason),
                Some(hold) if hold.is_paused() => (None, Requeued),
                _ => (Some(NOW), Requeued),
            };
            assert_eq!((after.until, after.reason), expected, "{before:?}");
            assert_eq!(after.paused_at, before.and_then(|hold| hold.paused_at), "{before:?}");
            assert_eq!(Hold::requeued(before, &[], NOW), before);
        }
    }

    #[test]
    fn an_operator_s_word_makes_due_what_is_not_paused() {
        for before in states().into_iter().flatten() {
            let due = Hold { until: Some(NOW), ..before };
            let is_own = before.sequence == Some(5);
            let expected = if is_own && !before.is_paused() { due } else { before };
            assert_eq!(before.discarded(5, NOW), expected);
            let is_topic = before.reason == Topic;
            let expected = if is_topic && !before.is_paused() { due } else { before };
            assert_eq!(before.topic_resumed(NOW), expected);
            assert_eq!(before.resumed(NOW), Hold { paused_at: None, ..due });
        }
    }

    #[test]
    fn a_pause_keeps_the_event_and_has_no_time() {
        for before in states() {
            let paused = Hold::paused(before, NOW);
            assert_eq!((paused.until, paused.paused_at), (None, Some(NOW)));
            assert!(!paused.is_due(i64::MAX));
            assert_eq!(paused.sequence, before.and_then(|hold| hold.sequence));
            assert_eq!(paused.reason, before.map_or(Paused, |hold| hold.reason));
        }
    }

    #[test]
    fn only_a_due_hold_that_has_not_changed_and_holds_nothing_is_unheld() {
        let key = crate::AggregateKey::new("order", "1");
        for before in states().into_iter().flatten() {
            for sequence in [None, Some(3), Some(5)] {
                let unhold = Unhold { key: key.clone(), partition: 0, sequence };
                let due = !before.is_paused() && before.until.is_some_and(|until| until <= NOW);
                let removed = due && before.sequence == sequence;
                assert_eq!(before.unheld(&unhold, NOW, |_| false).is_none(), removed, "{before:?}");
                let removed = removed && sequence.is_none();
                assert_eq!(before.unheld(&unhold, NOW, |_| true).is_none(), removed, "{before:?}");
            }
        }
    }

    #[test]
    fn reasons_are_read_back_and_an_unknown_word_is_a_pause() {
        for reason in [Backoff, Topic, Parked, Requeued, Paused] {
            assert_eq!(HoldReason::of(reason.as_str()), reason);
        }
        assert_eq!(HoldReason::parse("other"), None);
        assert_eq!(HoldReason::of("other"), Paused);
    }
}
