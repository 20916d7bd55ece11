//! What the author of a publisher tells the suite: [`PublisherHarness`].

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use outbox_core::Publisher;

/// One publisher with a broker to itself, and what the suite cannot do through the trait: make destinations,
/// read what the broker stored, and take the broker away.
///
/// Methods that answer no `Result` panic when the broker fails them: the test that runs then fails. What has
/// a default is what not every broker has; a clause that needs it is then *not asked*, and the table says so.
#[async_trait]
pub trait PublisherHarness: Send + Sync + 'static {
    /// A new publisher, connected through the [`outage`](Self::outage) if there is one. `None` where the
    /// server is not there, after saying so in one line on stderr; with `OUTBOX_REQUIRE_SERVERS=1` it panics
    /// instead.
    ///
    /// Give it a delivery timeout of a few seconds: the clauses about outages wait for it to pass.
    async fn fresh() -> Option<Self>
    where
        Self: Sized;

    /// Removes everything that [`fresh`](Self::fresh) and [`destination`](Self::destination) made. Called
    /// after every clause, failed ones included; the broker may still be taken away then.
    async fn cleanup(self)
    where
        Self: Sized;

    /// The publisher under test. Called more than once; always the same.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// A new destination: it exists, is empty, and no other test knows it.
    async fn destination(&self) -> String;

    /// Everything that the broker has stored at a destination since it was made, in the broker's order, where
    /// it has one; in any case in order for each aggregate. Read past the outage, and by a consumer of the
    /// broker's own kind. May be called several times, and answers all of it each time.
    async fn stored(&self, destination: &str) -> Vec<StoredMessage>;

    /// Whether the destination decides where a message is stored. False is for a publisher that has one place
    /// for all, such as a file.
    fn routes(&self) -> bool {
        true
    }

    /// What takes the broker away from the publisher: with a broker that is reached by TCP, a
    /// [`Proxy`](crate::Proxy).
    fn outage(&self) -> Option<&dyn Outage> {
        None
    }

    /// A destination that does not exist and that is never created, with a name that could exist. Another one
    /// each time.
    async fn unroutable(&self) -> Option<String> {
        None
    }

    /// A name that no destination can have.
    fn broken_name(&self) -> Option<String> {
        None
    }

    /// A message that the *broker* finds too large, although the publisher does not know that limit.
    async fn oversized(&self) -> Option<Oversized> {
        None
    }

    /// A valid header of an event, by name and value, that the protocol cannot carry.
    fn broken_header(&self) -> Option<(String, String)> {
        None
    }

    /// Whether header names that differ in case only are different ones. False is for HTTP.
    fn header_names_keep_their_case(&self) -> bool {
        true
    }

    /// Passwords and keys in the publisher's configuration. Give it some, even where the broker asks for
    /// none.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A message as the broker stored it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredMessage {
    /// The attributes of the CloudEvent under their plain names, such as `id`, without `datacontenttype`.
    pub attributes: BTreeMap<String, String>,
    /// The media type of the payload.
    pub content_type: Option<String>,
    /// All other headers.
    pub headers: BTreeMap<String, String>,
    /// By what the broker keeps messages together, where it has such a thing: the key of a record.
    pub key: Option<String>,
    /// The payload.
    pub payload: Bytes,
}

impl StoredMessage {
    /// Sorts the headers of a CloudEvent in binary mode into attributes, which are those that start with
    /// `prefix`, the content type, and others.
    pub fn binary_mode(
        prefix: &str,
        headers: impl IntoIterator<Item = (String, String)>,
        payload: impl Into<Bytes>,
    ) -> Self {
        let mut message = Self { payload: payload.into(), ..Self::default() };
        for (name, value) in headers {
            if let Some(attribute) = name.strip_prefix(prefix) {
                message.attributes.insert(attribute.to_owned(), value);
            } else if name.eq_ignore_ascii_case("content-type") {
                message.content_type = Some(value);
            } else {
                message.headers.insert(name, value);
            }
        }
        message
    }

    /// The id of the event.
    pub(crate) fn id(&self) -> &str {
        self.attributes.get("id").map_or("", String::as_str)
    }
}

/// A message that the broker finds too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oversized {
    /// Where to; may be a destination with a limit of its own.
    pub destination: String,
    /// The size of its payload. Smaller ones, of up to a hundred bytes, must be taken there.
    pub payload_bytes: usize,
}

/// Takes the broker away from the publisher under test alone.
///
/// Each method returns once it is done. What was written into a connection while nothing passed is lost with
/// that connection; it must not arrive when the broker comes back.
#[async_trait]
pub trait Outage: Send + Sync {
    /// Closes all connections and refuses new ones.
    async fn cut(&self);

    /// From now on nothing passes, in neither direction, but no connection is closed and new ones are taken.
    async fn freeze(&self);

    /// From now on the broker gets everything and its answers get lost.
    async fn lose_answers(&self);

    /// Closes all connections that are left of the outage; new ones work.
    async fn restore(&self);
}
