//! What every broker is to a scenario: [`Broker`].

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::checker::Delivery;

/// Where a relay process finds the broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum BrokerAt {
    Kafka { brokers: String },
    RabbitMq { url: String },
    Nats { url: String },
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

    /// Everything that the destination was sent, which may empty it; of each aggregate in the order in which
    /// it was stored.
    async fn read(&self, topic: &str) -> Vec<Delivery>;

    /// Takes a destination away.
    async fn remove(&self, topic: &str);
}
