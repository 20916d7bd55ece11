#![doc = include_str!("../README.md")]

mod config;
mod error;
mod publisher;
mod request;
mod signature;

pub use config::{WebhookConfig, WebhookConfigBuilder, WebhookConfigError};
pub use publisher::WebhookPublisher;
pub use signature::{SecretError, SigningKey};
