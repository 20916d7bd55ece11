//! Every hold by the rules: random sequences of all that changes a hold, on the store and on [`Hold`] itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use fastrand::Rng;
use outbox_core::{
    AggregateKey, Event, EventFilter,
    store::{Hold, HoldRecord, Partition, Sequence, Settled, Settlement, Status, Unhold},
};
use uuid::Uuid;

use crate::{
    store::{
        model::{Aggregate, Became, CHART, Deed, EVENTS, START, Step, Time},
        relay::Relay,
        stage::{SHORT, Stage, event, key},
    },
    violation::{Verdict, Violation, equal},
};

/// The seed of the sequences. They depend on nothing else, so that every store gets the same.
const SEED: u64 = 10;

/// How many aggregates go on beside each other: one settle, one requeue and one discard are for many of them.
const AGGREGATES: usize = 24;

/// The most rounds, in each of which one thing is done to each aggregate.
const ROUNDS_MAX: usize = 100;

/// How far what a hold still waits for may be from what the model says: the time of the whole clause, which
/// the model's clock does not count. Delays are further apart.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// How many deeds of an aggregate a violation tells, up to the one that went wrong.
const HISTORY: usize = 12;

const TOPIC: &str = "orders";

pub(super) async fn every_hold_follows_the_rules(stage: &Stage<'_>) -> Verdict {
    let mut walk = Walk::new(stage).await?;
    for _ in 0..ROUNDS_MAX {
        if !walk.ahead.contains(&true) {
            return Ok(());
        }
        walk.round().await?;
    }
    let left: Vec<_> = CHART.steps().keys().filter(|step| walk.is_ahead(step)).map(Step::to_string).collect();
    Err(Violation::new(
        format!("each step that the rules allow within {ROUNDS_MAX} rounds of seed {SEED}"),
        format!("{} were not reached, such as {}", left.len(), left.first().map_or("none", String::as_str)),
    ))
}

/// An aggregate of the store, and the same in the model.
struct Pair {
    key: AggregateKey,
    partition: Partition,
    ids: BTreeMap<Sequence, Uuid>,
    model: Aggregate,
    /// What was done to it, with the hold that came of it.
    history: VecDeque<String>,
}

struct Walk<'a> {
    stage: &'a Stage<'a>,
    relay: Relay<'a>,
    rng: Rng,
    now: Time,
    pairs: Vec<Pair>,
    /// The steps that were not reached yet, by their numbers.
    ahead: Vec<bool>,
    is_topic_paused: bool,
}

impl<'a> Walk<'a> {
    async fn new(stage: &'a Stage<'a>) -> Verdict<Self> {
        let relay = Relay::new(stage).await?;
        let pairs = (0..AGGREGATES).map(|number| Pair {
            key: key(&format!("r{number}")),
            partition: 0,
            ids: BTreeMap::new(),
            model: Aggregate::new(&[]),
            history: VecDeque::new(),
        });
        Ok(Self {
            stage,
            relay,
            rng: Rng::with_seed(SEED),
            now: START,
            pairs: pairs.collect(),
            ahead: vec![true; CHART.steps().len()],
            is_topic_paused: false,
        })
    }

    /// Does one thing to each aggregate, call by call, and compares everything after each call.
    async fn round(&mut self) -> Verdict {
        self.replenish().await?;
        let mut deeds: Vec<(usize, Deed)> = Vec::new();
        let mut ahead = self.ahead.clone();
        let distances = CHART.distances(&ahead);
        for index in 0..self.pairs.len() {
            deeds.push((index, self.choose(index, &mut ahead, &distances)?));
        }
        let mut calls: Vec<Vec<(usize, Deed)>> = vec![Vec::new(); 3];
        for (index, deed) in deeds {
            match deed {
                Deed::Settle(..) => calls[0].push((index, deed)),
                Deed::Requeue(_) => calls[1].push((index, deed)),
                Deed::Discard(_) => calls[2].push((index, deed)),
                _ => calls.push(vec![(index, deed)]),
            }
        }
        self.rng.shuffle(&mut calls);
        for call in calls.into_iter().filter(|call| !call.is_empty()) {
            self.call(call).await?;
        }
        self.change_topic().await?;
        self.wait().await
    }

    /// Writes new events until each aggregate has as many as it needs.
    async fn replenish(&mut self) -> Verdict {
        self.pairs.iter_mut().for_each(|pair| pair.model.forget_sent());
        let missing =
            |pair: &Pair| (0..pair.model.missing()).map(|_| event(pair.key.aggregate_id())).collect();
        let events: Vec<Event> = self.pairs.iter().flat_map(|pair| -> Vec<Event> { missing(pair) }).collect();
        if events.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = events.iter().map(Event::id).collect();
        let sequences = self.stage.commit_events(events).await?;
        let mut written = sequences.into_iter().zip(ids);
        for pair in &mut self.pairs {
            for (sequence, id) in written.by_ref().take(pair.model.missing()) {
                pair.model.events.insert(sequence, Status::Pending);
                pair.ids.insert(sequence, id);
            }
        }
        self.compare("after events were written").await
    }

    /// What leads to a step that was not reached yet, mostly; else anything, such as several settlements.
    fn choose(&mut self, index: usize, ahead: &mut [bool], distances: &[usize]) -> Verdict<Deed> {
        let model = &self.pairs[index].model;
        if self.rng.u8(0..8) == 0 {
            return Ok(several(model, self.now, &mut self.rng));
        }
        let Some(place) = CHART.find(model, self.now) else {
            return Err(Violation::new("the suite's own model to be on its chart", format!("{model:?}")));
        };
        let mut near: Vec<(Deed, usize)> = Vec::new();
        let mut nearest = usize::MAX;
        for (deed, (step, next)) in model.deeds(self.now).into_iter().zip(CHART.ways(place)) {
            let far = if ahead[*step] { 0 } else { distances[*next] };
            // These two are done to all aggregates at once.
            if matches!(deed, Deed::ResumeTopic | Deed::Wait) || far > nearest {
                continue;
            }
            if far < nearest {
                near.clear();
                nearest = far;
            }
            near.push((deed, *step));
        }
        let (deed, step) = near.swap_remove(self.rng.usize(0..near.len()));
        ahead[step] = false;
        Ok(deed)
    }

    /// Does in one call what is to be done to these aggregates.
    async fn call(&mut self, deeds: Vec<(usize, Deed)>) -> Verdict {
        let (stage, admin) = (self.stage, &self.stage.admin);
        let first = &self.pairs[deeds[0].0].key.clone();
        let mut count = None;
        match &deeds[0].1 {
            Deed::Settle(..) => self.settle(&deeds).await?,
            Deed::Requeue(_) => count = Some(admin.requeue(&self.ids(&deeds)).await?),
            Deed::RequeueAll => count = Some(admin.requeue(&EventFilter::aggregate(first)).await?),
            Deed::Discard(_) => count = Some(admin.discard(&self.ids(&deeds)).await?),
            Deed::Pause => admin.pause(first).await?,
            Deed::Resume => {
                let is_held = self.pairs[deeds[0].0].model.hold.is_some();
                equal("whether there was a hold to resume", is_held, stage.admin.resume(first).await?)?;
            }
            Deed::ResumeTopic | Deed::Wait => {}
        }
        let mut expected = 0;
        for (index, deed) in &deeds {
            expected += self.follow(*index, deed);
        }
        if let Some(count) = count {
            equal(&format!("seed {SEED}: events changed by {:?}", deeds[0].1), expected, count)?;
        }
        self.compare(&format!("after a call for {} aggregates", deeds.len())).await
    }

    /// Does it to the model.
    fn follow(&mut self, index: usize, deed: &Deed) -> u64 {
        let pair = &mut self.pairs[index];
        let (step, count) = pair.model.apply(deed, self.now);
        // Of several results in one settle only the last hold is seen, so they are not a step.
        if !matches!(deed, Deed::Settle(results, unhold) if results.len() + usize::from(unhold.is_some()) > 1)
        {
            CHART.steps().get(&step).into_iter().for_each(|number| self.ahead[*number] = false);
        }
        let hold = text(pair.model.hold, self.now);
        pair.history.push_back(format!("\n    {deed:?}: {hold}"));
        if pair.history.len() > HISTORY {
            pair.history.pop_front();
        }
        count
    }

    fn is_ahead(&self, step: &Step) -> bool {
        CHART.steps().get(step).is_some_and(|number| self.ahead[*number])
    }

    fn ids(&self, deeds: &[(usize, Deed)]) -> EventFilter {
        let mut ids = Vec::new();
        for (index, deed) in deeds {
            let sequences: &[Sequence] = match deed {
                Deed::Requeue(sequences) => sequences,
                Deed::Discard(sequence) => std::slice::from_ref(sequence),
                _ => &[],
            };
            ids.extend(sequences.iter().filter_map(|sequence| self.pairs[*index].ids.get(sequence)));
        }
        EventFilter::default().with_ids(ids)
    }

    async fn settle(&mut self, deeds: &[(usize, Deed)]) -> Verdict {
        let (mut settlements, mut unholds) = (Vec::new(), Vec::new());
        for (index, deed) in deeds {
            let Deed::Settle(results, unhold) = deed else { continue };
            let pair = &self.pairs[*index];
            settlements.extend(results.iter().map(|(sequence, became)| {
                Settlement::new(*sequence, pair.partition, pair.key.clone(), 1, became.outcome())
            }));
            unholds.extend(unhold.map(|sequence| Unhold::new(pair.key.clone(), pair.partition, sequence)));
        }
        // A store applies them in ascending sequence, in whatever order they are given.
        self.rng.shuffle(&mut settlements);
        equal(
            "a settle under valid leases",
            Settled::default(),
            self.relay.settle(settlements, unholds).await?,
        )
    }

    /// Pauses the topic, or ends its pause, now and then and where that is a step that was not reached yet.
    async fn change_topic(&mut self) -> Verdict {
        let admin = &self.stage.admin;
        if !self.is_topic_paused {
            self.is_topic_paused = true;
            admin.pause_topic(TOPIC).await?;
            return self.compare("after a topic was paused").await;
        }
        let now = self.now;
        let is_meant = self.rng.u8(0..8) == 0;
        let is_new = |pair: &Pair| self.is_ahead(&pair.model.clone().apply(&Deed::ResumeTopic, now).0);
        let is_settled = |pair: &Pair| !pair.model.is_between(now);
        if !self.pairs.iter().all(is_settled) || !(is_meant || self.pairs.iter().any(is_new)) {
            return Ok(());
        }
        self.is_topic_paused = false;
        equal("whether the topic was paused", true, admin.resume_topic(TOPIC).await?)?;
        for index in 0..self.pairs.len() {
            self.follow(index, &Deed::ResumeTopic);
        }
        self.compare("after the pause of a topic has ended").await
    }

    /// Lets the short delay pass. Every round does: what becomes due now is then later than what became due
    /// before.
    async fn wait(&mut self) -> Verdict {
        self.stage.wait_short().await;
        for index in 0..self.pairs.len() {
            if self.pairs[index].model.is_between(self.now) {
                self.follow(index, &Deed::Wait);
            }
        }
        self.now += SHORT * 2;
        self.compare("after a short time").await
    }

    /// Compares every hold, and the status of every event, with the model.
    async fn compare(&mut self, when: &str) -> Verdict {
        let mut holds: BTreeMap<_, _> =
            self.stage.admin.holds(1000).await?.into_iter().map(|hold| (hold.key.clone(), hold)).collect();
        let lowest = self.pairs.iter().filter_map(|pair| pair.model.events.keys().next()).min();
        let filter = EventFilter::default().after(lowest.map(|lowest| lowest - 1));
        let records = self.stage.admin.list(&filter, 10_000).await?;
        let found: BTreeMap<_, _> = records.iter().map(|record| (record.sequence, record)).collect();
        for pair in &mut self.pairs {
            for (sequence, status) in &pair.model.events {
                let record = found.get(sequence);
                if record.is_none_or(|record| record.status != *status) {
                    let expected = format!("event {sequence} of {} to be {status:?}", pair.key);
                    return Err(pair.violation(&expected, when, &format!("{record:?}")));
                }
                pair.partition = record.map_or(0, |record| record.partition);
            }
            let hold = holds.remove(&pair.key);
            if !is_same(pair.model.hold, hold.as_ref(), self.now) {
                let expected = format!("of {} {}", pair.key, text(pair.model.hold, self.now));
                return Err(pair.violation(&expected, when, &format!("{hold:?}")));
            }
        }
        equal("holds of other aggregates", 0, holds.len())
    }
}

impl Pair {
    fn violation(&self, expected: &str, when: &str, found: &str) -> Violation {
        let history: String = self.history.iter().map(String::as_str).collect();
        Violation::new(
            format!("{expected}, {when}, by seed {SEED}; what was done to it last, and its hold:{history}"),
            found,
        )
    }
}

/// Some results for different events of one aggregate, and perhaps an unhold after them.
fn several(model: &Aggregate, now: Time, rng: &mut Rng) -> Deed {
    let mut events: Vec<_> = model.events.iter().map(|(sequence, status)| (*sequence, *status)).collect();
    rng.shuffle(&mut events);
    events.truncate(rng.usize(2..=EVENTS));
    let (mut results, mut delays): (Vec<_>, BTreeSet<Duration>) = (Vec::new(), BTreeSet::new());
    for (sequence, status) in events {
        let mut all = model.results(now, status);
        // Delays that are near each other could be in either order, since a store may take the time for each.
        all.retain(|became| match became {
            Became::Retried(_, delay) => {
                !delays.contains(delay) && (*delay > SHORT || delays.iter().all(|other| *other > SHORT))
            }
            _ => true,
        });
        let became = all[rng.usize(0..all.len())];
        if let Became::Retried(_, delay) = became {
            delays.insert(delay);
        }
        results.push((sequence, became));
    }
    // The model settles them as they apply.
    results.sort_by_key(|(sequence, _)| *sequence);
    let held = model.hold.and_then(|hold| hold.sequence);
    let unhold = (rng.bool() && !delays.contains(&SHORT)).then_some(held);
    Deed::Settle(results, unhold)
}

fn is_same(model: Option<Hold<Time>>, found: Option<&HoldRecord>, now: Time) -> bool {
    let (Some(model), Some(found)) = (model, found) else { return model.is_none() && found.is_none() };
    let due_in = match (model.until.map(|until| until.saturating_sub(now)), found.due_in) {
        (None, None) => true,
        (Some(expected), Some(found)) if expected <= SHORT => found <= expected,
        (Some(expected), Some(found)) => expected.abs_diff(found) < TOLERANCE,
        _ => false,
    };
    due_in
        && (model.sequence, model.reason, model.is_paused()) == (found.sequence, found.reason, found.paused)
}

fn text(hold: Option<Hold<Time>>, now: Time) -> String {
    let Some(hold) = hold else { return "no hold".to_owned() };
    let sequence = hold.sequence.map_or("no event".to_owned(), |sequence| format!("event {sequence}"));
    let paused = if hold.is_paused() { ", paused" } else { "" };
    let due = match hold.until {
        None => "no time".to_owned(),
        Some(until) => format!("due in {:?}", until.saturating_sub(now)),
    };
    format!("a hold of {sequence}, {}{paused}, {due}", hold.reason.as_str())
}
