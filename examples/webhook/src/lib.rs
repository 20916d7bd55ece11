#![doc = include_str!("../README.md")]

mod adapter;
mod config;
mod error;
mod publisher;
mod request;
mod signature;

pub use adapter::WebhookAdapter;
pub use config::{WebhookConfig, WebhookConfigBuilder};
pub use publisher::WebhookPublisher;
pub use signature::{SecretError, SigningKey};
