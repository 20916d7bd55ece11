//! What the example shows holds. That it would notice if it did not is shown in `shop`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

use std::process::Command;

/// True if there is the address of a server; else a line says that it is missing.
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

#[test]
fn the_shop_on_postgresql_and_kafka_keeps_its_promises() {
    let postgres = is_there("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    let kafka = is_there("Apache Kafka", "kafka", "OUTBOX_TEST_KAFKA_BROKERS");
    if !(postgres && kafka) {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_postgres_kafka")).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}:\n{said}\n{errors}", output.status);
    assert!(said.contains("Nothing was lost, nothing was invented"), "{said}");
}
