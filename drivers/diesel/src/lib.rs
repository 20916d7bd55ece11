#![cfg_attr(all(feature = "postgres", feature = "async-postgres"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "postgres", feature = "async-postgres")),
    doc = "The outbox framework's tables through diesel and diesel-async."
)]

#[cfg(any(feature = "async-mysql", feature = "async-postgres"))]
mod asynchronous;
#[cfg(any(feature = "async-mysql", feature = "async-postgres", feature = "postgres", feature = "sqlite"))]
mod bind;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod blocking;
#[cfg(any(feature = "async-mysql", feature = "async-postgres", feature = "postgres", feature = "sqlite"))]
mod error;
#[cfg(any(feature = "async-mysql", feature = "async-postgres", feature = "postgres", feature = "sqlite"))]
mod row;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use outbox_core::{StoreError, StoreErrorKind};

/// An adapter's outbox or inbox in transactions of diesel or diesel-async.
pub type Through<A> = outbox_core::statement::Through<A, Diesel>;

/// Puts diesel before `adapter`: the outbox or inbox of `outbox_postgres`, `outbox_mysql` or
/// `outbox_sqlite`.
pub fn through<A>(adapter: A) -> Through<A> {
    Through::new(adapter, Diesel)
}

/// Statements on a connection of diesel or diesel-async that is inside a transaction.
///
/// Those of diesel block the thread until the database has answered, as all of its calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diesel;

/// What a call on a connection of diesel itself has answered: such a call blocks, and its future is ready.
///
/// # Errors
/// What the call has answered; [`StoreErrorKind::Misuse`] for a future that waits, such
/// as that of a connection of diesel-async.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub fn now<R, E: From<StoreError>>(call: impl Future<Output = Result<R, E>>) -> Result<R, E> {
    let call = pin!(call);
    match call.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => {
            Err(StoreError::new(StoreErrorKind::Misuse, "cannot answer at once: await what waits").into())
        }
    }
}
