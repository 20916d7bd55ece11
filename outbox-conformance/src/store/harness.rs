//! What the author of a store tells the suite: [`StoreHarness`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_core::{AggregateKey, EnqueueError, Event, OutboxAdmin, OutboxStore, store::Sequence};
use uuid::Uuid;

/// One isolated store, and what the suite cannot do through the traits: write events in the driver's own
/// transactions, and let time pass.
///
/// Methods that answer no `Result` panic when the database fails them: the test that runs then fails.
#[async_trait]
pub trait StoreHarness: Send + Sync + 'static {
    /// A new, empty, migrated store that no other test sees: a schema or a database of its own. `None` where
    /// the server is not there, after saying so in one line on stderr; with `OUTBOX_REQUIRE_SERVERS=1` it
    /// panics instead.
    async fn fresh() -> Option<Self>
    where
        Self: Sized;

    /// Removes everything that [`fresh`](Self::fresh) made. Called after every clause, failed ones included.
    async fn cleanup(self)
    where
        Self: Sized;

    /// The store under test. Called more than once; always the same store.
    fn store(&self) -> Arc<dyn OutboxStore>;

    /// The operator's side of the same store.
    fn admin(&self) -> Arc<dyn OutboxAdmin>;

    /// Writes the events in one transaction with `enqueue_all`, commits it, and returns their sequences in
    /// the order given.
    ///
    /// # Errors
    /// What `enqueue_all` answered; the transaction was rolled back.
    async fn commit(&self, events: Vec<Event>) -> Result<Vec<Sequence>, EnqueueError>;

    /// Writes the events in one transaction, each with `enqueue`, and leaves it open.
    async fn begin(&self, events: Vec<Event>) -> Box<dyn OpenTransaction>;

    /// Whether two transactions can have written events at the same time. False is for stores with one
    /// writer, such as SQLite; clauses about late commits are then not asked.
    fn concurrent_writers(&self) -> bool {
        true
    }

    /// Commits a row of this aggregate that cannot be read as an event, such as one whose headers are not a
    /// map, past the library, and returns its sequence. `None` where the schema refuses every such row.
    async fn insert_undecodable(&self, key: &AggregateKey) -> Option<Sequence>;

    /// From now on the database refuses to record what becomes of this aggregate's events, as a trigger or a
    /// constraint of the user's may. False, the default: it has no such thing.
    async fn refuse(&self, key: &AggregateKey) -> bool {
        let _ = key;
        false
    }

    /// The ids of the events in the archive, in any order.
    async fn archived(&self) -> Vec<Uuid>;

    /// Now, by the store's clock.
    async fn now(&self) -> DateTime<Utc>;

    /// Returns once at least `duration` has passed by the store's clock: by waiting, or by moving a clock
    /// that the harness controls. The suite asks for at most 300 ms at a time.
    async fn advance(&self, duration: Duration);
}

/// A transaction that has written events and is still open. Dropped, it is rolled back.
#[async_trait]
pub trait OpenTransaction: Send {
    /// The sequences of its events, in the order given.
    fn sequences(&self) -> Vec<Sequence>;

    /// Commits it.
    async fn commit(self: Box<Self>);

    /// Rolls it back.
    async fn rollback(self: Box<Self>);
}
