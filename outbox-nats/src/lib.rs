#![doc = include_str!("../README.md")]

mod check;
mod config;
mod error;
mod producer;
mod publisher;
mod record;

pub use config::{NatsConfig, NatsConfigBuilder, NatsConfigError, NatsStream};
pub use publisher::NatsPublisher;
