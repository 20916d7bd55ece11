//! Exchanges, queues and bindings that are made where they are missing.

use std::fmt;

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::error::{NOT_FOUND, reply_code};

/// How an exchange to be declared finds queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RabbitMqExchangeKind {
    /// By patterns that match the routing key's words.
    #[default]
    Topic,
    /// By routing keys that are equal.
    Direct,
    /// All queues that are bound to it.
    Fanout,
    /// By the headers of a message.
    Headers,
}

/// How a queue to be declared is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RabbitMqQueueKind {
    /// On a majority of several nodes.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

/// Something that is to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declaration {
    Exchange { name: String, kind: RabbitMqExchangeKind },
    Queue { name: String, kind: RabbitMqQueueKind },
    Binding { queue: String, exchange: String, routing_key: String },
}

impl Declaration {
    /// All names in it, each with what it is.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let names: Vec<(&'static str, &str)> = match self {
            Self::Exchange { name, .. } => vec![("declared exchange", name)],
            Self::Queue { name, .. } => vec![("declared queue", name)],
            Self::Binding { queue, exchange, routing_key } => vec![
                ("declared binding's queue", queue),
                ("declared binding's exchange", exchange),
                ("declared binding's routing key", routing_key),
            ],
        };
        names.into_iter()
    }

    /// Makes it, if it is missing. One that is there is left as it is, whatever its settings are.
    async fn make(&self, connection: &Connection) -> lapin::Result<()> {
        match self {
            Self::Exchange { name, kind } => {
                if exchange_exists(connection, name).await? {
                    return Ok(());
                }
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                let channel = connection.create_channel().await?;
                channel.exchange_declare(short(name), kind.kind(), options, FieldTable::default()).await?;
                close(&channel).await;
            }
            Self::Queue { name, kind } => {
                if queue_exists(connection, name).await? {
                    return Ok(());
                }
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                let mut arguments = FieldTable::default();
                arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.word().into()));
                let channel = connection.create_channel().await?;
                channel.queue_declare(short(name), options, arguments).await?;
                close(&channel).await;
            }
            Self::Binding { queue, exchange, routing_key } => {
                let channel = connection.create_channel().await?;
                let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
                channel
                    .queue_bind(short(queue), short(exchange), short(routing_key), options, arguments)
                    .await?;
                close(&channel).await;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange { name, .. } => write!(f, "exchange {name:?}"),
            Self::Queue { name, .. } => write!(f, "queue {name:?}"),
            Self::Binding { queue, exchange, routing_key } => {
                write!(f, "binding of queue {queue:?} to exchange {exchange:?} by {routing_key:?}")
            }
        }
    }
}

/// Makes what is missing, and returns what could not be made, each with why.
pub(crate) async fn make_all(connection: &Connection, declarations: &[Declaration]) -> Vec<(String, String)> {
    let mut failures = Vec::new();
    for declaration in declarations {
        if let Err(error) = declaration.make(connection).await {
            tracing::warn!(%declaration, %error, "rabbitmq does not make what is missing");
            failures.push((declaration.to_string(), error.to_string()));
        }
    }
    failures
}

/// Fails if the connection is lost.
pub(crate) async fn answers(connection: &Connection) -> lapin::Result<()> {
    close(&connection.create_channel().await?).await;
    Ok(())
}

/// Whether there is an exchange of this name. The default one always is.
pub(crate) async fn exchange_exists(connection: &Connection, name: &str) -> lapin::Result<bool> {
    if name.is_empty() {
        return Ok(true);
    }
    let channel = connection.create_channel().await?;
    let asked = ask_for_exchange(&channel, name).await;
    answered(&channel, asked).await
}

/// Fails, and closes the channel, if there is no exchange of this name.
pub(crate) async fn ask_for_exchange(channel: &Channel, name: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    // The kind and the arguments are not looked at.
    channel.exchange_declare(short(name), ExchangeKind::Direct, options, FieldTable::default()).await
}

/// Whether there is a queue of this name.
pub(crate) async fn queue_exists(connection: &Connection, name: &str) -> lapin::Result<bool> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(short(name), options, FieldTable::default()).await.map(|_| ());
    answered(&channel, asked).await
}

async fn answered(channel: &Channel, answer: lapin::Result<()>) -> lapin::Result<bool> {
    match answer {
        Ok(()) => {
            close(channel).await;
            Ok(true)
        }
        Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Closes a channel that is done with. One that does not close has closed itself.
async fn close(channel: &Channel) {
    let _ = channel.close(200, "".into()).await;
}

/// A name as AMQP carries it. Names were checked for their length before.
pub(crate) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

impl RabbitMqExchangeKind {
    fn kind(self) -> ExchangeKind {
        match self {
            Self::Topic => ExchangeKind::Topic,
            Self::Direct => ExchangeKind::Direct,
            Self::Fanout => ExchangeKind::Fanout,
            Self::Headers => ExchangeKind::Headers,
        }
    }
}

impl RabbitMqQueueKind {
    fn word(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}
