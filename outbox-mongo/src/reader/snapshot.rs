//! What one fetch looks at: [`Snapshot`].

use mongodb::{ClientSession, bson::DateTime as BsonDateTime};
use outbox_core::store::{FetchRequest, Sequence};

use crate::database::Database;

/// What one fetch looks at.
pub(super) struct Snapshot<'a> {
    pub(super) database: &'a Database,
    pub(super) session: ClientSession,
    pub(super) request: &'a FetchRequest,
    pub(super) now: BsonDateTime,
    /// Everything that the session reads is as it was at this moment.
    pub(super) moment: Sequence,
    /// There are holds at all: without one, no aggregate has any to look for.
    pub(super) any_hold: bool,
}

impl Snapshot<'_> {
    pub(super) fn is_known(&self, sequence: Sequence) -> bool {
        self.request.known.binary_search(&sequence).is_ok()
    }
}
