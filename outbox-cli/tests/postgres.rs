//! The program on PostgreSQL: an operator's commands, and two outboxes in one process.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use common::{Folder, arrivals, json_lines, until};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const VARIABLE: &str = "OUTBOX_TEST_POSTGRES_URL";

/// The server, or a line that says which is missing.
fn url() -> Option<String> {
    let url = std::env::var(VARIABLE).ok();
    if url.is_none() {
        let missing =
            format!("PostgreSQL is not there: run scripts/services.sh up postgres and set {VARIABLE}");
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{missing}");
        eprintln!("{missing}");
    }
    url
}

/// Schemas that are removed with it.
struct Schemas {
    url: String,
    names: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

impl Schemas {
    fn new(count: usize) -> Option<Self> {
        let name = |_| format!("outbox_cli_{}", &uuid::Uuid::now_v7().simple().to_string()[..24]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut schemas = Self { url: url()?, names: Vec::new(), runtime };
        for index in 0..count {
            schemas.names.push(format!("{}_{index}", name(index)));
        }
        Some(schemas)
    }

    fn run(&self, sql: &str) {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }

    /// Writes events with the numbers `from..to`, of three orders.
    fn insert(&self, index: usize, from: u64, to: u64) {
        self.run(&format!(
            "INSERT INTO {}.outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', (n % 3)::text, 'order.placed', convert_to('{{\"n\": ' || n || '}}', 'UTF8')
             FROM generate_series({from}, {to} - 1) n ORDER BY n",
            self.names[index]
        ));
    }
}

impl Drop for Schemas {
    fn drop(&mut self) {
        for name in self.names.clone() {
            self.run(&format!("DROP SCHEMA IF EXISTS {name} CASCADE"));
        }
    }
}

fn of(folder: &Folder, source: &str) -> Vec<Value> {
    let events = json_lines(&folder.path("events.jsonl"));
    events.into_iter().filter(|event| event["source"] == source).collect()
}

#[test]
fn an_operator_on_postgresql() {
    let Some(schemas) = Schemas::new(1) else { return };
    let folder = Folder::new();
    let (url, schema) = (schemas.url.clone(), schemas.names[0].clone());
    let mut variables = vec![
        ("OUTBOX_STORE_URL", url.as_str()),
        ("OUTBOX_STORE_SCHEMA", schema.as_str()),
        ("OUTBOX_PUBLISHER_URL", "file:events.jsonl"),
    ];
    let done = |args: &[&str], variables: &[(&str, &str)]| {
        let ended = folder.run(args, variables);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        ended.stdout
    };
    done(&["migrate"], &variables);
    schemas.insert(0, 0, 30);
    done(&["pause", "order", "1"], &variables);
    let relay = folder.relay(&variables);
    until("two orders arrive", || of(&folder, "/outbox").len() >= 20);
    done(&["resume", "order", "1"], &variables);
    until("the third arrives", || of(&folder, "/outbox").len() >= 30);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    let first = of(&folder, "/outbox");

    let text = done(&["replay", "--topic", "again", "--rate", "500", "--from", "1h"], &variables);
    assert_eq!(text, "30 events sent, the replay is complete\n");
    let all = of(&folder, "/outbox");
    assert_eq!(arrivals(&all[30..]), arrivals(&first));
    assert!(all[30]["headers"].as_str().unwrap().contains("outbox-replay"));

    // The same from the archive, which a settle fills.
    variables.push(("OUTBOX_RELAY_RETENTION_WHEN_SENT", "archive"));
    schemas.insert(0, 30, 60);
    let relay = folder.relay(&variables);
    until("the rest arrives", || of(&folder, "/outbox").len() >= 90);
    until("and is archived", || folder.status(&variables)["pending"] == 0);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    let plan = done(&["replay", "--topic", "again", "--archived", "--dry-run"], &variables);
    assert!(plan.starts_with("30 events with "), "{plan}");
    let args = ["replay", "--topic", "again", "--archived", "--aggregate-id", "2"];
    assert_eq!(done(&args, &variables), "10 events sent, the replay is complete\n");
    let all = of(&folder, "/outbox");
    assert_eq!(arrivals(&all[90..])["order/2"], (30..60).filter(|n| n % 3 == 2).collect::<Vec<_>>());
    let inspected = done(&["inspect", all[95]["id"].as_str().unwrap(), "--json"], &variables);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!((&inspected["archived"], &inspected["status"]), (&true.into(), &"sent".into()), "{inspected}");
    let listed: Value =
        serde_json::from_str(&done(&["list", "--json", "--status", "sent"], &variables)).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 30);
    assert_eq!(done(&["discard", "--before", "0s"], &variables), "0 events discarded\n");
}

#[test]
fn two_schemas_in_one_process() {
    let Some(schemas) = Schemas::new(3) else { return };
    let folder = Folder::new();
    let names = &schemas.names;
    let mut file = "[publisher]\nurl = \"file:events.jsonl\"\n".to_owned();
    for (name, schema) in ["a", "b", "c"].iter().zip(names) {
        let outbox = format!(
            "[[outbox]]\nname = \"{name}\"\nstore.schema = \"{schema}\"\nrelay.source = \"/{name}\"\n"
        );
        file.push_str(&outbox);
    }
    std::fs::write(folder.path("outbox.toml"), file).unwrap();
    let url = schemas.url.clone();
    let variables = [("OUTBOX_STORE_URL", url.as_str())];
    for name in ["a", "b"] {
        let ended = folder.run(&["migrate", "--outbox", name], &variables);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    schemas.insert(0, 0, 30);
    schemas.insert(1, 0, 30);
    let mut relay = folder.relay(&variables);
    relay.wait_for_log("this outbox is not relayed");
    until("both are relayed", || of(&folder, "/a").len() >= 30 && of(&folder, "/b").len() >= 30);
    // What a tenant does to its own tables is nothing to the other.
    schemas.run(&format!("ALTER TABLE {}.outbox_holds RENAME TO away", names[0]));
    schemas.insert(1, 30, 60);
    until("the other goes on", || of(&folder, "/b").len() >= 60);
    schemas.run(&format!("ALTER TABLE {}.away RENAME TO outbox_holds", names[0]));
    schemas.insert(0, 30, 60);
    until("the first comes back", || of(&folder, "/a").len() >= 60);
    let ended = folder.run(&["migrate", "--outbox", "c"], &variables);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    schemas.insert(2, 0, 60);
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

#[test]
fn processes_may_migrate_at_once() {
    let Some(schemas) = Schemas::new(1) else { return };
    let folder = Folder::new();
    let variables = [("OUTBOX_STORE_URL", schemas.url.as_str()), ("OUTBOX_STORE_SCHEMA", &schemas.names[0])];
    common::migrate_at_once(&folder, &variables);
    schemas
        .run(&format!("UPDATE {}.outbox_meta SET value = 9 WHERE key = 'schema_version'", schemas.names[0]));
    common::assert_newer_is_refused(&folder, &variables);
}
