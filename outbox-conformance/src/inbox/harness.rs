//! What the author of an inbox tells the suite: [`InboxHarness`].

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use outbox_core::{InboxError, Receipt, inbox::EventIdentity};

/// One isolated database with inboxes, and what the suite cannot do through the trait: begin and end the
/// driver's own transactions, and make an effect in them.
///
/// Methods that answer no `Result` panic when the database fails them: the test that runs then fails.
#[async_trait]
pub trait InboxHarness: Send + Sync + 'static {
    /// A new, empty, migrated place for inboxes that no other test sees. `None` where the server is not
    /// there, after saying so in one line on stderr; with `OUTBOX_REQUIRE_SERVERS=1` it panics instead.
    async fn fresh() -> Option<Self>
    where
        Self: Sized;

    /// Removes everything that [`fresh`](Self::fresh) made. Called after every clause, failed ones included.
    async fn cleanup(self)
    where
        Self: Sized;

    /// Begins a transaction on a connection of its own.
    async fn begin(&self) -> Box<dyn InboxTransaction>;

    /// Asks the inbox of `consumer` on a connection that is in no transaction. `None` where the driver's
    /// types rule that out.
    async fn receive_outside(
        &self,
        consumer: &str,
        event: &EventIdentity,
    ) -> Option<Result<Receipt, InboxError>>;

    /// How often the effect `name` has been made by transactions that have committed.
    async fn effects(&self, name: &str) -> u64;

    /// How many receipts are stored, of all consumers.
    async fn receipts(&self) -> u64;

    /// Now, by the database's clock.
    async fn now(&self) -> DateTime<Utc>;
}

/// An open transaction. Dropped, it is rolled back.
///
/// [`receive`](Self::receive) may block its thread while it waits for another transaction if it does so
/// within `tokio::task::block_in_place`.
#[async_trait]
pub trait InboxTransaction: Send {
    /// Asks the inbox of `consumer` in this transaction.
    ///
    /// # Errors
    /// What the inbox answered.
    async fn receive(&mut self, consumer: &str, event: &EventIdentity) -> Result<Receipt, InboxError>;

    /// Purges the inbox of `consumer` in this transaction.
    ///
    /// # Errors
    /// What the inbox answered.
    async fn purge(&mut self, consumer: &str, older_than: Duration, rows_max: u32)
    -> Result<u64, InboxError>;

    /// Makes the effect `name`, which is counted: a row in a table of its own.
    async fn effect(&mut self, name: &str);

    /// Commits it.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`](outbox_core::StoreErrorKind::Conflict) where the database asks only now
    /// to run the transaction again.
    async fn commit(self: Box<Self>) -> Result<(), InboxError>;

    /// Rolls it back.
    async fn rollback(self: Box<Self>);
}
