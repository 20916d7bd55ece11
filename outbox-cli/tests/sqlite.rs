//! The program as a user runs it, from a SQLite file to JSON lines.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
};

use common::{Folder, Running, arrivals, json_lines, until};
use rusqlite::{Connection, params};
use serde_json::Value;

const STORE: (&str, &str) = ("OUTBOX_STORE_URL", "sqlite:shop.db");
const TO_FILE: [(&str, &str); 2] = [STORE, ("OUTBOX_PUBLISHER_URL", "file:events.jsonl")];
const TO_STDOUT: [(&str, &str); 2] = [STORE, ("OUTBOX_PUBLISHER_URL", "stdout:")];

const AGGREGATES: u64 = 5;

/// A service's own connection. It knows nothing of this project.
fn service(folder: &Folder) -> Connection {
    let connection = Connection::open(folder.path("shop.db")).unwrap();
    connection.busy_timeout(common::DEADLINE).unwrap();
    connection
}

/// Writes events with the numbers `from..to`, each in a transaction, and beside each one that is rolled back.
fn insert(connection: &mut Connection, numbers: std::ops::Range<u64>) {
    let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', ?1, 'order.placed', ?2)";
    for n in numbers {
        let aggregate = (n % AGGREGATES).to_string();
        let lost = connection.transaction().unwrap();
        lost.execute(sql, params![aggregate, r#"{"n": 999999999}"#]).unwrap();
        lost.rollback().unwrap();
        let kept = connection.transaction().unwrap();
        kept.execute(sql, params![aggregate, format!(r#"{{"n": {n}}}"#)]).unwrap();
        kept.commit().unwrap();
    }
}

/// What must arrive: each aggregate's numbers, in order.
fn expected(numbers: std::ops::Range<u64>) -> BTreeMap<String, Vec<u64>> {
    let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for n in numbers {
        expected.entry(format!("order/{}", n % AGGREGATES)).or_default().push(n);
    }
    expected
}

fn migrated() -> Folder {
    let folder = Folder::new();
    let ended = folder.run(&["migrate"], &[STORE]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    folder
}

#[test]
fn what_is_inserted_arrives_in_order_and_a_restart_loses_nothing() {
    let folder = migrated();
    let mut connection = service(&folder);
    let arrived = || json_lines(&folder.path("events.jsonl"));
    insert(&mut connection, 0..50);
    let relay = folder.relay(&TO_FILE);
    until("the first fifty arrive", || arrived().len() >= 50);
    insert(&mut connection, 50..150);
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("\"message\":\"ended\""), "{ended:?}");
    let at_stop = arrived().len() as u64;
    let status = folder.status(&[STORE]);
    assert_eq!(status["sent"], at_stop, "what arrived is what is recorded as sent: {status}");
    assert_eq!((&status["relays_live"], &status["partitions_owned"]), (&0.into(), &0.into()), "{status}");

    insert(&mut connection, 150..200);
    let relay = folder.relay(&TO_FILE);
    until("the rest arrives", || arrived().len() >= 200);
    relay.signal("INT");
    assert_eq!(relay.ended().code, Some(0));
    let events = arrived();
    assert_eq!(arrivals(&events), expected(0..200));
    assert_eq!(events.len(), 200, "an orderly stop makes no duplicate");
    assert_eq!(
        (events[0]["type"].as_str(), events[0]["source"].as_str()),
        (Some("order.placed"), Some("/outbox"))
    );
}

/// A relay whose first message fills the pipe of its standard output, so that it stays in flight until the
/// pipe is read. The first byte has been read, so the message is known to be on its way.
fn relay_with_a_message_in_flight(folder: &Folder, variables: &[(&str, &str)]) -> Running {
    let payload = format!(r#"{{"n": 0, "filling": "{}"}}"#, "x".repeat(512 * 1024));
    service(folder)
        .execute(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             VALUES ('order', '0', 'order.placed', ?1)",
            [payload],
        )
        .unwrap();
    let mut relay = folder.relay(variables);
    let mut first = [0];
    relay.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"{");
    relay
}

#[test]
fn sigterm_lets_what_is_in_flight_finish() {
    let folder = migrated();
    let mut relay = relay_with_a_message_in_flight(&folder, &TO_STDOUT);
    // As what ends a process group does, which is one request.
    relay.signals(&["TERM", "TERM", "INT"]);
    relay.wait_for_log("finishing what is in flight");
    assert!(relay.is_running());
    let mut text = "{".to_owned();
    relay.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(event["data"]["n"], 0);
    let status = folder.status(&[STORE]);
    assert_eq!((&status["pending"], &status["sent"]), (&0.into(), &1.into()), "{status}");
}

#[test]
fn sighup_ends_nothing_and_sigquit_lets_what_is_in_flight_finish() {
    let folder = migrated();
    let mut relay = relay_with_a_message_in_flight(&folder, &TO_STDOUT);
    relay.signal("HUP");
    relay.wait_for_log("SIGHUP");
    relay.signal("QUIT");
    relay.wait_for_log("SIGQUIT");
    assert!(relay.is_running());
    relay.stdout.take().unwrap().read_to_string(&mut String::new()).unwrap();
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(folder.status(&[STORE])["sent"], 1);
}

#[test]
fn what_the_database_refuses_to_record_is_named_and_holds_up_its_own_aggregate_alone() {
    let folder = migrated();
    let connection = service(&folder);
    connection
        .execute_batch(
            "CREATE TRIGGER odd BEFORE UPDATE ON outbox WHEN OLD.aggregate_id = 'odd'
             BEGIN SELECT RAISE(ABORT, 'the trigger odd says no'); END;
             WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 200)
             INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', CASE n % 10 WHEN 0 THEN 'odd' ELSE CAST(n AS TEXT) END, 'order.placed', '{}' FROM numbers;",
        )
        .unwrap();
    let mut relay = folder.relay(&TO_FILE);
    relay.wait_for_log("the trigger odd says no");
    until("all others are recorded", || folder.status(&[STORE])["sent"] == 180);
    assert_eq!(folder.status(&[STORE])["pending"], 20);
    let of_odd = || {
        let events = json_lines(&folder.path("events.jsonl"));
        events.iter().filter(|event| event["subject"] == "order/odd").count()
    };
    let published = of_odd();
    connection
        .execute_batch(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES
             ('order', 'odd', 'order.placed', '{}'), ('order', 'even', 'order.placed', '{}');",
        )
        .unwrap();
    until("another one is recorded", || folder.status(&[STORE])["sent"] == 181);
    assert_eq!(of_odd(), published, "no more is published of what is not recorded");
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("order/odd"), "the aggregate is named: {ended:?}");

    connection.execute_batch("DROP TRIGGER odd").unwrap();
    let relay = folder.relay(&TO_FILE);
    until("the odd ones are recorded", || folder.status(&[STORE])["sent"] == 202);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
}

#[test]
fn an_event_that_is_given_up_is_named_with_its_own_cause() {
    let folder = migrated();
    service(&folder)
        .execute_batch(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             VALUES ('order', 'bad' || char(10) || 'id', 'order.placed', '{}');",
        )
        .unwrap();
    let mut relay = folder.relay(&TO_STDOUT);
    drop(relay.stdout.take());
    insert(&mut service(&folder), 0..5);
    relay.wait_for_log("the broker is unavailable");
    relay.wait_for_log("an event was given up");
    until("it is recorded", || folder.status(&[STORE])["failed"] == 1);
    relay.signal("TERM");
    let log = relay.ended().stderr;
    let line = log.lines().find(|line| line.contains("an event was given up")).unwrap();
    assert!(line.contains("control character") && line.contains("undecodable"), "{line}");
    assert!(!line.contains("pipe"), "{line}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = migrated();
    let mut variables = TO_STDOUT.to_vec();
    variables.extend([
        ("OUTBOX_RELAY_SHUTDOWN_TIMEOUT", "1h"),
        ("OUTBOX_RELAY_PUBLISH_TIMEOUT", "1h"),
        ("OUTBOX_RELAY_LEASE_TTL", "2h"),
    ]);
    let mut relay = relay_with_a_message_in_flight(&folder, &variables);
    relay.signal("TERM");
    relay.wait_for_log("SIGTERM");
    assert!(relay.is_running());
    // Signals that come together with the first are the same request.
    until("a later signal ends it", || {
        let runs = relay.is_running();
        if runs {
            relay.signal("INT");
        }
        !runs
    });
    let ended = relay.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("a second signal, SIGINT; messages in flight, now 1,"), "{ended:?}");
    assert_eq!(folder.status(&[STORE])["pending"], 1, "what was in flight is still to be sent");
}

#[test]
fn a_shutdown_that_cannot_finish_ends_with_a_failure() {
    let folder = migrated();
    let mut variables = TO_STDOUT.to_vec();
    variables.push(("OUTBOX_RELAY_SHUTDOWN_TIMEOUT", "50ms"));
    let relay = relay_with_a_message_in_flight(&folder, &variables);
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("relay.shutdown_timeout passed; messages in flight, 1,"), "{ended:?}");
    assert_eq!(folder.status(&[STORE])["pending"], 1, "what was in flight is still to be sent");
}

#[test]
fn a_closed_pipe_is_an_unavailable_broker_and_loses_nothing() {
    let folder = migrated();
    let mut relay = folder.relay(&TO_STDOUT);
    drop(relay.stdout.take());
    insert(&mut service(&folder), 0..20);
    relay.wait_for_log("the broker is unavailable");
    assert!(relay.is_running());
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let status = folder.status(&[STORE]);
    assert_eq!(
        (&status["pending"], &status["sent"], &status["failed"]),
        (&20.into(), &0.into(), &0.into()),
        "{status}"
    );

    let mut relay = folder.relay(&TO_STDOUT);
    let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
    let events: Vec<Value> =
        lines.by_ref().take(20).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(arrivals(&events), expected(0..20));
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        service(&folder).query_row("SELECT max(attempts) FROM outbox", [], |row| row.get(0)),
        Ok(1),
        "no attempt was spent on it"
    );
}

#[test]
fn a_check_names_what_is_wrong_and_the_relay_does_not_start() {
    let folder = migrated();
    fs::write(folder.path("empty.db"), "").unwrap();
    fs::write(folder.path("text.db"), "this is not a database at all, whatever its name says").unwrap();
    fs::copy(folder.path("shop.db"), folder.path("old.db")).unwrap();
    let old = Connection::open(folder.path("old.db")).unwrap();
    assert_eq!(old.execute("UPDATE outbox_schema SET version = 0", []).unwrap(), 1);
    fs::copy(folder.path("shop.db"), folder.path("broken.db")).unwrap();
    let broken = Connection::open(folder.path("broken.db")).unwrap();
    broken.execute_batch("DROP TABLE outbox_holds; DROP TABLE outbox_topics").unwrap();
    for (url, findings) in [
        ("sqlite:absent.db", &["[missing-file]", "absent.db"][..]),
        ("sqlite:empty.db", &["[missing-table]", "empty.db"]),
        ("sqlite:text.db", &["[not-a-database]", "text.db"]),
        ("sqlite:old.db", &["[schema-older]", "version 0"]),
        ("sqlite:broken.db", &["[missing-table]", "outbox_holds", "outbox_topics"]),
    ] {
        let variables = [("OUTBOX_STORE_URL", url), TO_FILE[1]];
        let ended = folder.run(&["check"], &variables);
        assert_eq!(ended.code, Some(2), "{url}: {ended:?}");
        for part in findings.iter().chain(&["error "]) {
            assert!(ended.stdout.contains(part), "{part} for {url}: {ended:?}");
        }
        let ended = folder.run(&["relay"], &variables);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{url}: {ended:?}");
        assert!(findings.iter().all(|part| ended.stderr.contains(part)), "{url}: {ended:?}");
        assert!(!ended.stderr.contains("relaying"), "{ended:?}");
    }
    let ended = folder.run(&["check"], &TO_FILE);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "nothing to report\n"), "{ended:?}");
    assert!(!folder.path("absent.db").exists(), "a check makes nothing");
}

#[test]
fn a_warning_does_not_keep_the_relay_from_starting() {
    let folder = migrated();
    let journal: String =
        service(&folder).query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
    assert_eq!(journal, "delete");
    let ended = folder.run(&["check"], &TO_FILE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("warning [journal-mode]"), "{ended:?}");
    let mut relay = Running::start(folder.outbox(&["relay"], &TO_FILE));
    relay.wait_for_log("warning [journal-mode]");
    relay.wait_for_log("relaying");
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
}

#[test]
fn the_printed_migration_makes_the_tables_that_check_wants() {
    let folder = Folder::new();
    let variables = [STORE, ("OUTBOX_STORE_PREFIX", "events"), TO_FILE[1]];
    let ended = folder.run(&["migrate", "--print"], &variables);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!folder.path("shop.db").exists(), "printing makes nothing");
    service(&folder).execute_batch(&ended.stdout).unwrap();
    let ended = folder.run(&["check"], &variables);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "nothing to report\n"), "{ended:?}");
    assert_eq!(folder.run(&["migrate"], &variables).code, Some(0), "migrating again does nothing");
}

#[test]
fn the_status_shows_what_waits_and_why() {
    let folder = migrated();
    let mut connection = service(&folder);
    insert(&mut connection, 0..7);
    connection
        .execute_batch(
            "INSERT INTO outbox_holds (aggregate_type, aggregate_id, sequence, until, reason)
             VALUES ('order', '1', 2, NULL, 'parked'), ('order', '2', 3, 4102444800000000, 'backoff');
             INSERT INTO outbox_topics (topic) VALUES ('orders');",
        )
        .unwrap();
    let status = folder.status(&[STORE]);
    assert_eq!(
        (&status["pending"], &status["sent"], &status["holds"]["total"]),
        (&7.into(), &0.into(), &2.into()),
        "{status}"
    );
    assert_eq!(status["holds"]["by_reason"], serde_json::json!({"backoff": 1, "parked": 1}));
    assert_eq!(status["paused_topics"], serde_json::json!(["orders"]));
    assert!(status["oldest_pending_age_seconds"].as_f64().unwrap() >= 0.0, "{status}");
    let listed = status["holds"]["listed"].as_array().unwrap();
    let parked = listed.iter().find(|hold| hold["reason"] == "parked").unwrap();
    assert_eq!(
        (&parked["aggregate_id"], &parked["sequence"], &parked["due_in_seconds"]),
        (&"1".into(), &2.into(), &Value::Null)
    );

    let ended = folder.run(&["status"], &[STORE]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in [
        "sqlite:shop.db",
        "7, the oldest since",
        "0 of 1 owned",
        "2: 1 backoff, 1 parked",
        "order/1 parked behind event 2, until an operator acts",
        "order/2 backoff behind event 3, due in",
        "paused topics  orders",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    let ended = folder.run(&["status"], &[("OUTBOX_STORE_URL", "sqlite:absent.db")]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.starts_with("error: "), "{ended:?}");
}

#[test]
fn two_relays_share_a_file_and_one_takes_over_from_the_other() {
    let folder = migrated();
    let arrived = || json_lines(&folder.path("events.jsonl"));
    let mut first = folder.relay(&TO_FILE);
    first.wait_for_log("partitions changed");
    let mut second = folder.relay(&TO_FILE);
    insert(&mut service(&folder), 0..10);
    until("the first relays", || arrived().len() >= 10);
    first.signal("TERM");
    assert_eq!(first.ended().code, Some(0));
    second.wait_for_log("partitions changed");
    insert(&mut service(&folder), 10..20);
    until("the second relays", || arrived().len() >= 20);
    assert_eq!(arrivals(&arrived()), expected(0..20));
    second.signal("TERM");
    assert_eq!(second.ended().code, Some(0));
}

#[test]
fn processes_may_migrate_at_once() {
    let folder = Folder::new();
    common::migrate_at_once(&folder, &[STORE]);
    service(&folder).execute("UPDATE outbox_schema SET version = 9", []).unwrap();
    common::assert_newer_is_refused(&folder, &[STORE]);
}
