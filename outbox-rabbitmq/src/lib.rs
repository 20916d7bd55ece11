#![doc = include_str!("../README.md")]

mod adapter;
mod check;
mod config;
mod declare;
mod error;
mod line;
mod producer;
mod publisher;
mod record;
mod session;
mod tls;

pub use adapter::RabbitMqAdapter;
pub use config::{RabbitMqConfig, RabbitMqConfigBuilder};
pub use declare::{RabbitMqExchangeKind, RabbitMqQueueKind};
pub use publisher::RabbitMqPublisher;
