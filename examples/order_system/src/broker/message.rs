//! What comes from a broker, whichever it is.

use async_trait::async_trait;
use outbox::{ReceivedEvent, ReceivedEventError};

use crate::error::Error;

/// A message as it came.
pub(crate) struct Message {
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

/// What a service reads, one message at a time.
#[async_trait]
pub(crate) trait Subscription: Send {
    /// The next message. Cancel safe.
    async fn next(&mut self) -> Result<Message, Error>;

    /// Tells the broker that the last message was handled. One that was not acknowledged comes again.
    async fn acknowledge(&mut self) -> Result<(), Error>;
}

impl Message {
    /// The CloudEvents attributes, whichever way the broker carries them.
    pub(crate) fn event(&self) -> Result<ReceivedEvent, ReceivedEventError> {
        ReceivedEvent::from_headers(self.headers.iter().map(|(name, value)| (name, value)))
    }

    /// For a person to look at.
    pub(crate) fn headers_text(&self) -> String {
        let lines =
            self.headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)));
        lines.collect::<Vec<_>>().join("\n")
    }
}
