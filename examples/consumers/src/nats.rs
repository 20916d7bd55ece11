//! A consumer that makes each effect once: a billing service with a PostgreSQL database reads orders from
//! NATS JetStream.
//!
//! ```sh
//! scripts/services.sh up postgres nats
//! eval "$(scripts/services.sh env)"
//! cargo run -p consumers -- nats orders
//! ```
//!
//! It reads the subject `orders` of a stream, which it creates if there is none, until it is interrupted, and
//! tells what it does. The order is what matters: begin, ask the inbox, make the effect, commit
//! (`Billing::handle` does these four), and only then acknowledge. Killed at any point and started again, it
//! writes each invoice once.
//!
//! An error ends the process. Nothing was acknowledged then, and when it is started again, the message comes
//! again.

use std::time::Duration;

use async_nats::{
    ConnectOptions, HeaderMap, ServerAddr,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
        context::GetStreamByNameErrorKind,
        stream,
    },
};
use futures::StreamExt as _;
use outbox::{Receipt, ReceivedEvent};

use crate::billing::{Billing, Error, Settings, Step};

/// How long an effect may take. A message that is not acknowledged by then comes again, to this process or,
/// if it has died, to the next.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// Reads the subject without end, and tells how far each message has come.
///
/// # Errors
///
/// If the database or the broker is lost. Nothing was acknowledged then.
pub async fn run(settings: &Settings, tell: impl AsyncFn(Step, &str, Receipt)) -> Result<(), Error> {
    let billing = Billing::open(settings).await?;
    let jetstream = connect(&settings.broker).await?;
    let stream = match jetstream.stream_by_subject(&settings.topic).await {
        Ok(name) => jetstream.get_stream(name).await?,
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {
            let (name, subjects) = (settings.topic.replace('.', "-"), vec![settings.topic.clone()]);
            jetstream.create_stream(stream::Config { name, subjects, ..stream::Config::default() }).await?
        }
        Err(error) => return Err(error.into()),
    };
    let durable = pull::Config {
        durable_name: Some(settings.schema.clone()),
        filter_subject: settings.topic.clone(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // One at a time. With more, those behind a message whose consumer has died would come before it.
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(&settings.schema, durable).await?;
    let mut messages = consumer.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let place = format!("{}/{}", settings.topic, message.info()?.stream_sequence);
        let event = match read(message.headers.as_ref()) {
            Ok(event) => event,
            Err(error) => {
                billing.set_aside(&place, &error.to_string(), &message.payload).await?;
                message.ack().await?;
                continue;
            }
        };
        let receipt = billing.handle(&event, &message.payload, &place, &tell).await?;
        message.ack().await?;
        tell(Step::Acknowledged, event.identity.id(), receipt).await;
    }
    Err("nats has ended the consumer: is its stream still there?".into())
}

/// The client leaves out a login that stands in the URL.
pub async fn connect(url: &str) -> Result<jetstream::Context, Error> {
    let server: ServerAddr = url.parse()?;
    let options = match (server.username(), server.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    Ok(jetstream::new(options.connect(server).await?))
}

/// What the headers of a message say of its event.
///
/// # Errors
///
/// If a header is missing or wrong: the message was not written by an outbox.
pub fn read(headers: Option<&HeaderMap>) -> Result<ReceivedEvent, Error> {
    let headers = headers.ok_or("the message has no headers")?;
    let pairs = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, value.as_str()))
    });
    // Those that NATS adds are between the publisher and the stream.
    let pairs = pairs.filter(|(name, _)| !name.starts_with("Nats-"));
    Ok(ReceivedEvent::from_headers(pairs)?)
}
