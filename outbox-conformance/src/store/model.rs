//! One aggregate as the rules of [`Hold`] have it, what can be done to it, and every step that those rules
//! allow.

use std::{collections::BTreeMap, fmt, sync::LazyLock, time::Duration};

use outbox_core::store::{Hold, HoldReason, Outcome, Sequence, Settlement, Status, Successors, Unhold};

use crate::store::{
    relay::failed,
    stage::{HOUR, SHORT, key},
};

/// Time since the clause began. It moves when the clause lets time pass and at no other time, so that every
/// decision of the model is the same with every store; delays are so far apart that what a server's clock
/// moves besides decides nothing.
pub(crate) type Time = Duration;

/// When a clause begins: late enough that a hold can have become due before.
pub(crate) const START: Time = HOUR;

/// How many events an aggregate always has that are not sent: a held one can have one below and one above it.
pub(crate) const EVENTS: usize = 3;

/// What a retry waits for. The long ones differ by more than the whole clause takes.
const DELAYS: [Duration; 5] = [Duration::ZERO, SHORT, HOUR, HOUR.saturating_mul(2), HOUR.saturating_mul(3)];

/// Two times that are nearer to each other than this could be in either order by a server's clock.
const APART: Duration = Duration::from_secs(30 * 60);

/// An aggregate with its events and its hold.
#[derive(Debug, Clone)]
pub(crate) struct Aggregate {
    pub(crate) events: BTreeMap<Sequence, Status>,
    pub(crate) hold: Option<Hold<Time>>,
}

/// What a settle says of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Became {
    Sent,
    Released,
    Parked,
    Retried(HoldReason, Duration),
}

/// What is done to one aggregate, in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Settles events, at most one result for each, and then removes the hold if it names this event.
    Settle(Vec<(Sequence, Became)>, Option<Option<Sequence>>),
    /// Requeues the failed ones of these events.
    Requeue(Vec<Sequence>),
    /// Requeues the failed events of the aggregate.
    RequeueAll,
    Discard(Sequence),
    Pause,
    Resume,
    ResumeTopic,
    /// Lets more than the short delay pass.
    Wait,
}

/// A hold as the event of a deed sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    reason: &'static str,
    phase: &'static str,
    held: &'static str,
}

/// One deed with the hold before and after it. This is what is counted: two states and the way between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    deed: &'static str,
    before: State,
    after: State,
}

impl Aggregate {
    pub(crate) fn new(sequences: &[Sequence]) -> Self {
        Self { events: sequences.iter().map(|sequence| (*sequence, Status::Pending)).collect(), hold: None }
    }

    /// How many events it lacks.
    pub(crate) fn missing(&self) -> usize {
        EVENTS.saturating_sub(self.events.len())
    }

    /// Forgets what is sent: nothing happens to it any more.
    pub(crate) fn forget_sent(&mut self) {
        self.events.retain(|_, status| *status != Status::Sent);
    }

    /// Whether the hold's time may have come or not, by how fast a server is: only time may pass then.
    pub(crate) fn is_between(&self, now: Time) -> bool {
        let until = self.hold.and_then(|hold| hold.until);
        until.is_some_and(|until| until > now && until <= now + SHORT)
    }

    /// All that can be done to it by one call and one event.
    pub(crate) fn deeds(&self, now: Time) -> Vec<Deed> {
        if self.is_between(now) {
            return vec![Deed::Wait];
        }
        let mut deeds = vec![Deed::Pause, Deed::Resume, Deed::ResumeTopic, Deed::RequeueAll];
        for (sequence, status) in &self.events {
            let results = self.results(now, *status).into_iter();
            deeds.extend(results.map(|result| Deed::Settle(vec![(*sequence, result)], None)));
            deeds.push(Deed::Discard(*sequence));
            deeds.push(Deed::Settle(Vec::new(), Some(Some(*sequence))));
        }
        deeds.push(Deed::Settle(Vec::new(), Some(None)));
        let failed: Vec<_> = self.of_status(Status::Failed).collect();
        for chosen in 1..1_usize << failed.len() {
            let chosen = failed.iter().enumerate().filter(|(bit, _)| chosen & (1 << bit) != 0);
            deeds.push(Deed::Requeue(chosen.map(|(_, sequence)| *sequence).collect()));
        }
        deeds
    }

    /// What a settle can say of an event of this status, with delays that leave no doubt.
    pub(crate) fn results(&self, now: Time, status: Status) -> Vec<Became> {
        let mut results = vec![Became::Sent, Became::Released, Became::Parked];
        // What is not pending is left alone, whatever is said of it: one delay is enough.
        let delays = if status == Status::Pending { &DELAYS[..] } else { &DELAYS[4..] };
        let until = self.hold.and_then(|hold| hold.until).filter(|until| *until > now);
        for delay in delays {
            if until.is_none_or(|until| until.abs_diff(now + *delay) > APART) {
                let reasons = [HoldReason::Backoff, HoldReason::Topic];
                results.extend(reasons.map(|reason| Became::Retried(reason, *delay)));
            }
        }
        results
    }

    pub(crate) fn of_status(&self, status: Status) -> impl Iterator<Item = Sequence> {
        let events = self.events.iter().filter(move |(_, actual)| **actual == status);
        events.map(|(sequence, _)| *sequence)
    }

    /// Does it, and returns the step that it was. The count is of the events that it changes, as an operator
    /// is told.
    pub(crate) fn apply(&mut self, deed: &Deed, now: Time) -> (Step, u64) {
        let before = self.hold;
        let event = self.event_of(deed);
        let name = self.name_of(deed);
        let count = self.change(deed, now);
        let step = Step {
            deed: name,
            before: State::of(before, event, now),
            after: State::of(self.hold, event, if *deed == Deed::Wait { now + SHORT * 2 } else { now }),
        };
        (step, count)
    }

    fn change(&mut self, deed: &Deed, now: Time) -> u64 {
        match deed {
            Deed::Settle(results, unhold) => {
                results.iter().for_each(|(sequence, result)| self.settle(*sequence, *result, now));
                if let (Some(sequence), Some(hold)) = (unhold, self.hold) {
                    let unhold = Unhold::new(key(""), 0, *sequence);
                    let is_pending = |held| self.events.get(&held) == Some(&Status::Pending);
                    self.hold = hold.unheld(&unhold, now, is_pending);
                }
                0
            }
            Deed::Requeue(sequences) => self.requeue(sequences, now),
            Deed::RequeueAll => self.requeue(&self.events.keys().copied().collect::<Vec<_>>(), now),
            Deed::Discard(sequence) => self.discard(*sequence, now),
            Deed::Pause => {
                self.hold = Some(Hold::paused(self.hold, now));
                0
            }
            Deed::Resume => {
                self.hold = self.hold.map(|hold| hold.resumed(now));
                0
            }
            Deed::ResumeTopic => {
                self.hold = self.hold.map(|hold| hold.topic_resumed(now));
                0
            }
            Deed::Wait => 0,
        }
    }

    fn settle(&mut self, sequence: Sequence, result: Became, now: Time) {
        let Some(status) = self.events.get_mut(&sequence).filter(|status| **status == Status::Pending) else {
            return;
        };
        match result {
            Became::Sent => *status = Status::Sent,
            Became::Released | Became::Parked => *status = Status::Failed,
            Became::Retried(..) => {}
        }
        let (key, outcome) = (key(""), result.outcome());
        let settlement = Settlement::new(sequence, 0, key, 1, outcome);
        self.hold = Hold::settled(self.hold, &settlement, now, |now, delay| now + delay);
    }

    fn requeue(&mut self, sequences: &[Sequence], now: Time) -> u64 {
        let failed: Vec<_> =
            self.of_status(Status::Failed).filter(|sequence| sequences.contains(sequence)).collect();
        self.events.extend(failed.iter().map(|sequence| (*sequence, Status::Pending)));
        self.hold = Hold::requeued(self.hold, &failed, now);
        failed.len() as u64
    }

    fn discard(&mut self, sequence: Sequence, now: Time) -> u64 {
        let is_held = self.hold.is_some_and(|hold| hold.sequence == Some(sequence));
        match self.events.get_mut(&sequence) {
            Some(status) if *status == Status::Failed || (*status == Status::Pending && is_held) => {
                *status = Status::Failed;
                self.hold = self.hold.map(|hold| hold.discarded(sequence, now));
                1
            }
            _ => 0,
        }
    }

    /// The event that a deed is about. Of several that are requeued it is the held one, or else the first.
    fn event_of(&self, deed: &Deed) -> Option<Sequence> {
        let held = self.hold.and_then(|hold| hold.sequence);
        match deed {
            Deed::Settle(results, unhold) => {
                results.first().map(|(sequence, _)| *sequence).or_else(|| (*unhold)?)
            }
            Deed::Requeue(sequences) => {
                held.filter(|held| sequences.contains(held)).or_else(|| sequences.iter().min().copied())
            }
            Deed::RequeueAll => {
                let mut failed = self.of_status(Status::Failed);
                held.filter(|held| self.events.get(held) == Some(&Status::Failed)).or_else(|| failed.next())
            }
            Deed::Discard(sequence) => Some(*sequence),
            Deed::Pause | Deed::Resume | Deed::ResumeTopic | Deed::Wait => None,
        }
    }

    fn name_of(&self, deed: &Deed) -> &'static str {
        let is_pending = |sequence| self.events.get(sequence) == Some(&Status::Pending);
        match deed {
            Deed::Settle(results, _) => match results.first() {
                None => "unhold",
                Some((sequence, _)) if !is_pending(sequence) => "settle what is not pending",
                Some((_, Became::Sent)) => "sent",
                Some((_, Became::Released)) => "failed with release",
                Some((_, Became::Parked)) => "failed with park",
                Some((_, Became::Retried(HoldReason::Topic, _))) => "retry for a topic",
                Some((_, Became::Retried(..))) => "retry after a back-off",
            },
            Deed::Requeue(_) => "requeue by ids",
            Deed::RequeueAll => "requeue by aggregate",
            Deed::Discard(_) => "discard",
            Deed::Pause => "pause",
            Deed::Resume => "resume",
            Deed::ResumeTopic => "resume a topic",
            Deed::Wait => "time",
        }
    }
}

impl Became {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Sent => Outcome::Sent,
            Self::Released => failed(Successors::Release),
            Self::Parked => failed(Successors::Park),
            Self::Retried(reason, after) => {
                Outcome::Retry { after, error: "refused for now".to_owned(), reason }
            }
        }
    }
}

impl State {
    fn of(hold: Option<Hold<Time>>, event: Option<Sequence>, now: Time) -> Self {
        let Some(hold) = hold else { return Self { reason: "none", phase: "", held: "" } };
        let phase = match hold {
            _ if hold.is_paused() => "paused",
            _ if hold.is_due(now) => "due",
            _ => "waiting",
        };
        let held = match (hold.sequence, event) {
            (None, _) => "no event",
            (Some(_), None) => "an event",
            (Some(held), Some(event)) if held == event => "this event",
            (Some(held), Some(event)) if held < event => "a lower event",
            _ => "a higher event",
        };
        Self { reason: hold.reason.as_str(), phase, held }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            "none" => f.write_str("no hold"),
            reason => write!(f, "{reason}, {}, of {}", self.phase, self.held),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {} ({})", self.before, self.deed, self.after)
    }
}

/// Every state of an aggregate, and every step from it: found by doing all that can be done to all that comes
/// of it.
pub(crate) struct Chart {
    places: BTreeMap<Place, usize>,
    /// For each place and each of its [`Aggregate::deeds`] the number of the step and the place that it leads
    /// to.
    ways: Vec<Vec<(usize, usize)>>,
    steps: BTreeMap<Step, usize>,
}

/// It is the same for every store.
pub(crate) static CHART: LazyLock<Chart> = LazyLock::new(Chart::new);

/// A state without what decides nothing: which numbers the events have, and how long ago a hold became due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    failed: Vec<bool>,
    /// The held event's place among the events, how long it waits, why, and whether it is paused.
    hold: Option<(Option<usize>, Option<Duration>, &'static str, bool)>,
}

impl Chart {
    fn new() -> Self {
        const NOW: Time = START;
        let mut chart = Self { places: BTreeMap::new(), ways: Vec::new(), steps: BTreeMap::new() };
        let mut found = vec![Aggregate::new(&[1, 2, 3])];
        chart.places.insert(found[0].place(NOW), 0);
        while let Some(aggregate) = found.get(chart.ways.len()).cloned() {
            let mut ways = Vec::new();
            for deed in aggregate.deeds(NOW) {
                let mut next = aggregate.clone();
                let step = next.apply(&deed, NOW).0;
                let next = next.renumbered(NOW, if deed == Deed::Wait { SHORT } else { Duration::ZERO });
                let number = *chart.places.entry(next.place(NOW)).or_insert(found.len());
                if number == found.len() {
                    found.push(next);
                }
                let steps = chart.steps.len();
                ways.push((*chart.steps.entry(step).or_insert(steps), number));
            }
            chart.ways.push(ways);
        }
        chart
    }

    /// Every step that the rules allow, with its number.
    pub(crate) fn steps(&self) -> &BTreeMap<Step, usize> {
        &self.steps
    }

    /// How many deeds it is from each place to the nearest step that is ahead.
    pub(crate) fn distances(&self, ahead: &[bool]) -> Vec<usize> {
        let mut distances: Vec<usize> = self.ways.iter().map(|_| usize::MAX).collect();
        for far in 1.. {
            let before = distances.clone();
            for (place, ways) in
                self.ways.iter().enumerate().filter(|(place, _)| before[*place] == usize::MAX)
            {
                let is_near = |(step, next): &(usize, usize)| ahead[*step] || before[*next] < far;
                if ways.iter().any(is_near) {
                    distances[place] = far;
                }
            }
            if distances == before {
                break;
            }
        }
        distances
    }

    /// The steps that the deeds of a place are, and the places that they lead to.
    pub(crate) fn ways(&self, place: usize) -> &[(usize, usize)] {
        &self.ways[place]
    }

    /// Where an aggregate is.
    pub(crate) fn find(&self, aggregate: &Aggregate, now: Time) -> Option<usize> {
        self.places.get(&aggregate.clone().renumbered(now, Duration::ZERO).place(now)).copied()
    }
}

impl Aggregate {
    /// The same with the events 1 to [`EVENTS`], and due if it became so while this time passed.
    fn renumbered(mut self, now: Time, passed: Duration) -> Self {
        self.forget_sent();
        let names: Vec<Sequence> = self.events.keys().copied().collect();
        let numbers: BTreeMap<_, _> = names.into_iter().zip(1..).collect();
        let mut events: BTreeMap<_, _> = (1..).take(EVENTS).map(|number| (number, Status::Pending)).collect();
        events.extend(self.events.iter().map(|(sequence, status)| (numbers[sequence], *status)));
        let hold = self.hold.map(|hold| {
            let sequence = hold.sequence.and_then(|sequence| numbers.get(&sequence).copied());
            let until = hold.until.map(|until| if until <= now + passed { now - SHORT } else { until });
            Hold::new(sequence, until, hold.reason, hold.paused_at)
        });
        Self { events, hold }
    }

    fn place(&self, now: Time) -> Place {
        let failed = self.events.values().map(|status| *status == Status::Failed).collect();
        let hold = self.hold.map(|hold| {
            let place =
                hold.sequence.and_then(|held| self.events.keys().position(|sequence| *sequence == held));
            // Some of a long delay has passed: of which of them it is left, one hour tells from the other.
            let left = hold.until.map(|until| until.saturating_sub(now));
            let whole = |left: Duration| DELAYS.into_iter().find(|delay| *delay >= left).unwrap_or(left);
            (place, left.map(whole), hold.reason.as_str(), hold.is_paused())
        });
        Place { failed, hold }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A rule that allows more or fewer steps is seen here, and the clause walks through all of them.
    #[test]
    fn the_steps_that_the_rules_allow_are_counted() {
        let steps = CHART.steps();
        let states: BTreeSet<_> = steps.keys().flat_map(|step| [step.before, step.after]).collect();
        let pairs: BTreeSet<_> = steps.keys().map(|step| (step.before, step.after)).collect();
        assert_eq!((states.len(), pairs.len(), steps.len()), (47, 207, 494));
    }
}
