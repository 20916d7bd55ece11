//! A consumer that makes each effect once: a billing service with a PostgreSQL database reads orders from
//! Kafka.
//!
//! ```sh
//! scripts/services.sh up postgres kafka
//! eval "$(scripts/services.sh env)"
//! cargo run -p consumers -- kafka orders
//! ```
//!
//! It reads the topic `orders`, which must be there, until it is interrupted, and tells what it does. The
//! order is what matters: begin, ask the inbox, make the effect, commit (`Billing::handle` does these four),
//! and only then let Kafka know. Killed at any point and started again, it writes each invoice once.
//!
//! An error ends the process. Nothing was acknowledged then, and when it is started again, the message comes
//! again.

use outbox::{Receipt, ReceivedEvent};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, StreamConsumer},
    message::{BorrowedMessage, Headers},
};

use crate::billing::{Billing, Error, Settings, Step};

/// Reads the topic without end, and tells how far each message has come.
///
/// # Errors
///
/// If the database or the broker is lost. Nothing was acknowledged then.
pub async fn run(settings: &Settings, tell: impl AsyncFn(Step, &str, Receipt)) -> Result<(), Error> {
    let billing = Billing::open(settings).await?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.broker)
        .set("group.id", &settings.schema)
        // A process that is started again takes the place of the one that died, at once.
        .set("group.instance.id", format!("{}-1", settings.schema))
        .set("auto.offset.reset", "earliest")
        // Offsets are stored below, after the commit. What is stored, Kafka is told from time to time:
        // telling it after each message would be dear, and what it does not know when the process dies comes
        // again, and is seen.
        .set("enable.auto.offset.store", "false")
        .create()?;
    consumer.subscribe(&[&settings.topic])?;
    loop {
        let message = consumer.recv().await?;
        let place = format!("{}/{}/{}", message.topic(), message.partition(), message.offset());
        let payload = message.payload().unwrap_or_default();
        let event = match read(&message) {
            Ok(event) => event,
            Err(error) => {
                billing.set_aside(&place, &error.to_string(), payload).await?;
                consumer.store_offset_from_message(&message)?;
                continue;
            }
        };
        let receipt = billing.handle(&event, payload, &place, &tell).await?;
        consumer.store_offset_from_message(&message)?;
        tell(Step::Acknowledged, event.identity.id(), receipt).await;
    }
}

/// What the headers of a message say of its event.
///
/// # Errors
///
/// If a header is missing or wrong: the message was not written by an outbox.
pub fn read(message: &BorrowedMessage<'_>) -> Result<ReceivedEvent, Error> {
    let headers = message.headers().ok_or("the message has no headers")?;
    let pairs = headers.iter().map(|header| (header.key, header.value.unwrap_or_default()));
    Ok(ReceivedEvent::from_headers(pairs)?)
}
