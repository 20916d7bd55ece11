//! A transactional outbox for Rust services, and for every service that can write a row.

pub use outbox_core::*;
