#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
mod check;
mod config;
mod error;
mod producer;
mod publisher;
mod record;

pub use adapter::NatsAdapter;
pub use config::{NatsConfig, NatsConfigBuilder, NatsStream};
pub use publisher::NatsPublisher;
