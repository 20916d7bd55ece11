//! The order system on real servers, as its command runs it: with each broker, what was promised came of it,
//! though a relay, the order service and a consumer were killed. That the reconciliation would notice if it
//! had not is shown by the tests in `src/reconcile.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// Whether a server is there; if not, a line that says so.
fn is_there(server: &str, name: &str, variable: &str) -> bool {
    let is_there = std::env::var(variable).is_ok();
    if !is_there {
        let text = format!(
            "{server} is not there: {variable} is not set; run `scripts/services.sh up {name}` and \
             `eval \"$(scripts/services.sh env)\"`"
        );
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{text}");
        eprintln!("{text}");
    }
    is_there
}

async fn the_order_system_keeps_its_promises(broker: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_order_system"))
        .args(["demo", "--broker", broker, "--json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let report: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"));

    assert_eq!(report["problems"], serde_json::json!([]));
    assert_eq!(report["broker"], broker);
    assert_eq!(report["killed"], serde_json::json!(["relay-1", "order-service", "billing"]));
    let (placed, cancelled) = (count("orders_placed"), count("orders_cancelled"));
    assert_eq!(placed + count("orders_rolled_back"), 120, "every order was accepted or refused");
    assert!(cancelled > 0 && cancelled < placed && count("orders_rolled_back") > 0, "{report}");
    assert!(count("requests_asked_again") > 0, "no answer was lost: {report}");
    // Placed and cancelled, or placed, paid and shipped.
    let events = 3 * placed - cancelled;
    assert_eq!(count("events_sent"), events);
    assert_eq!(count("notified"), events);
    assert_eq!(count("stock_moved"), placed + cancelled);
    assert_eq!(count("invoiced"), placed + cancelled);
    // It was killed between commit and acknowledgement, so that event came again.
    assert!(report["duplicates"]["billing"].as_u64().unwrap() > 0, "{report}");
    eprintln!("{report}");
}

#[tokio::test]
async fn with_kafka() {
    let postgres = is_there("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    if is_there("Apache Kafka", "kafka", "OUTBOX_TEST_KAFKA_BROKERS") && postgres {
        the_order_system_keeps_its_promises("kafka").await;
    }
}

#[tokio::test]
async fn with_rabbitmq() {
    let postgres = is_there("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    if is_there("RabbitMQ", "rabbitmq", "OUTBOX_TEST_AMQP_URL") && postgres {
        the_order_system_keeps_its_promises("rabbitmq").await;
    }
}

#[tokio::test]
async fn with_nats() {
    let postgres = is_there("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    if is_there("NATS", "nats", "OUTBOX_TEST_NATS_URL") && postgres {
        the_order_system_keeps_its_promises("nats").await;
    }
}
