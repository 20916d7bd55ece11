//! Relays on one SQLite file that are killed, one after the other, with no chance to say or write anything.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::{collections::BTreeMap, ops::Range, thread};

use common::{Folder, Running, arrivals, json_lines, until};
use rusqlite::{Connection, params};
use serde_json::Value;

const STORE: (&str, &str) = ("OUTBOX_STORE_URL", "sqlite:shop.db");
const AGGREGATES: u64 = 7;
const KILLS: u64 = 2;
/// Events that are written around each kill.
const ROUND: u64 = 1_500;

/// A relay with a file of its own: who wrote what is part of what is checked. Its lease is short, and yet
/// longer than a busy machine lets a process wait.
fn relay(folder: &Folder, round: u64) -> Running {
    let target = format!("file:events-{round}.jsonl");
    folder.relay(&[
        STORE,
        ("OUTBOX_PUBLISHER_URL", &target),
        ("OUTBOX_RELAY_LEASE_TTL", "6s"),
        ("OUTBOX_RELAY_BEAT_INTERVAL", "500ms"),
        ("OUTBOX_RELAY_PUBLISH_TIMEOUT", "2s"),
        ("OUTBOX_RELAY_LEASE_MARGIN", "200ms"),
    ])
}

fn arrived(folder: &Folder, round: u64) -> Vec<Value> {
    json_lines(&folder.path(&format!("events-{round}.jsonl")))
}

/// The service, a transaction an event.
fn write(folder: &Folder, numbers: Range<u64>) {
    let connection = Connection::open(folder.path("shop.db")).unwrap();
    connection.busy_timeout(common::DEADLINE).unwrap();
    for n in numbers {
        let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
                   VALUES ('order', ?1, 'order.placed', ?2)";
        let aggregate = (n % AGGREGATES).to_string();
        connection.execute(sql, params![aggregate, format!(r#"{{"n": {n}}}"#)]).unwrap();
    }
}

#[test]
fn relays_that_are_killed_lose_nothing_and_order_holds() {
    let folder = Folder::new();
    assert_eq!(folder.run(&["migrate"], &[STORE]).code, Some(0));
    let mut working = relay(&folder, 0);
    working.wait_for_log("partitions changed");
    for round in 0..KILLS {
        let mut waiting = relay(&folder, round + 1);
        thread::scope(|scope| {
            scope.spawn(|| write(&folder, round * ROUND..(round + 1) * ROUND));
            let before = arrived(&folder, round).len();
            until("the relay is in the midst of it", || arrived(&folder, round).len() >= before + 100);
            working.signal("KILL");
        });
        assert_eq!(working.ended().code, None, "a signal has ended it");
        assert_eq!(arrived(&folder, round + 1).len(), 0, "the other one has nothing to do before");
        waiting.wait_for_log("partitions changed");
        working = waiting;
    }
    until("everything is sent", || folder.status(&[STORE])["pending"] == 0);
    working.signal("TERM");
    assert_eq!(working.ended().code, Some(0));

    // Each relay began when the one before it was dead, so their files follow each other in time.
    let events: Vec<Value> = (0..=KILLS).flat_map(|round| arrived(&folder, round)).collect();
    let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for n in 0..KILLS * ROUND {
        expected.entry(format!("order/{}", n % AGGREGATES)).or_default().push(n);
    }
    assert_eq!(arrivals(&events), expected);
}
