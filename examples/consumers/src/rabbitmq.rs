//! A consumer that makes each effect once: a billing service with a PostgreSQL database reads orders from
//! RabbitMQ.
//!
//! ```sh
//! scripts/services.sh up postgres rabbitmq
//! eval "$(scripts/services.sh env)"
//! cargo run -p consumers -- rabbitmq orders
//! ```
//!
//! It reads the queue `orders`, which it declares, until it is interrupted, and tells what it does. The order
//! is what matters: begin, ask the inbox, make the effect, commit (`Billing::handle` does these four), and
//! only then acknowledge. Killed at any point and started again, it writes each invoice once.
//!
//! An error ends the process. Nothing was acknowledged then, and when it is started again, the message comes
//! again.
//!
//! Where several processes are to stand by, declare the queue with `x-single-active-consumer`: two that read
//! beside each other would overtake each other.

use futures::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use outbox::{Receipt, ReceivedEvent};
use uuid::Uuid;

use crate::billing::{Billing, Error, Settings, Step};

/// Messages that the broker sends ahead. When the process dies, it puts them back where they were.
const PREFETCHED_MAX: u16 = 50;

/// Reads the queue without end, and tells how far each message has come.
///
/// # Errors
///
/// If the database or the broker is lost. Nothing was acknowledged then.
pub async fn run(settings: &Settings, tell: impl AsyncFn(Step, &str, Receipt)) -> Result<(), Error> {
    let billing = Billing::open(settings).await?;
    let connection = Connection::connect(&settings.broker, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCHED_MAX, BasicQosOptions::default()).await?;
    let queue: ShortString = settings.topic.as_str().into();
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.clone(), durable, quorum).await?;
    let tag = settings.schema.as_str().into();
    let mut messages =
        channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let place = place(settings, &message);
        let event = match read(&message) {
            Ok(event) => event,
            Err(error) => {
                billing.set_aside(&place, &error.to_string(), &message.data).await?;
                message.ack(BasicAckOptions::default()).await?;
                continue;
            }
        };
        let receipt = billing.handle(&event, &message.data, &place, &tell).await?;
        message.ack(BasicAckOptions::default()).await?;
        tell(Step::Acknowledged, event.identity.id(), receipt).await;
    }
    Err("rabbitmq has ended the consumer: is its queue still there?".into())
}

/// What the headers of a message say of its event.
///
/// # Errors
///
/// If a header is missing or wrong: the message was not written by an outbox.
pub fn read(message: &Delivery) -> Result<ReceivedEvent, Error> {
    let properties = &message.properties;
    let headers = properties.headers().as_ref().ok_or("the message has no headers")?;
    // A value that is not text is the broker's own, such as the number of deliveries.
    let texts = headers.inner().iter().filter_map(|(name, value)| match value {
        AMQPValue::LongString(text) => Some((name.as_str(), text.as_bytes())),
        _ => None,
    });
    let content_type =
        properties.content_type().as_ref().map(|text| ("content-type", text.as_str().as_bytes()));
    Ok(ReceivedEvent::from_headers(texts.chain(content_type))?)
}

/// A queue has no places, so it is the message's id. One that has none gets another, each time that it comes.
fn place(settings: &Settings, message: &Delivery) -> String {
    let id = message.properties.message_id().as_ref().map(ToString::to_string);
    format!("{}/{}", settings.topic, id.unwrap_or_else(|| Uuid::now_v7().to_string()))
}
