//! The brokers that a relay may publish to.

pub mod kafka;
mod nats;
mod rabbitmq;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::Publisher;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::checker::Delivery;

/// A broker by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kafka,
    RabbitMq,
    Nats,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::RabbitMq, Self::Nats];

    /// The one of this name.
    pub fn named(name: &str) -> Self {
        let named = Self::ALL.into_iter().find(|kind| format!("{kind:?}").to_lowercase() == name);
        named.unwrap_or_else(|| panic!("nobody knows {name}"))
    }

    /// The broker, or a line that says that it is missing.
    pub fn find(self) -> Option<Arc<dyn Broker>> {
        Some(match self {
            Self::Kafka => Arc::new(kafka::Kafka::find()?),
            Self::RabbitMq => Arc::new(rabbitmq::RabbitMq::find()?),
            Self::Nats => Arc::new(nats::Nats::find()?),
        })
    }
}

/// Where a relay process finds the broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum BrokerAt {
    Kafka { brokers: String },
    RabbitMq { url: String },
    Nats { url: String },
}

impl BrokerAt {
    /// A publisher that gives up after this time, where it has a time of its own.
    pub fn open(&self, delivery_timeout: Duration) -> Arc<dyn Publisher> {
        match self {
            Self::Kafka { brokers } => kafka::open(brokers, delivery_timeout),
            Self::RabbitMq { url } => rabbitmq::open(url),
            Self::Nats { url } => nats::open(url),
        }
    }
}

/// A broker, with a destination for each scenario.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Where a relay finds it.
    fn broker_at(&self) -> BrokerAt;

    /// The name of its server in `scripts/services`, and the address that it has there.
    fn server(&self) -> (&'static str, String);

    /// Makes a destination.
    async fn create(&self, topic: &str);

    /// Everything that the destination was sent, which may empty it; of each aggregate in the order in which it was stored.
    async fn read(&self, topic: &str) -> Vec<Delivery>;

    /// Takes a destination away.
    async fn strike(&self, topic: &str);
}

/// A name that no other scenario uses.
pub fn topic() -> String {
    format!("end-to-end.{}", Uuid::now_v7())
}
