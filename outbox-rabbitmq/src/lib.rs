#![doc = include_str!("../README.md")]

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

pub use config::{RabbitMqConfig, RabbitMqConfigBuilder, RabbitMqConfigError};
pub use declare::{RabbitMqExchangeKind, RabbitMqQueueKind};
pub use publisher::RabbitMqPublisher;
