//! Runs one of the consumers until it is interrupted: `cargo run -p consumers -- kafka orders`.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use consumers::{
    billing::{Error, Settings, Step},
    kafka, nats, rabbitmq,
};
use outbox::Receipt;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, topic] = &arguments[..] else {
        return Err("name the broker and what is to be read, such as `kafka orders`".into());
    };
    tokio::select! {
        ended = consume(broker, topic) => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn consume(broker: &str, topic: &str) -> Result<(), Error> {
    let tell = async |step: Step, event: &str, receipt: Receipt| println!("{event}: {receipt:?}, {step:?}");
    let settings = |address| Settings::from_environment(address, topic);
    match broker {
        "kafka" => kafka::run(&settings("OUTBOX_TEST_KAFKA_BROKERS")?, tell).await,
        "nats" => nats::run(&settings("OUTBOX_TEST_NATS_URL")?, tell).await,
        "rabbitmq" => rabbitmq::run(&settings("OUTBOX_TEST_AMQP_URL")?, tell).await,
        _ => Err(format!("unknown broker {broker}: expected kafka, nats or rabbitmq").into()),
    }
}
