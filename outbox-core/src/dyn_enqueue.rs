//! [`Enqueue`] behind a pointer: [`DynEnqueue`].

use std::{future::Future, sync::Arc};

use futures::future::BoxFuture;

use crate::{Enqueue, EnqueueError, Event, store::Sequence};

/// An [`Enqueue`] that can be a trait object, so that a service holds `Arc<dyn DynEnqueue<PgConnection>>` and
/// its tests give it another outbox. Implemented for every `Enqueue`; costs one allocation a call.
///
/// It is an `Enqueue` itself, and so is an `Arc` of it: the calls look the same. (Of a transaction that is
/// not `Send`, such as rusqlite's, it is not: call `enqueue_boxed` there.)
///
/// ```
/// use std::sync::Arc;
/// use outbox_core::{DynEnqueue, Enqueue as _, EnqueueError, Event};
///
/// struct Shop<T> { outbox: Arc<dyn DynEnqueue<T>> }
///
/// impl<T: Send> Shop<T> {
///     async fn place(&self, transaction: &mut T) -> Result<(), EnqueueError> {
///         self.outbox.enqueue(transaction, &Event::builder("order", "4711", "order.placed").build()?).await?;
///         Ok(())
///     }
/// }
/// ```
pub trait DynEnqueue<T: ?Sized>: Send + Sync {
    /// As [`Enqueue::enqueue`].
    fn enqueue_boxed<'a>(
        &'a self,
        transaction: &'a mut T,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<Sequence, EnqueueError>>;

    /// As [`Enqueue::enqueue_all`].
    fn enqueue_all_boxed<'a>(
        &'a self,
        transaction: &'a mut T,
        events: &'a [Event],
    ) -> BoxFuture<'a, Result<Vec<Sequence>, EnqueueError>>;
}

impl<T: ?Sized, O: Enqueue<T> + Send + Sync> DynEnqueue<T> for O {
    fn enqueue_boxed<'a>(
        &'a self,
        transaction: &'a mut T,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<Sequence, EnqueueError>> {
        Box::pin(self.enqueue(transaction, event))
    }

    fn enqueue_all_boxed<'a>(
        &'a self,
        transaction: &'a mut T,
        events: &'a [Event],
    ) -> BoxFuture<'a, Result<Vec<Sequence>, EnqueueError>> {
        Box::pin(self.enqueue_all(transaction, events))
    }
}

impl<T: ?Sized + Send> Enqueue<T> for dyn DynEnqueue<T> + '_ {
    async fn enqueue(&self, transaction: &mut T, event: &Event) -> Result<Sequence, EnqueueError> {
        self.enqueue_boxed(transaction, event).await
    }

    async fn enqueue_all(
        &self,
        transaction: &mut T,
        events: &[Event],
    ) -> Result<Vec<Sequence>, EnqueueError> {
        self.enqueue_all_boxed(transaction, events).await
    }
}

impl<T: ?Sized, O: Enqueue<T> + ?Sized> Enqueue<T> for Arc<O> {
    fn enqueue(
        &self,
        transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        (**self).enqueue(transaction, event)
    }

    fn enqueue_all(
        &self,
        transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        (**self).enqueue_all(transaction, events)
    }
}
