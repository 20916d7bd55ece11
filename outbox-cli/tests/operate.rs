//! An operator's commands, on a SQLite file.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::BTreeSet;

use common::{Ended, Folder, Running, arrivals, json_lines, until};
use rusqlite::{Connection, params};
use serde_json::Value;

const TO_FILE: [(&str, &str); 2] =
    [("OUTBOX_STORE_URL", "sqlite:shop.db"), ("OUTBOX_PUBLISHER_URL", "file:events.jsonl")];

/// A folder with events of the numbers from 0, of three orders.
fn shop(events: u64) -> Folder {
    let folder = Folder::new();
    assert_eq!(folder.run(&["migrate"], &TO_FILE).code, Some(0));
    let mut connection = service(&folder);
    let transaction = connection.transaction().unwrap();
    for n in 0..events {
        let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, topic)
                   VALUES ('order', ?1, 'order.placed', ?2, ?3)";
        let payload = format!(r#"{{"n": {n}}}"#);
        transaction
            .execute(sql, params![(n % 3).to_string(), payload, (n == 5).then_some("special")])
            .unwrap();
    }
    transaction.commit().unwrap();
    folder
}

fn service(folder: &Folder) -> Connection {
    let connection = Connection::open(folder.path("shop.db")).unwrap();
    connection.busy_timeout(common::DEADLINE).unwrap();
    connection
}

fn events(folder: &Folder) -> Vec<Value> {
    json_lines(&folder.path("events.jsonl"))
}

/// Relays until nothing is pending.
fn drain(folder: &Folder, variables: &[(&str, &str)]) {
    let relay = folder.relay(variables);
    until("everything is sent", || folder.status(variables)["pending"] == 0);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
}

#[track_caller]
fn done(folder: &Folder, args: &[&str]) -> String {
    let ended = folder.run(args, &TO_FILE);
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended.stdout
}

#[track_caller]
fn done_json(folder: &Folder, args: &[&str]) -> Value {
    serde_json::from_str(&done(folder, args)).unwrap()
}

#[test]
fn events_are_listed_and_inspected() {
    let folder = shop(7);
    service(&folder)
        .execute_batch(
            "UPDATE outbox SET status = 2, cause = 'permanent', failed_at = created_at, attempts = 3,
                    last_error = 'TooLarge: ' || char(27) || '[2J no' WHERE sequence = 2;
             UPDATE outbox SET headers = '{\"tenant\": \"a\"}' WHERE sequence = 3;
             UPDATE outbox SET payload = x'ff00' WHERE sequence = 4;",
        )
        .unwrap();
    let table = done(&folder, &["list", "--limit", "3"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    assert!(lines[0].starts_with("SEQUENCE  ID"), "{table}");
    assert!(
        lines[2].contains("failed") && lines[2].contains("permanent: TooLarge: \\u{1b}[2J no"),
        "{table}"
    );
    assert_eq!(lines[4], "there may be more: --after 3");
    assert_eq!(done(&folder, &["list", "--after", "7"]), "no events\n");

    for (args, expected) in [
        (&["--status", "pending"][..], vec![1, 3, 4, 5, 6, 7]),
        (&["--cause", "permanent"], vec![2]),
        (&["--aggregate-type", "order", "--aggregate-id", "0"], vec![1, 4, 7]),
        (&["--event-type", "order.paid"], vec![]),
        (&["--from", "1h", "--after", "5"], vec![6, 7]),
        (&["--before", "1h"], vec![]),
        (&["--archived"], vec![]),
    ] {
        let listed = done_json(&folder, &[&["list", "--json"], args].concat());
        let found: Vec<_> =
            listed.as_array().unwrap().iter().map(|e| e["sequence"].as_i64().unwrap()).collect();
        assert_eq!(found, expected, "{args:?}");
    }
    assert_eq!(folder.run(&["list", "--status", "lost"], &TO_FILE).code, Some(2));

    let event = done_json(&folder, &["inspect", "3", "--json"]);
    assert_eq!(
        (&event["headers"]["tenant"], &event["payload"]),
        (&"a".into(), &"{\"n\": 2}".into()),
        "{event}"
    );
    let id = event["id"].as_str().unwrap();
    let text = done(&folder, &["inspect", id]);
    for part in
        ["sequence      3", "status        pending", "header        tenant: a", "{\"n\": 2}", "8 bytes"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(done(&folder, &["inspect", "4"]).ends_with("ff00\n"));
    let ended = folder.run(&["inspect", "99"], &TO_FILE);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("there is no such event"), "{ended:?}");
}

#[test]
fn what_failed_is_requeued_or_discarded_by_condition_only() {
    let folder = shop(6);
    let sql = "UPDATE outbox SET status = 2, cause = 'exhausted', failed_at = created_at WHERE sequence IN (1, 2, 3)";
    service(&folder).execute(sql, []).unwrap();
    for command in ["requeue", "discard"] {
        let ended = folder.run(&[command], &TO_FILE);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("[no-condition]") && ended.stderr.contains("--before 0s"), "{ended:?}");
    }
    assert_eq!(done(&folder, &["discard", "--aggregate-id", "2"]), "1 event discarded\n");
    assert_eq!(done(&folder, &["requeue", "--cause", "exhausted"]), "2 events requeued\n");
    let holds = done_json(&folder, &["holds", "--json"]);
    assert_eq!(holds.as_array().unwrap().len(), 2, "{holds}");
    let table = done(&folder, &["holds"]);
    assert!(table.contains("order/0    requeued  1      due now"), "{table}");
    drain(&folder, &TO_FILE);
    assert_eq!(
        arrivals(&events(&folder)).into_values().collect::<Vec<_>>(),
        [vec![0, 3], vec![1, 4], vec![5]]
    );
    assert_eq!(done(&folder, &["holds"]), "nothing is held\n");
    let discarded = done_json(&folder, &["list", "--cause", "discarded", "--json"]);
    assert_eq!(discarded[0]["sequence"], 3);
}

#[test]
fn an_aggregate_and_a_topic_are_paused_and_resumed() {
    let folder = shop(6);
    assert_eq!(done(&folder, &["pause", "order", "1"]), "order/1 is paused\n");
    assert_eq!(done(&folder, &["pause", "--topic", "special"]), "topic special is paused\n");
    let text = done(&folder, &["inspect", "2"]);
    assert!(text.contains("held          order/1 paused, until an operator acts"), "{text}");
    let relay = folder.relay(&TO_FILE);
    until("all others arrive", || events(&folder).len() >= 3);
    assert_eq!(done(&folder, &["resume", "order", "1"]), "order/1 goes on\n");
    until("the aggregate goes on", || events(&folder).len() >= 5);
    assert_eq!(folder.status(&TO_FILE)["pending"], 1);
    assert_eq!(done(&folder, &["resume", "--topic", "special"]), "topic special goes on\n");
    until("the topic goes on", || events(&folder).len() >= 6);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    assert_eq!(done(&folder, &["resume", "order", "1"]), "order/1 was not held\n");
    assert_eq!(done(&folder, &["resume", "--topic", "special"]), "topic special was not held\n");
    for args in [&["pause"][..], &["pause", "order"], &["pause", "order", "1", "--topic", "special"]] {
        assert_eq!(folder.run(args, &TO_FILE).code, Some(2), "{args:?}");
    }
}

fn replayed(folder: &Folder) -> Vec<Value> {
    events(folder).into_iter().filter(|event| event["headers"].is_string()).collect()
}

#[test]
fn what_was_sent_is_replayed_with_its_ids_and_a_mark() {
    let folder = shop(30);
    drain(&folder, &TO_FILE);
    let first = events(&folder);
    let plan = done_json(&folder, &["replay", "--topic", "again", "--dry-run", "--json"]);
    assert_eq!(
        (&plan["events"], &plan["topics"]["again"], &plan["last"]),
        (&30.into(), &30.into(), &30.into())
    );
    let text = done(&folder, &["replay", "--same-topics", "--dry-run", "--aggregate-id", "2"]);
    assert!(
        text.contains("10 events") && text.contains("9 to order\n") && text.contains("1 to special\n"),
        "{text}"
    );
    assert_eq!(events(&folder).len(), 30, "a dry run sends nothing");

    let text = done(&folder, &["replay", "--topic", "again"]);
    assert_eq!(text, "30 events sent, the replay is complete\n");
    let again = replayed(&folder);
    assert_eq!(events(&folder).len(), 60);
    assert_eq!(arrivals(&again), arrivals(&first), "the same ids in the same order");
    let mark: Value = serde_json::from_str(again[0]["headers"].as_str().unwrap()).unwrap();
    assert!(mark["outbox-replay"].as_str().unwrap().len() == 36, "{mark}");

    let id = first[4]["id"].as_str().unwrap();
    let report = done_json(&folder, &["replay", id, "--topic", "one", "--json", "--rate", "1000"]);
    assert_eq!((&report["sent"], &report["ended"]), (&1.into(), &"complete".into()), "{report}");
    assert_eq!(events(&folder).last().unwrap()["id"], id);
    for (args, part) in [
        (&["replay"][..], "--topic"),
        (&["replay", "--topic", "x", "--same-topics"], "--same-topics"),
        (&["replay", "--topic", "{tenant}"], "tenant"),
        (&["replay", "--topic", "x", "--status", "failed"], "requeue"),
        (&["replay", "--topic", "x", "--rate", "0"], "--rate"),
    ] {
        let ended = folder.run(args, &TO_FILE);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{args:?}: {ended:?}");
    }
}

#[test]
fn the_archive_is_replayed_and_a_replay_that_was_stopped_is_resumed() {
    let folder = shop(40);
    let mut archiving = TO_FILE.to_vec();
    archiving.push(("OUTBOX_RELAY_RETENTION_WHEN_SENT", "archive"));
    drain(&folder, &archiving);
    assert_eq!(done(&folder, &["replay", "--topic", "again"]), "0 events sent, the replay is complete\n");
    let listed = done_json(&folder, &["list", "--archived", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 40);
    assert!(done(&folder, &["inspect", "40"]).contains("sent, archived"));

    let replay = &["replay", "--archived", "--topic", "again", "--rate"];
    let running = Running::start(folder.outbox(&[&replay[..], &["20", "--json"]].concat(), &TO_FILE));
    until("some are sent", || replayed(&folder).len() >= 5);
    running.signal("INT");
    let Ended { code, stdout, stderr } = running.ended_with_output();
    assert_eq!(code, Some(1), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["ended"], "stopped", "{report}");
    let sent = report["sent"].as_u64().unwrap();
    assert!((5..40).contains(&sent), "{report}");
    let position = report["position"].to_string();
    let text = done(&folder, &[&replay[..], &["1000", "--after", &position]].concat());
    assert!(text.ends_with("the replay is complete\n"), "{text}");
    let again = replayed(&folder);
    let ids: BTreeSet<_> = again.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 40, "nothing is left out");
    assert_eq!(arrivals(&again), arrivals(&events(&folder)[..40]));
}

const THREE: &str = "[publisher]\nurl = \"file:events.jsonl\"\n\
    [[outbox]]\nname = \"billing\"\nstore.url = \"sqlite:shop.db\"\nrelay.source = \"/billing\"\n\
    [[outbox]]\nname = \"shop\"\nstore.url = \"sqlite:shop.db\"\nstore.prefix = \"shop\"\nrelay.source = \"/shop\"\n\
    [[outbox]]\nname = \"late\"\nstore.url = \"sqlite:late.db\"\nrelay.source = \"/late\"\n";

#[test]
fn several_outboxes_are_relayed_by_one_process_and_one_that_fails_stops_no_other() {
    let folder = Folder::new();
    std::fs::write(folder.path("outbox.toml"), THREE).unwrap();
    let insert = |file: &str, table: &str, ids: std::ops::Range<u64>| {
        let connection = Connection::open(folder.path(file)).unwrap();
        connection.busy_timeout(common::DEADLINE).unwrap();
        for n in ids {
            let sql = format!(
                "INSERT INTO {table} (aggregate_type, aggregate_id, event_type, payload)
                 VALUES ('order', 'a', 'order.placed', '{{\"n\": {n}}}')"
            );
            connection.execute(&sql, []).unwrap();
        }
    };
    for name in ["billing", "shop"] {
        assert_eq!(folder.run(&["migrate", "--outbox", name], &[]).code, Some(0));
    }
    let ended = folder.run(&["check"], &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stdout.contains("outbox late: there is no file"), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    let ended = folder.run(&["list"], &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--outbox: billing, shop, late"), "{ended:?}");

    insert("shop.db", "outbox", 0..10);
    insert("shop.db", "shop", 0..10);
    let mut relay = folder.relay(&[]);
    let of = |source: &str| {
        let events: Vec<_> = events(&folder).into_iter().filter(|event| event["source"] == source).collect();
        arrivals(&events).remove("order/a").unwrap_or_default()
    };
    let all = |end: u64| (0..end).collect::<Vec<_>>();
    until("both are relayed", || of("/billing").len() >= 10 && of("/shop").len() >= 10);
    relay.wait_until_logged("this outbox is not relayed");
    // The one that was not there is found when it comes.
    assert_eq!(folder.run(&["migrate", "--outbox", "late"], &[]).code, Some(0));
    insert("late.db", "outbox", 0..10);
    until("the late one is relayed", || of("/late").len() >= 10);
    // One that breaks while it is relayed is waited for, and the others go on.
    let broken = Connection::open(folder.path("late.db")).unwrap();
    broken.execute_batch("ALTER TABLE outbox RENAME TO away").unwrap();
    insert("shop.db", "shop", 10..20);
    until("the others go on", || of("/shop").len() >= 20);
    broken.execute_batch("ALTER TABLE away RENAME TO outbox").unwrap();
    insert("late.db", "outbox", 10..20);
    until("it goes on as well", || of("/late").len() >= 20);
    for (source, end) in [("/billing", 10), ("/shop", 20), ("/late", 20)] {
        assert_eq!(of(source), all(end), "{source}");
    }
    let status = folder.status(&[]);
    let named: Vec<_> =
        status.as_array().unwrap().iter().map(|report| report["outbox"].as_str().unwrap()).collect();
    assert_eq!(named, ["billing", "shop", "late"]);
    assert_eq!(folder.run(&["status", "--json", "--outbox", "none"], &[]).code, Some(2));
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for name in ["billing", "shop", "late"] {
        let span = format!("\"span\":{{\"outbox\":\"{name}\",");
        let line = |line: &&str| line.contains("\"message\":\"ended\"") && line.contains(&span);
        assert_eq!(ended.stderr.lines().filter(line).count(), 1, "{name}: {ended:?}");
    }
}

#[test]
fn where_no_outbox_can_be_relayed_nothing_is_started() {
    let folder = Folder::new();
    std::fs::write(folder.path("outbox.toml"), THREE).unwrap();
    let ended = folder.run(&["relay"], &[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
    for name in ["billing", "shop", "late"] {
        assert!(ended.stderr.contains(&format!("outbox {name}: ")), "{name}: {ended:?}");
    }
}
