//! A service in another language: Python inserts, the program relays, and every committed event arrives in
//! order.
#![cfg(any(feature = "sqlite", all(feature = "postgres", feature = "kafka")))]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use std::{collections::BTreeMap, path::Path, process::Command};

use common::{Folder, Running};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plain_insert.py");

const ORDERS: &str = "40";
const CHANGES: &str = "1200";

/// Says what is not there, which is a failure where everything is meant to be there.
fn absent(what: &str) {
    assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{what}");
    eprintln!("{what}");
}

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        absent("python3 is not there: install it, for the tests of services in other languages");
    }
    found
}

/// Starts the service.
fn service(folder: &Folder, url: &str, schema: &str, workers: &str, packages: Option<&Path>) -> Running {
    let mut command = Command::new("python3");
    command.current_dir(folder.path("")).args([SCRIPT, url, schema, ORDERS, CHANGES, workers]);
    if let Some(packages) = packages {
        command.env("PYTHONPATH", packages);
    }
    Running::start(command)
}

/// How many events of each order were committed, by the service's own table.
fn committed(service: Running) -> BTreeMap<String, u64> {
    let ended = service.ended_with_output();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let versions: BTreeMap<String, u64> = serde_json::from_str(&ended.stdout).unwrap();
    let total: u64 = versions.values().sum();
    assert_eq!(total, CHANGES.parse::<u64>().unwrap() * 2 / 3, "two of three transactions were committed");
    versions
}

/// Every version of every order, in order, and nothing else.
fn assert_complete(arrived: &BTreeMap<String, Vec<u64>>, committed: &BTreeMap<String, u64>) {
    let expected: BTreeMap<String, Vec<u64>> = committed
        .iter()
        .filter(|(_, version)| **version > 0)
        .map(|(order, version)| (format!("order/{order}"), (1..=*version).collect()))
        .collect();
    assert_eq!(*arrived, expected);
}

#[cfg(feature = "sqlite")]
#[test]
fn a_python_service_on_sqlite() {
    if !has_python() {
        return;
    }
    let folder = Folder::new();
    let variables = [("OUTBOX_STORE_URL", "sqlite:shop.db"), ("OUTBOX_PUBLISHER_URL", "file:events.jsonl")];
    assert_eq!(folder.run(&["migrate"], &variables).code, Some(0));
    let relay = folder.relay(&variables);
    let committed = committed(service(&folder, "sqlite:shop.db", "", "2", None));
    common::until("everything is sent", || folder.status(&variables)["pending"] == 0);
    relay.signal("TERM");
    assert_eq!(relay.ended().code, Some(0));
    let events = common::json_lines(&folder.path("events.jsonl"));
    assert!(events.iter().all(|event| event["data"]["kept"] == true), "what was rolled back was published");
    assert_complete(&common::arrivals(&events), &committed);
}

#[cfg(all(feature = "postgres", feature = "kafka"))]
mod postgres_to_kafka {
    use std::{
        path::PathBuf,
        time::{Duration, Instant},
    };

    use rdkafka::{
        ClientConfig, Message, Offset, TopicPartitionList,
        admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
        client::DefaultClientContext,
        consumer::{BaseConsumer, Consumer},
        message::Headers,
    };
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    /// The driver for PostgreSQL that is pure Python, so that it can be had on every machine.
    const DRIVER: &str = "pg8000==1.31.5";

    const PARTITIONS: i32 = 3;

    fn server(variable: &str, name: &str, service: &str) -> Option<String> {
        let address = std::env::var(variable).ok();
        if address.is_none() {
            absent(&format!(
                "{name} is not there: {variable} is not set; run `scripts/services.sh up {service}` and \
                 `eval \"$(scripts/services.sh env)\"`"
            ));
        }
        address
    }

    /// A folder with the driver. It stays for the next run.
    fn driver() -> Option<PathBuf> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(DRIVER);
        let works = || {
            let mut python = Command::new("python3");
            python.env("PYTHONPATH", &folder).args(["-c", "import pg8000.dbapi"]);
            python.output().is_ok_and(|output| output.status.success())
        };
        if !works() {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]);
            let installed = pip.arg("--target").arg(&folder).arg(DRIVER).output().unwrap();
            if !works() {
                let why = String::from_utf8_lossy(&installed.stderr).into_owned();
                absent(&format!(
                    "{DRIVER} is not there, and pip could not install it (is python3-pip there?): {why}"
                ));
                return None;
            }
        }
        Some(folder)
    }

    fn create_topic(brokers: &str, name: &str) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let created = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
        assert_eq!(created, [Ok(name.to_owned())]);
    }

    /// Everything that is in the topic, in the form of the JSON lines as far as the tests look at it.
    fn read_topic(brokers: &str, topic: &str) -> Vec<Value> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", topic)
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        let mut left = 0;
        for partition in 0..PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(topic, partition, common::DEADLINE).unwrap();
            left += high - low;
            list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let mut events = Vec::new();
        let end = Instant::now() + common::DEADLINE;
        while left > 0 {
            assert!(Instant::now() < end, "{left} messages of the topic were not read");
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.unwrap();
            left -= 1;
            let header = |name: &str| {
                let header = message.headers().unwrap().iter().find(|header| header.key == name);
                String::from_utf8(header.unwrap().value.unwrap().to_vec()).unwrap()
            };
            let data: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
            assert_eq!(header("ce_type"), "order.changed");
            let key = std::str::from_utf8(message.key().unwrap()).unwrap();
            assert_eq!(header("ce_subject"), format!("order/{key}"), "the key is the aggregate's id");
            events.push(json!({"id": header("ce_id"), "subject": header("ce_subject"), "data": data}));
        }
        events
    }

    #[test]
    fn a_python_service_on_postgres() {
        let postgres = server("OUTBOX_TEST_POSTGRES_URL", "PostgreSQL", "postgres");
        let kafka = server("OUTBOX_TEST_KAFKA_BROKERS", "Apache Kafka", "kafka");
        let (Some(postgres), Some(brokers)) = (postgres, kafka) else { return };
        if !has_python() {
            return;
        }
        let Some(driver) = driver() else { return };
        let folder = Folder::new();
        let name = format!("outbox_{}", Uuid::now_v7().simple());
        create_topic(&brokers, &name);
        let publisher = format!("kafka://{brokers}");
        let variables = [
            ("OUTBOX_STORE_URL", postgres.as_str()),
            ("OUTBOX_STORE_SCHEMA", &name),
            ("OUTBOX_PUBLISHER_URL", &publisher),
            ("OUTBOX_RELAY_TOPIC", &name),
            ("OUTBOX_PUBLISHER_KAFKA_COMPRESSION_TYPE", "lz4"),
        ];
        let migrated = folder.run(&["migrate"], &variables);
        assert_eq!(migrated.code, Some(0), "{migrated:?}");
        assert!(!migrated.stdout.contains("outbox:outbox"), "the password is shown: {migrated:?}");
        let checked = folder.run(&["check"], &variables);
        assert_eq!(checked.code, Some(0), "{checked:?}");

        // Two relays share the table, and one of them leaves while the service writes.
        let mut relays = [folder.relay(&variables), folder.relay(&variables)];
        let mut running = service(&folder, &postgres, &name, "4", Some(&driver));
        common::until("something is sent while the service writes", || {
            !running.is_running() || folder.status(&variables)["sent"].as_u64().unwrap() > 100
        });
        let [first, second] = &mut relays;
        first.wait_for_log("partitions changed");
        second.wait_for_log("partitions changed");
        first.signal("TERM");
        let committed = committed(running);
        common::until("everything is sent", || folder.status(&variables)["pending"] == 0);
        second.signal("TERM");
        for relay in relays {
            let ended = relay.ended();
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        let events = read_topic(&brokers, &name);
        assert!(
            events.iter().all(|event| event["data"]["kept"] == true),
            "what was rolled back was published"
        );
        assert_complete(&common::arrivals(&events), &committed);
        let status = folder.status(&variables);
        assert_eq!(
            (&status["sent"], &status["failed"]),
            (&committed.values().sum::<u64>().into(), &0.into()),
            "{status}"
        );
    }

    #[test]
    fn a_check_of_servers_names_what_is_wrong() {
        let Some(postgres) = server("OUTBOX_TEST_POSTGRES_URL", "PostgreSQL", "postgres") else { return };
        let Some(brokers) = server("OUTBOX_TEST_KAFKA_BROKERS", "Apache Kafka", "kafka") else { return };
        let folder = Folder::new();
        let schema = format!("outbox_{}", Uuid::now_v7().simple());
        let publisher = format!("kafka://{brokers}");
        let variables = [
            ("OUTBOX_STORE_URL", postgres.as_str()),
            ("OUTBOX_STORE_SCHEMA", &schema),
            ("OUTBOX_PUBLISHER_URL", &publisher),
            ("OUTBOX_RELAY_TOPIC", "there.is.no.such.topic"),
        ];
        let ended = folder.run(&["check"], &variables);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stdout.contains("[missing-table]") && ended.stdout.contains(&schema), "{ended:?}");
        assert!(ended.stdout.contains("[unknown-topic]"), "both sides are named at once: {ended:?}");

        // Nothing listens on port 1.
        let nowhere = "postgres://me:hush@127.0.0.1:1/shop";
        let variables = [("OUTBOX_STORE_URL", nowhere), ("OUTBOX_PUBLISHER_URL", "stdout:")];
        let ended = folder.run(&["relay"], &variables);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.stderr.contains("error [unreachable]"), "{ended:?}");
        let ended_2 = folder.run(&["status"], &variables);
        assert_eq!(ended_2.code, Some(1), "{ended_2:?}");
        assert!(!format!("{ended:?}{ended_2:?}").contains("hush"), "{ended:?} {ended_2:?}");
    }
}
