//! What the examples' shops have in common: how they talk to their reader, and how they check what was
//! promised.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its reader")]

use std::{collections::BTreeMap, process::ExitCode};

/// What happened to which order, in the order of its arrival.
pub type Arrivals = Vec<(String, String)>;

/// What has committed, by order.
pub type Promises = BTreeMap<String, Vec<String>>;

/// A heading.
pub fn chapter(title: &str) {
    println!("\n{title}");
}

/// A line of one who takes part: the shop, the relay, the broker.
pub fn say(who: &str, what: &str) {
    println!("  {who:>9} | {what}");
}

/// Compares by order: everything committed, nothing else, first arrivals in order, nothing left behind.
/// Returns what was not as promised.
#[must_use]
pub fn compare(promised: &Promises, arrived: &[(String, String)], pending: u64) -> Vec<String> {
    let mut first: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut duplicates = 0;
    for (order, what) in arrived {
        let events = first.entry(order).or_default();
        // A duplicate is allowed: delivery is at least once, and the consumer's inbox is what removes it.
        if events.contains(&what.as_str()) {
            duplicates += 1;
        } else {
            events.push(what);
        }
    }
    let mut problems = Vec::new();
    for (order, promised) in promised {
        let got = first.remove(order.as_str()).unwrap_or_default();
        let mark = if got == *promised { "as promised" } else { "NOT AS PROMISED" };
        say("check", &format!("{order}: {}: {mark}", got.join(", ")));
        if got != *promised {
            problems.push(format!("{order} promised {promised:?}, and {got:?} arrived"));
        }
    }
    for (order, got) in first {
        problems.push(format!("{order} never committed, and {got:?} arrived"));
    }
    if pending > 0 {
        problems.push(format!("{pending} events are still pending"));
    }
    say("check", &format!("arrived twice, as after a crash they may: {duplicates}"));
    problems
}

/// Says how it went; 1 if a guarantee did not hold.
#[must_use]
pub fn verdict(problems: &[String]) -> ExitCode {
    if problems.is_empty() {
        println!("\nNothing was lost, nothing was invented, every order arrived in order.");
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| eprintln!("BROKEN: {problem}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::{Promises, compare};

    #[test]
    fn a_shop_notices_what_is_lost_invented_out_of_order_or_left_behind() {
        let pair = |order: &str, what: &str| (order.to_owned(), what.to_owned());
        let promised = Promises::from([("a".to_owned(), vec!["placed".to_owned(), "paid".to_owned()])]);
        let problems = |arrived: &[(String, String)], pending| compare(&promised, arrived, pending).len();
        let good = [pair("a", "placed"), pair("a", "placed"), pair("a", "paid")];
        assert_eq!(problems(&good, 0), 0, "duplicates are allowed");
        assert_eq!(problems(&good[..1], 0), 1, "an event is lost");
        assert_eq!(problems(&[pair("a", "paid"), pair("a", "placed")], 0), 1, "out of order");
        let invented = [good.as_slice(), &[pair("b", "placed")]].concat();
        assert_eq!(problems(&invented, 0), 1, "an event is invented");
        assert_eq!(problems(&good, 1), 1, "an event is left behind");
    }
}
