//! What the examples' shops have in common: how they talk to their reader, and how they check what was promised.

use std::{collections::BTreeMap, process::ExitCode};

/// What happened to which order, in the order of its arrival.
pub(crate) type Arrivals = Vec<(String, String)>;

/// What has committed, by order.
pub(crate) type Promises = BTreeMap<String, Vec<String>>;

pub(crate) fn chapter(title: &str) {
    println!("\n{title}");
}

pub(crate) fn say(who: &str, what: &str) {
    println!("  {who:>9} | {what}");
}

/// Compares by order: everything committed, nothing else, first arrivals in order, nothing left behind. Returns what
/// was not as promised.
pub(crate) fn compare(promised: &Promises, arrived: &[(String, String)], pending: u64) -> Vec<String> {
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
pub(crate) fn verdict(problems: &[String]) -> ExitCode {
    if problems.is_empty() {
        println!("\nNothing was lost, nothing was invented, every order arrived in order.");
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| eprintln!("BROKEN: {problem}"));
    ExitCode::FAILURE
}
