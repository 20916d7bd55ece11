//! What is done on each of the databases, and what comes of it.

use serde_json::Value;

use crate::{
    Databases,
    common::{self, Folder, arrivals, json_lines, until},
};

/// The events that an outbox has published under this source.
fn of(folder: &Folder, source: &str) -> Vec<Value> {
    let events = json_lines(&folder.path("events.jsonl"));
    events.into_iter().filter(|event| event["source"] == source).collect()
}

fn done(folder: &Folder, args: &[&str], variables: &[(&str, &str)]) -> String {
    let ended = folder.run(args, variables);
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended.stdout
}

fn done_json(folder: &Folder, args: &[&str], variables: &[(&str, &str)]) -> Value {
    serde_json::from_str(&done(folder, &[args, &["--json"]].concat(), variables)).unwrap()
}

pub(crate) fn an_operator<D: Databases>() {
    let Some(databases) = D::new(1) else { return };
    let folder = Folder::new();
    let mut variables = vec![
        ("OUTBOX_STORE_URL", databases.url()),
        ("OUTBOX_STORE_SCHEMA", databases.names()[0].as_str()),
        ("OUTBOX_PUBLISHER_URL", "file:events.jsonl"),
    ];
    let migrated = done(&folder, &["migrate"], &variables);
    assert!(!migrated.contains("outbox:outbox"), "the password is shown: {migrated}");
    databases.insert(0, 0, 30);
    done(&folder, &["pause", "order", "1"], &variables);
    let relay = folder.relay(&variables);
    until("two orders arrive", || of(&folder, "/outbox").len() >= 20);
    let held = done_json(&folder, &["holds"], &variables);
    assert_eq!((&held[0]["aggregate_id"], &held[0]["paused"]), (&"1".into(), &true.into()), "{held}");
    done(&folder, &["resume", "order", "1"], &variables);
    until("the third arrives", || of(&folder, "/outbox").len() >= 30);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    let first = of(&folder, "/outbox");

    let replay = ["replay", "--topic", "again", "--rate", "500", "--from", "1h"];
    assert_eq!(done(&folder, &replay, &variables), "30 events sent, the replay is complete\n");
    let all = of(&folder, "/outbox");
    assert_eq!(arrivals(&all[30..]), arrivals(&first));
    assert!(all[30]["headers"].as_str().unwrap().contains("outbox-replay"));

    // The same from the archive, which a settle fills.
    variables.push(("OUTBOX_RELAY_RETENTION_WHEN_SENT", "archive"));
    databases.insert(0, 30, 60);
    let relay = folder.relay(&variables);
    until("the rest arrives", || of(&folder, "/outbox").len() >= 90);
    until("and is archived", || folder.status(&variables)["pending"] == 0);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    let plan = done(&folder, &["replay", "--topic", "again", "--archived", "--dry-run"], &variables);
    assert!(plan.starts_with("30 events with "), "{plan}");
    let args = ["replay", "--topic", "again", "--archived", "--aggregate-id", "2"];
    assert_eq!(done(&folder, &args, &variables), "10 events sent, the replay is complete\n");
    let all = of(&folder, "/outbox");
    assert_eq!(arrivals(&all[90..])["order/2"], (30..60).filter(|n| n % 3 == 2).collect::<Vec<_>>());
    let inspected = done_json(&folder, &["inspect", all[95]["id"].as_str().unwrap()], &variables);
    assert_eq!((&inspected["archived"], &inspected["status"]), (&true.into(), &"sent".into()), "{inspected}");
    let listed = done_json(&folder, &["list", "--status", "sent"], &variables);
    assert_eq!(listed.as_array().unwrap().len(), 30);
    what_failed(&databases, &folder, &variables);
}

/// An undecodable event fails alone, and an operator sees it, tries it once more and gives it up.
fn what_failed(databases: &impl Databases, folder: &Folder, variables: &[(&str, &str)]) {
    assert_eq!(done(folder, &["discard", "--before", "0s"], variables), "0 events discarded\n");
    databases.insert_nonsense(0);
    databases.insert(0, 60, 63);
    let relay = folder.relay(variables);
    until("those behind it arrive", || of(folder, "/outbox").len() >= 103);
    until("it has failed", || folder.status(variables)["failed"] == 1);
    let listed = done_json(folder, &["list", "--cause", "undecodable"], variables);
    let sequence = listed[0]["sequence"].to_string();
    assert_eq!(listed[0]["aggregate_id"], "1", "{listed}");
    // A paused topic is not read from, but its holds are.
    assert_eq!(done(folder, &["pause", "--topic", "orders"], variables), "topic orders is paused\n");
    assert_eq!(done(folder, &["resume", "--topic", "orders"], variables), "topic orders goes on\n");
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    assert_eq!(done(folder, &["requeue", "--cause", "undecodable"], variables), "1 event requeued\n");
    let held = done_json(folder, &["holds"], variables);
    assert_eq!(
        (held[0]["sequence"].to_string(), &held[0]["reason"]),
        (sequence, &"requeued".into()),
        "{held}"
    );
    let relay = folder.relay(variables);
    until("it has failed again", || folder.status(variables)["failed"] == 1);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    assert_eq!(done(folder, &["discard", "--aggregate-id", "1"], variables), "1 event discarded\n");
    assert_eq!(done(folder, &["holds"], variables), "nothing is held\n");
    let discarded = done_json(folder, &["list", "--cause", "discarded"], variables);
    assert_eq!(discarded.as_array().unwrap().len(), 1, "{discarded}");
}

pub(crate) fn several_outboxes_in_one_process<D: Databases>() {
    let Some(databases) = D::new(3) else { return };
    let folder = Folder::new();
    let mut file = "[publisher]\nurl = \"file:events.jsonl\"\n".to_owned();
    for (name, schema) in ["a", "b", "c"].iter().zip(databases.names()) {
        let outbox = format!(
            "[[outbox]]\nname = \"{name}\"\nstore.schema = \"{schema}\"\nrelay.source = \"/{name}\"\n"
        );
        file.push_str(&outbox);
    }
    std::fs::write(folder.path("outbox.toml"), file).unwrap();
    let variables = [("OUTBOX_STORE_URL", databases.url())];
    for name in ["a", "b"] {
        done(&folder, &["migrate", "--outbox", name], &variables);
    }
    databases.insert(0, 0, 30);
    databases.insert(1, 0, 30);
    let mut relay = folder.relay(&variables);
    relay.wait_until_logged("this outbox is not relayed");
    until("both are relayed", || of(&folder, "/a").len() >= 30 && of(&folder, "/b").len() >= 30);
    // What a tenant does to its own tables is nothing to the other.
    databases.break_it(0);
    databases.insert(1, 30, 60);
    until("the other goes on", || of(&folder, "/b").len() >= 60);
    databases.mend_it(0);
    databases.insert(0, 30, 60);
    until("the first comes back", || of(&folder, "/a").len() >= 60);
    done(&folder, &["migrate", "--outbox", "c"], &variables);
    databases.insert(2, 0, 60);
    until("the third is found", || of(&folder, "/c").len() >= 60);
    let expected = |order: u64| (0..60).filter(|n| n % 3 == order).collect::<Vec<_>>();
    for source in ["/a", "/b", "/c"] {
        let arrived = arrivals(&of(&folder, source));
        for order in 0..3 {
            assert_eq!(arrived[&format!("order/{order}")], expected(order), "{source}");
        }
    }
    relay.signal("TERM");
    let ended = relay.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

pub(crate) fn processes_may_migrate_at_once<D: Databases>() {
    let Some(databases) = D::new(1) else { return };
    let folder = Folder::new();
    let variables = [("OUTBOX_STORE_URL", databases.url()), ("OUTBOX_STORE_SCHEMA", &databases.names()[0])];
    common::migrate_at_once(&folder, &variables);
    databases.make_newer(0);
    common::assert_newer_is_refused(&folder, &variables);
}

/// Nothing is asked of the server for it, and nothing done to it.
pub(crate) fn printed_migrations_name_their_place<D: Databases>() {
    let Some(databases) = D::new(1) else { return };
    let folder = Folder::new();
    let name = &databases.names()[0];
    let variables = [("OUTBOX_STORE_URL", databases.url()), ("OUTBOX_STORE_SCHEMA", name)];
    let printed = done(&folder, &["migrate", "--print"], &variables);
    assert!(printed.contains(name) && printed.contains("outbox_partitions"), "{printed}");
    let checked = folder.run(&["check"], &[&variables[..], &[("OUTBOX_PUBLISHER_URL", "stdout:")]].concat());
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert!(checked.stdout.contains("[missing-"), "{checked:?}");
}
