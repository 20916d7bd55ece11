//! A connection that is made, and what is known of it: [`Session`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapin::Connection;

use crate::{RabbitMqConfig, declare};

/// A connection that is made.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// Confirms that have come.
    pub(crate) confirmed: AtomicU64,
    /// What the client has written is with the operating system. TLS has a buffer of its own.
    pub(crate) writes_through: bool,
    /// A message found something missing that the configuration declares.
    pub(crate) missing: AtomicBool,
}

impl Session {
    pub(crate) fn new(connection: Connection, config: &RabbitMqConfig) -> Self {
        Self {
            connection,
            confirmed: AtomicU64::new(0),
            writes_through: !config.has_tls(),
            missing: AtomicBool::new(false),
        }
    }

    /// The broker takes nothing at the moment.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// The largest frame, in bytes.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        match self.connection.configuration().frame_max() {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// Makes what the configuration declares, if a message has found it missing.
    pub(crate) async fn make_missing(&self, config: &RabbitMqConfig) {
        if !config.declarations.is_empty() && self.missing.swap(false, Ordering::Relaxed) {
            declare::make_all(&self.connection, &config.declarations).await;
        }
    }
}
