//! The brokers that a relay may publish to.

mod broker;
pub mod kafka;
mod nats;
mod rabbitmq;

use std::{sync::Arc, time::Duration};

use outbox::Publisher;
use uuid::Uuid;

pub use self::broker::{Broker, BrokerAt};

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
        named.unwrap_or_else(|| panic!("unknown name {name}"))
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

/// A name that no other scenario uses.
pub fn topic() -> String {
    format!("end-to-end.{}", Uuid::now_v7())
}
