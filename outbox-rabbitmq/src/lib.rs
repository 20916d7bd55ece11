#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

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
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;

pub use adapter::RabbitMqAdapter;
pub use config::{RabbitMqConfig, RabbitMqConfigBuilder};
pub use declare::{RabbitMqExchangeKind, RabbitMqQueueKind};
pub use publisher::RabbitMqPublisher;
