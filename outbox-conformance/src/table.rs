//! The table that an author can paste into a README.
//!
//! A test program runs its tests in any order and ends without a word to any of them. So each clause notes
//! what came of it, and the one that completes the table writes it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write as _},
    sync::{Mutex, PoisonError},
};

/// The variable that holds the name of the file to which tables are appended; `/dev/stdout` shows them.
const TABLE_VARIABLE: &str = "OUTBOX_CONFORMANCE_TABLE";

/// One half of the suite, as it is run against one harness.
pub(crate) struct Suite {
    /// `a store`, `a publisher` or `an inbox`.
    pub(crate) half: &'static str,
    /// The package that runs it, with its version.
    pub(crate) author: &'static str,
    /// The type of the harness.
    pub(crate) harness: &'static str,
    /// The name and the sentence of each clause, in the order of the table.
    pub(crate) clauses: Vec<(&'static str, &'static str)>,
}

/// What came of a clause, for a reader.
pub(crate) enum Answer {
    Kept,
    NotAsked(String),
    Broken,
}

/// Answers by the name of the clause.
type Answers = BTreeMap<&'static str, Answer>;

/// The answers so far, by half and harness.
static ANSWERS: Mutex<BTreeMap<(&str, &str), Answers>> = Mutex::new(BTreeMap::new());

/// Notes the answer to a clause. The last of a suite writes its table, if one is asked for.
pub(crate) fn note(suite: &Suite, clause: &'static str, answer: Answer) {
    let Some(file) = std::env::var_os(TABLE_VARIABLE) else { return };
    let mut all = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = all.entry((suite.half, suite.harness)).or_default();
    answers.insert(clause, answer);
    if answers.len() == suite.clauses.len()
        && let Err(error) = append(&file, &table(suite, answers))
    {
        panic!("{TABLE_VARIABLE}: the table cannot be written to {}: {error}", file.display());
    }
}

fn append(file: &OsStr, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(file)?.write_all(text.as_bytes())
}

fn table(suite: &Suite, answers: &Answers) -> String {
    let count = |wanted: fn(&Answer) -> bool| answers.values().filter(|answer| wanted(answer)).count();
    let (all, kept) = (suite.clauses.len(), count(|answer| matches!(answer, Answer::Kept)));
    let mut text =
        format!("\n{}, `{}`: {kept} of {all} clauses of {} kept", suite.author, harness(suite), suite.half);
    for (number, word) in [
        (count(|answer| matches!(answer, Answer::NotAsked(_))), "not asked"),
        (count(|answer| matches!(answer, Answer::Broken)), "broken"),
    ] {
        if number > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {number} {word}");
        }
    }
    text.push_str("\n\n| clause | what it says | |\n|---|---|---|\n");
    for (name, sentence) in &suite.clauses {
        let answer = match answers.get(name) {
            Some(Answer::Kept) => "kept".to_owned(),
            Some(Answer::NotAsked(why)) => format!("not asked: {why}"),
            Some(Answer::Broken) | None => "**broken**".to_owned(),
        };
        let _ = writeln!(text, "| `{name}` | {sentence} | {answer} |");
    }
    text
}

/// The name of the harness, and of the types that it is for, without the modules that they are in.
fn harness(suite: &Suite) -> String {
    let parts = suite.harness.split_inclusive(['<', '>', ',', ' ']);
    parts.map(|part| part.rsplit("::").next().unwrap_or(part)).collect()
}
