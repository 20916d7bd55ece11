//! Consumers that make each effect once, whatever broker brings the events: [`kafka`], [`rabbitmq`],
//! [`nats`]. Each is a file to be copied; the service behind them, [`billing`], is the same for all.

pub mod billing;
pub mod kafka;
pub mod nats;
pub mod rabbitmq;
