//! One relay's way through the collection: [`MongoReader`].
//!
//! # The read position, and why it is not enough
//! An event gets its sequence when it is inserted and becomes visible when its transaction commits, so events
//! appear below others that were read long ago. But the server ends a transaction that is older than
//! `transactionLifetimeLimitSeconds`; it looks for such every half of that time. So what was inserted more
//! than twice that time ago is visible or never will be. Up to there reaches the *bound*, behind which
//! nothing new appears, and each scan begins at it: what it meets between the bound and the read position and
//! the relay does not know is late.
//!
//! # What has to be found behind it
//! Everything at or below the read position is either returned, or passed by for a reason that ends with a
//! signal:
//!
//! - it was held. Its aggregate is `waiting` until the relay says that the hold is removed;
//! - it was scheduled for later. A second position, in the order of `available_at`, meets it when its time
//!   has come;
//! - the relay had enough of its aggregate.
//!
//! All three put the aggregate on the list of those to `catch_up`, which are read by key up to the read
//! position, and which the scan passes by until that is done: so nothing overtakes. All statements of a fetch
//! see one snapshot, and one time.
//!
//! What an operator does by hand (a status set back, a hold deleted) gives no signal: when there is nothing
//! else to read, the reader starts from the beginning again, every [`SWEEP`](position::SWEEP).

mod catch_up;
mod due_holds;
mod news;
mod page;
#[cfg(test)]
mod plans;
mod position;
mod scan;
mod snapshot;

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use mongodb::{ClientSession, bson::DateTime as BsonDateTime};
use outbox_core::{
    AggregateKey, StoreError,
    store::{FetchRequest, Fetched, OutboxReader, Page},
};

use self::{news::News, page::Rows, position::Position, snapshot::Snapshot};
use crate::{
    codec::sequence::sequence_of,
    database::Database,
    error::{Fault, within},
};

/// The reader of one relay.
///
/// If a fetch is dropped before it answers, the next one starts from the beginning: what was read meanwhile
/// is lost, and would otherwise count as returned.
pub(crate) struct MongoReader {
    database: Arc<Database>,
    position: Option<Position>,
}

impl MongoReader {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self { database, position: None }
    }
}

#[async_trait]
impl OutboxReader for MongoReader {
    async fn fetch(&mut self, request: FetchRequest) -> Result<Fetched, StoreError> {
        let mut position = self.position.take().unwrap_or_else(Position::new);
        if request.leases.is_empty() {
            return Ok(Fetched::default());
        }
        let fetch = async {
            let session = self.database.client.start_session().snapshot(true).await?;
            position.fetch(&self.database, session, &request).await
        };
        let fetched =
            within("fetch events", fetch).await?.ok_or_else(|| self.database.not_migrated("fetch events"))?;
        self.position = Some(position);
        Ok(fetched)
    }
}

impl Position {
    /// `None` where there is no outbox.
    async fn fetch(
        &mut self,
        database: &Database,
        mut session: ClientSession,
        request: &FetchRequest,
    ) -> Result<Option<Fetched>, Fault> {
        self.lease(request);
        let Some(news) = News::read(database, &mut session, self).await? else { return Ok(None) };
        let moment = session.snapshot_time().and_then(sequence_of).ok_or_else(no_snapshot)?;
        let mut at = Snapshot { database, session, request, now: news.now, moment, any_hold: news.any_hold };
        self.advance(&at);
        let mut found = Rows { rows: Vec::new(), page: Page::new(request) };
        if news.more_due {
            found.page.set_more();
        }
        // Due holds first: everything of their aggregate waits for them.
        let due_holds = self.due_holds(&mut at, news.due, &mut found.page).await?;
        let all_due_noted = self.note_scheduled(news.now, news.scheduled);
        self.catch_up(&mut at, &mut found).await?;
        let scanned = if all_due_noted { self.scan(&mut at, &mut found).await? } else { self.bound };
        self.move_bound(database, news.now, scanned);
        let full: HashSet<&AggregateKey> = request.full.iter().collect();
        let Rows { rows, page } = found;
        let more = page.more() || !all_due_noted || self.catch_up.keys().any(|key| !full.contains(key));
        self.idle = !more;
        self.fetched_at = Some(news.now);
        let wait = |at: BsonDateTime| at.saturating_duration_since(news.now);
        Ok(Some(
            Fetched::default()
                .with_rows(rows)
                .with_due_holds(due_holds)
                .with_paused(self.paused(news.paused))
                .with_more(more)
                .with_next_due(news.next_due.map(wait)),
        ))
    }
}

/// The first statement of the session has been answered as if it were outside a snapshot.
fn no_snapshot() -> Fault {
    Fault::Write { code: SNAPSHOT_UNAVAILABLE, message: "the server gave no snapshot".to_owned() }
}

/// The server's code for a snapshot that it does not have.
const SNAPSHOT_UNAVAILABLE: i32 = 246;
