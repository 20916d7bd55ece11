//! One relay's way through the collection: [`MongoReader`].
//!
//! # The read position, and why it is not enough
//! An event gets its sequence when it is inserted and becomes visible when its transaction commits, so events appear
//! below others that were read long ago. But the server ends a transaction that is older than
//! `transactionLifetimeLimitSeconds`; it looks for such every half of that time. So what was inserted more than twice
//! that time ago is visible or never will be. Up to there reaches the *bound*, behind which nothing new appears, and
//! each scan begins at it: what it meets between the bound and the read position and the relay does not know is late.
//!
//! # What has to be found behind it
//! Everything at or below the read position is either returned, or passed by for a reason that ends with a signal:
//!
//! - it was held. Its aggregate is `waiting` until the relay says that the hold is removed;
//! - it was scheduled for later. A second position, in the order of `available_at`, meets it when its time has come;
//! - the relay had enough of its aggregate.
//!
//! All three put the aggregate on the list of those to `catch_up`, which are read by key up to the read position, and
//! which the scan passes by until that is done: so nothing overtakes. All statements of a fetch see one snapshot, and
//! one time.
//!
//! What an operator does by hand (a status set back, a hold deleted) gives no signal: when there is nothing else to read,
//! the reader starts from the beginning again, every [`SWEEP`](place::SWEEP).

mod catch_up;
mod due_holds;
mod news;
mod page;
mod place;
#[cfg(test)]
mod plans;
mod scan;

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::{ClientSession, bson::DateTime as BsonDateTime};
use outbox_core::{FetchRequest, Fetched, OutboxReader, Sequence, StoreError};

use crate::{error::within, store::Inner};
use news::News;
use place::Place;

/// The reader of one relay.
///
/// If a fetch is dropped before it answers, the next one starts from the beginning: what was read meanwhile is lost,
/// and would otherwise count as returned.
pub(crate) struct MongoReader {
    inner: Arc<Inner>,
    place: Option<Place>,
}

impl MongoReader {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, place: None }
    }
}

#[async_trait]
impl OutboxReader for MongoReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        let mut place = self.place.take().unwrap_or_else(Place::new);
        if request.leases.is_empty() {
            return Ok(Fetched::default());
        }
        let fetch = async {
            let session = self.inner.client.start_session().snapshot(true).await?;
            place.fetch(&self.inner, session, &request).await
        };
        let fetched =
            within("fetch events", fetch).await?.ok_or_else(|| self.inner.not_migrated("fetch events"))?;
        self.place = Some(place);
        Ok(fetched)
    }
}

/// What one fetch looks at.
struct At<'a> {
    inner: &'a Inner,
    session: ClientSession,
    request: &'a FetchRequest,
    now: BsonDateTime,
    /// Everything that the session reads is as it was at this moment.
    snapshot: Sequence,
    /// There are holds at all: without one, no aggregate has any to look for.
    any_hold: bool,
}

impl At<'_> {
    fn is_known(&self, sequence: Sequence) -> bool {
        self.request.known.binary_search(&sequence).is_ok()
    }
}
