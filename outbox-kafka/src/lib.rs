#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod check;
mod config;
mod error;
mod producer;
mod publisher;
mod record;

pub use config::{KafkaConfig, KafkaConfigBuilder, KafkaConfigError, KafkaKey};
pub use publisher::KafkaPublisher;
