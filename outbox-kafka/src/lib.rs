#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
mod check;
mod config;
mod error;
mod producer;
mod publisher;
mod record;

pub use adapter::KafkaAdapter;
pub use config::{KafkaConfig, KafkaConfigBuilder, KafkaKey};
pub use publisher::KafkaPublisher;
