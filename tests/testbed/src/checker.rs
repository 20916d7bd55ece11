//! What was committed against what was delivered.

use std::collections::{BTreeMap, HashMap, HashSet};

use outbox::ReceivedEvent;
use uuid::Uuid;

/// One record of a topic, in the order of its partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub aggregate: String,
    pub id: Uuid,
}

impl Delivery {
    /// What a message's headers say, whatever the broker.
    pub fn from_headers<N: AsRef<str>, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (N, V)>) -> Self {
        let event = ReceivedEvent::from_headers(headers).unwrap();
        let aggregate = event.aggregate().unwrap().aggregate_id().to_owned();
        Self { aggregate, id: event.identity.id().parse().unwrap() }
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub problems: Vec<String>,
    pub duplicates: usize,
}

/// Compares deliveries with the ids that were committed, by aggregate in sequence order.
pub fn compare(committed: &BTreeMap<String, Vec<Uuid>>, deliveries: &[Delivery]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut first: HashMap<&str, Vec<Uuid>> = HashMap::new();
    let mut seen = HashSet::new();
    for delivery in deliveries {
        if seen.insert((delivery.aggregate.as_str(), delivery.id)) {
            first.entry(&delivery.aggregate).or_default().push(delivery.id);
        } else {
            verdict.duplicates += 1;
        }
    }
    for (aggregate, expected) in committed {
        let got = first.remove(aggregate.as_str()).unwrap_or_default();
        if got != *expected {
            verdict.problems.push(difference(aggregate, expected, &got));
        }
    }
    for (aggregate, got) in first {
        verdict.problems.push(difference(aggregate, &[], &got));
    }
    verdict
}

fn difference(aggregate: &str, expected: &[Uuid], got: &[Uuid]) -> String {
    let without = |of: &[Uuid], other: &[Uuid]| -> Vec<Uuid> {
        let other: HashSet<_> = other.iter().collect();
        of.iter().filter(|id| !other.contains(id)).copied().collect()
    };
    let (lost, invented) = (without(expected, got), without(got, expected));
    if lost.is_empty() && invented.is_empty() {
        let at = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or_default();
        let (due, came) = (expected[at], got[at]);
        return format!("{aggregate}: out of order at event {at}, where {due} was due and {came} came");
    }
    format!("{aggregate}: committed and not delivered {lost:?}; delivered and not committed {invented:?}")
}

#[test]
fn the_checker_notices_what_is_lost_invented_out_of_order_or_twice() {
    let [a, b, c] = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];
    let committed = BTreeMap::from([("x".to_owned(), vec![a, b]), ("y".to_owned(), vec![c])]);
    let deliver = |all: &[(&str, Uuid)]| -> Vec<Delivery> {
        all.iter().map(|(aggregate, id)| Delivery { aggregate: (*aggregate).to_owned(), id: *id }).collect()
    };
    let found = |all: &[(&str, Uuid)]| {
        let verdict = compare(&committed, &deliver(all));
        (verdict.problems.len(), verdict.duplicates)
    };
    assert_eq!(found(&[("x", a), ("y", c), ("x", b)]), (0, 0), "aggregates are independent");
    assert_eq!(found(&[("x", a), ("x", b), ("x", a), ("y", c)]), (0, 1), "a late duplicate is only counted");
    assert_eq!(found(&[("x", b), ("x", a), ("x", b), ("y", c)]), (1, 1), "first deliveries out of order");
    assert_eq!(found(&[("x", a), ("y", c)]), (1, 0), "lost");
    assert_eq!(found(&[("x", a), ("x", b)]), (1, 0), "a whole aggregate is lost");
    assert_eq!(found(&[("x", a), ("x", b), ("y", c), ("y", Uuid::nil())]), (1, 0), "invented");
    assert_eq!(found(&[("x", a), ("x", b), ("y", c), ("z", a)]), (1, 0), "under the wrong key");
}
