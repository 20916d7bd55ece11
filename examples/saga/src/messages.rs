//! Commands and replies. The aggregate is the order in all of them, so that the messages of one order stay in
//! order.

use outbox::OutboxEvent;
use serde::{Deserialize, Serialize};

/// Topics: one for each service, for the commands or replies that it reads.
pub const ORDERS: &str = "orders";
/// The payment service's topic.
pub const PAYMENTS: &str = "payments";
/// The stock service's topic.
pub const STOCK: &str = "stock";

/// What the payment service is told.
#[derive(Debug, Clone, Serialize, Deserialize, OutboxEvent)]
#[serde(tag = "type", rename_all = "snake_case")]
#[outbox(aggregate_type = "order", topic = "payments")]
pub(crate) enum PaymentCommand {
    #[outbox(event_type = "payment.charge")]
    Charge {
        #[outbox(aggregate_id)]
        order: String,
        customer: String,
        cents: i64,
    },
    /// Takes a charge back: the compensation.
    #[outbox(event_type = "payment.refund")]
    Refund {
        #[outbox(aggregate_id)]
        order: String,
    },
}

/// What the stock service is told.
#[derive(Debug, Clone, Serialize, Deserialize, OutboxEvent)]
#[outbox(aggregate_type = "order", event_type = "stock.reserve", topic = "stock")]
pub(crate) struct Reserve {
    #[outbox(aggregate_id)]
    pub(crate) order: String,
    pub(crate) item: String,
    pub(crate) quantity: i64,
}

/// What the order service hears.
#[derive(Debug, Clone, Serialize, Deserialize, OutboxEvent)]
#[serde(tag = "type", rename_all = "snake_case")]
#[outbox(aggregate_type = "order", topic = "orders")]
pub(crate) enum Reply {
    #[outbox(event_type = "payment.charged")]
    Charged {
        #[outbox(aggregate_id)]
        order: String,
    },
    #[outbox(event_type = "payment.refused")]
    ChargeRefused {
        #[outbox(aggregate_id)]
        order: String,
        why: String,
    },
    #[outbox(event_type = "payment.refunded")]
    Refunded {
        #[outbox(aggregate_id)]
        order: String,
    },
    #[outbox(event_type = "stock.reserved")]
    Reserved {
        #[outbox(aggregate_id)]
        order: String,
    },
    #[outbox(event_type = "stock.refused")]
    ReserveRefused {
        #[outbox(aggregate_id)]
        order: String,
        why: String,
    },
}
