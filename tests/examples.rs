//! What the example with real servers shows holds. That it would notice if it did not is shown in `quickstart.rs`, whose
//! shop it shares.
#![cfg(all(feature = "postgres", feature = "kafka"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

#[path = "../examples/postgres_kafka.rs"]
#[allow(dead_code, unused_attributes)]
mod postgres_kafka;

/// The address of a server, or a line that says that it is missing.
fn address(server: &str, name: &str, variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        let text = format!(
            "{server} is not there: {variable} is not set; run `scripts/services.sh up {name}` and \
             `eval \"$(scripts/services.sh env)\"`"
        );
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{text}");
        eprintln!("{text}");
    }
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_on_postgresql_and_kafka_keeps_its_promises() {
    let postgres = address("PostgreSQL", "postgres", "OUTBOX_TEST_POSTGRES_URL");
    let brokers = address("Apache Kafka", "kafka", "OUTBOX_TEST_KAFKA_BROKERS");
    let (Some(postgres), Some(brokers)) = (postgres, brokers) else { return };
    let problems = postgres_kafka::run(&postgres, &brokers).await.expect("the example runs");
    assert!(problems.is_empty(), "{problems:?}");
}
