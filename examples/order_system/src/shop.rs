//! What the services have agreed on: which events there are, and what is in them.
//!
//! Here they share this file. Services of their own would share a schema, and no code.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is sold, and for how much.
pub(crate) const ITEMS: [(&str, i64); 3] = [("lamp", 30), ("chair", 80), ("desk", 250)];

/// What is on stock before the first order, of each item.
pub(crate) const STOCK: i64 = 10_000;

/// An order: the payload of every event. It has all that a consumer needs, so that no consumer has to ask the
/// order service, which may be down or know better by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: i64,
    pub(crate) total: i64,
}

/// How far an order has come. Each step is an event: `order.placed`, `order.paid` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    Placed,
    Paid,
    Shipped,
    Cancelled,
}

impl Step {
    const ALL: [Self; 4] = [Self::Placed, Self::Paid, Self::Shipped, Self::Cancelled];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn event_type(self) -> String {
        format!("order.{self}")
    }

    /// The step that an event tells of; nothing if it tells of something else, which is not for us.
    pub(crate) fn of_event(event_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.event_type() == event_type)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
