//! What every driver must do, as tests on real databases: [`driver_suite!`](crate::driver_suite).

mod place;
pub mod suite;

#[cfg(feature = "sqlite")]
pub use place::SqlitePlace;
#[cfg(feature = "mysql")]
pub use place::{MariadbPlace, MysqlPlace};
pub use place::{Place, PostgresPlace};

use std::future::Future;

use outbox_core::{Enqueue, Inbox};

/// A driver, and the database that it is tried on.
pub trait Harness: Sized + 'static {
    /// The database.
    type Place: Place;
    /// The driver's connection, inside a transaction, or its transaction.
    type Session: Send;

    /// The writer's side.
    fn outbox(place: &Self::Place) -> impl Enqueue<Self::Session> + Send + Sync;

    /// The side of the consumer `billing`.
    fn inbox(place: &Self::Place) -> impl Inbox<Self::Session> + Send + Sync;

    /// A connection of its own, inside a transaction.
    fn begin(place: &Self::Place) -> impl Future<Output = Self::Session> + Send;

    /// The same outside any: either it has not begun one, or its transaction has been ended behind the
    /// driver's back.
    fn outside(place: &Self::Place) -> impl Future<Output = Self::Session> + Send;

    /// Commits.
    fn commit(session: Self::Session) -> impl Future<Output = ()> + Send;

    /// Rolls back.
    fn rollback(session: Self::Session) -> impl Future<Output = ()> + Send;
}

/// The tests of one harness, each with a place of its own.
#[macro_export]
macro_rules! driver_suite {
    ($harness:ty) => {
        $crate::driver_tests! { $harness:
            committed_events_are_relayed_as_they_were_written
            rolled_back_events_are_not_there
            outside_a_transaction_nothing_is_written
            a_duplicate_is_named_and_the_transaction_goes_on
            a_payload_over_the_limit_is_refused_before_anything_is_sent
            a_receipt_is_new_until_it_is_committed_and_then_seen
            what_was_purged_is_too_old_and_never_new
        }
    };
}

/// A test of each of these functions in [`suite`].
#[doc(hidden)]
#[macro_export]
macro_rules! driver_tests {
    ($harness:ty: $($name:ident)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $crate::suite::$name::<$harness>().await;
        })+
    };
}
