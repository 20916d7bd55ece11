//! What the example with real servers shows holds, and it would notice if it did not.
#![cfg(all(feature = "postgres", feature = "kafka"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "these are tests")]

use std::collections::BTreeMap;

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

#[test]
fn the_shop_notices_what_is_lost_invented_out_of_order_or_left_behind() {
    let pair = |order: &str, what: &str| (order.to_owned(), what.to_owned());
    let promised = BTreeMap::from([("a".to_owned(), vec!["placed".to_owned(), "paid".to_owned()])]);
    let problems =
        |arrived: &[(String, String)], pending| postgres_kafka::compare(&promised, arrived, pending).len();
    let good = [pair("a", "placed"), pair("a", "placed"), pair("a", "paid")];
    assert_eq!(problems(&good, 0), 0, "duplicates are allowed");
    assert_eq!(problems(&good[..1], 0), 1, "an event is lost");
    assert_eq!(problems(&[pair("a", "paid"), pair("a", "placed")], 0), 1, "out of order");
    assert_eq!(problems(&[good.as_slice(), &[pair("b", "placed")]].concat(), 0), 1, "an event is invented");
    assert_eq!(problems(&good, 1), 1, "an event is left behind");
}
