//! The writer's side of a store: [`Enqueue`].

use std::future::Future;

use crate::{EnqueueError, Event, store::Sequence};

/// Writes events in the caller's own transaction, which `T` is: a driver's type, never a pool, which would
/// lose atomicity silently. Runs no DDL, and commits nothing.
pub trait Enqueue<T: ?Sized> {
    /// Writes one event and returns its sequence.
    ///
    /// # Errors
    /// An event that breaks a limit is refused before anything is sent, and the transaction is still usable.
    fn enqueue(
        &self,
        transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send;

    /// Writes many events at once, which is many times faster, and returns their sequences in the order
    /// given. All or none are written; sequences ascend in the order given.
    fn enqueue_all(
        &self,
        transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send;
}
