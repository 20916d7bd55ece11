//! The program's answers to settings and command lines that do not work.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs;

use common::Folder;
use serde_json::Value;

const FILE: &str = "[store]\nurl = \"oracle://me:hush@h/d\"\n[relay]\nlease_tll = \"5s\"\npoll_min = 3\n";

const VARIABLES: [(&str, &str); 2] =
    [("OUTBOX_PUBLISHER_URL", "kafka://me:hush@h"), ("OUTBOX_RELAY_RETRY_ATTEMPTS_MAX", "0")];

#[test]
fn every_problem_is_named_at_once_and_no_secret() {
    let folder = Folder::new();
    fs::write(folder.path("outbox.toml"), FILE).unwrap();
    fs::write(folder.path("other.toml"), FILE).unwrap();
    for (args, file) in [
        (&["relay", "--log", "trace"][..], "outbox.toml"),
        (&["check"], "outbox.toml"),
        (&["migrate", "--config", "other.toml"], "other.toml"),
        (&["status", "--config", "other.toml"], "other.toml"),
    ] {
        let ended = folder.run(args, &VARIABLES);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}: {ended:?}");
        for part in [
            format!("store.url ({file} line 2)"),
            format!("relay.lease_tll ({file} line 4)"),
            "did you mean relay.lease_ttl?".to_owned(),
            format!("relay.poll_min ({file} line 5) is 3"),
            "publisher.url (OUTBOX_PUBLISHER_URL)".to_owned(),
            "relay.retry.attempts_max (OUTBOX_RELAY_RETRY_ATTEMPTS_MAX)".to_owned(),
        ] {
            assert!(ended.stderr.contains(&part), "{part}: {ended:?}");
        }
        assert_eq!(ended.stderr.lines().count(), 5, "{ended:?}");
        assert!(!ended.stderr.contains("hush"), "{ended:?}");
    }
}

#[test]
fn programs_get_findings_as_json() {
    let folder = Folder::new();
    fs::write(folder.path("outbox.toml"), FILE).unwrap();
    let mut variables = VARIABLES.to_vec();
    variables.push(("OUTBOX_LOG_FORMAT", "json"));
    let ended = folder.run(&["relay"], &variables);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5, "{ended:?}");
    let unknown = lines.iter().find(|line| line["code"] == "unknown-key").unwrap();
    assert_eq!(unknown["level"], "ERROR");
    assert!(unknown["message"].as_str().unwrap().contains("relay.lease_tll"), "{unknown}");
    assert!(unknown["remedy"].as_str().unwrap().contains("relay.lease_ttl"), "{unknown}");
}

#[test]
fn a_url_can_be_a_secret_file() {
    let folder = Folder::new();
    fs::write(folder.path("secret"), "sqlite:shop.db\n").unwrap();
    let ended = folder.run(&["migrate"], &[("OUTBOX_STORE_URL_FILE", "secret")]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(folder.path("shop.db").exists());
}

#[test]
fn what_cannot_be_opened_is_a_finding() {
    let folder = Folder::new();
    assert_eq!(folder.run(&["migrate"], &[("OUTBOX_STORE_URL", "sqlite:shop.db")]).code, Some(0));
    let variables =
        [("OUTBOX_STORE_URL", "sqlite:shop.db"), ("OUTBOX_PUBLISHER_URL", "file:no/such/folder/x.jsonl")];
    let ended = folder.run(&["relay"], &variables);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("error [publisher-file]") && ended.stderr.contains("no/such/folder"),
        "{ended:?}"
    );
    let ended = folder.run(&["migrate"], &[("OUTBOX_STORE_URL", "sqlite:no/such/folder/shop.db")]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("no/such/folder"), "{ended:?}");
}

#[test]
fn a_wrong_command_line_has_the_exit_code_of_wrong_settings() {
    let folder = Folder::new();
    for args in
        [&["rely"][..], &["relay", "--log", "loud-and=clear=x"], &["relay", "--log-format", "xml"], &[]]
    {
        assert_eq!(folder.run(args, &[]).code, Some(2), "{args:?}");
    }
    let ended = folder.run(&["--help"], &[]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.contains("Exit codes:"), "{}", ended.stdout);
}
