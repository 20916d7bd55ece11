//! What a formatter does not see: comments no wider than the code, and phrases that readers stumble over.

use std::{path::PathBuf, process::Command};

/// `max_width` of rustfmt.toml, which rustfmt holds the code to and not the comments.
const WIDTH_MAX: usize = 110;

/// Phrases that a translated text has and plain English has not, in lower case, and what to write instead.
const PHRASES: [(&str, &str); 7] = [
    ("is none", "is not a …, or is invalid"),
    ("are none", "are not …"),
    ("is no", "is not a …"),
    ("are no", "are not …"),
    ("nobody", "name the actor: no relay, no test, no caller"),
    ("whoever", "name the actor"),
    ("somebody", "name the actor: an operator, a person, another process"),
];

/// What a phrase is part of where it is good English.
const GOOD: [&str; 8] = [
    "there is no",
    "there are no",
    "is no longer",
    "are no longer",
    "is no more",
    "there is none",
    "it is no such",
    "which is no such",
];

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The files of the project with one of these endings, by git: what is built is not read.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let list = Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git runs");
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).unwrap();
    let is_meant = |name: &&str| endings.iter().any(|ending| name.ends_with(ending));
    let files: Vec<_> = list
        .lines()
        .filter(is_meant)
        .map(|name| (name.to_owned(), std::fs::read_to_string(root().join(name)).unwrap()))
        .collect();
    assert!(files.len() > 20, "only {} files were found", files.len());
    files
}

/// A comment that can be wrapped: it has a space to break at, and is not a drawing, a table or code.
fn too_wide(line: &str) -> bool {
    let comment = line.trim_start();
    let prose = comment.strip_prefix("///").or(comment.strip_prefix("//!")).or(comment.strip_prefix("//"));
    prose.is_some_and(|prose| {
        line.chars().count() > WIDTH_MAX
            && prose.trim_start().chars().next().is_some_and(|first| first.is_alphabetic() || first == '`')
            && !prose.ends_with(['{', ';', ',', '('])
            && prose.trim().contains(' ')
    })
}

/// The first phrase that stands in a line as words of their own, and not as part of a name.
fn stumbles(line: &str) -> Option<(&'static str, &'static str)> {
    let mut line = line.to_lowercase();
    for good in GOOD {
        line = line.replace(good, "");
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    PHRASES.into_iter().find(|(phrase, _)| {
        line.match_indices(phrase).any(|(at, words)| {
            let before = line[..at].chars().next_back();
            let after = line[at + words.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    })
}

#[test]
fn comments_are_as_wide_as_the_code() {
    let mut wide = Vec::new();
    for (name, text) in files(&[".rs"]) {
        let lines = text.lines().enumerate().filter(|(_, line)| too_wide(line));
        wide.extend(lines.map(|(index, line)| format!("{name}:{}: {line}", index + 1)));
    }
    assert!(wide.is_empty(), "wrap these at {WIDTH_MAX}:\n{}", wide.join("\n"));
}

#[test]
fn sentences_name_the_actor_and_say_is_not_a() {
    let mut found = Vec::new();
    for (name, text) in files(&[".rs", ".md", ".sql"]) {
        // This file lists the phrases.
        if name.ends_with("tidy.rs") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if let Some((phrase, instead)) = stumbles(line) {
                found.push(format!("{name}:{}: {phrase:?}: {instead}: {}", index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{} sentences to rewrite:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_rules_find_what_they_are_for() {
    assert!(too_wide(&format!("    /// {}", "word ".repeat(30))));
    assert!(!too_wide(&format!("let text = \"{}\";", "word ".repeat(30))));
    assert!(!too_wide(&format!("// | {} |", "cell ".repeat(30))));
    assert_eq!(stumbles("The url is none of these.").map(|(phrase, _)| phrase), Some("is none"));
    assert!(stumbles("Nobody reads it").is_some());
    assert!(stumbles("fn nobody_reads() { NobodyAnswers }").is_none());
    assert!(stumbles("There is no relay, and it is no longer alive").is_none());
}
