//! The broker: where the relay publishes to, and how a service reads from it. Of all this example, this alone
//! differs from broker to broker.

mod kafka;
pub(crate) mod message;
mod nats;
mod rabbitmq;

use std::{fmt, sync::Arc};

use clap::{Args, ValueEnum};
use outbox::Publisher;

use self::message::Subscription;
use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Kafka,
    Rabbitmq,
    Nats,
}

/// A broker, and where on it the order service's events are.
#[derive(Clone, Args)]
pub(crate) struct Broker {
    /// Which broker it is.
    #[arg(long = "broker", env = "BROKER", value_enum, default_value_t = Kind::Kafka)]
    pub(crate) kind: Kind,
    /// Its address: `host:port` of Kafka, `amqp://…` of RabbitMQ, `nats://…` of NATS.
    #[arg(long = "broker-url", env = "BROKER_URL", hide_env_values = true)]
    pub(crate) url: String,
    /// The topic of Kafka, the exchange of RabbitMQ, the subject and stream of NATS.
    #[arg(long, env = "TOPIC", default_value = "orders")]
    pub(crate) topic: String,
}

impl Broker {
    /// Makes the topic, and where it needs one, a place for each of these services: what a deployment would
    /// do.
    pub(crate) async fn create(&self, services: &[&str]) -> Result<(), Error> {
        match self.kind {
            Kind::Kafka => kafka::create(&self.url, &self.topic).await,
            Kind::Rabbitmq => rabbitmq::create(&self.url, &self.topic, services).await,
            Kind::Nats => nats::create(&self.url, &self.topic, services).await,
        }
    }

    /// Takes all of it away again.
    pub(crate) async fn remove(&self, services: &[&str]) -> Result<(), Error> {
        match self.kind {
            Kind::Kafka => kafka::remove(&self.url, &self.topic).await,
            Kind::Rabbitmq => rabbitmq::remove(&self.url, &self.topic, services).await,
            Kind::Nats => nats::remove(&self.url, &self.topic).await,
        }
    }

    /// What the relay publishes with.
    pub(crate) fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        match self.kind {
            Kind::Kafka => kafka::publisher(&self.url),
            Kind::Rabbitmq => rabbitmq::publisher(&self.url, &self.topic),
            Kind::Nats => nats::publisher(&self.url),
        }
    }

    /// What the service of this name reads. Each service gets every event.
    pub(crate) async fn subscribe(&self, service: &str) -> Result<Box<dyn Subscription>, Error> {
        Ok(match self.kind {
            Kind::Kafka => Box::new(kafka::Kafka::subscribe(&self.url, &self.topic, service)?),
            Kind::Rabbitmq => Box::new(rabbitmq::RabbitMq::subscribe(&self.url, &self.topic, service).await?),
            Kind::Nats => Box::new(nats::Nats::subscribe(&self.url, &self.topic, service).await?),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
            Self::Nats => "nats",
        })
    }
}
