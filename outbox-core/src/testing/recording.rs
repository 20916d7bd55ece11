//! What was enqueued: [`RecordingOutbox`].

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, ready},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::{Enqueue, EnqueueError, Event, event::PAYLOAD_BYTES_MAX_DEFAULT, store::Sequence};

/// An outbox that remembers what it is given, in any transaction. Cheap to clone; clones share what they
/// remember.
///
/// [`new`](Self::new) writes into no database, so that code is tested without one; its transaction may be of
/// any type, `()` included. [`around`](Self::around) writes into the real outbox as well, so that a test with
/// a database sees what was enqueued in the transaction it looks at.
///
/// It does not see whether a transaction commits: [`take`](Self::take) what one enqueued before the next
/// begins. For the same reason [`new`](Self::new) does not refuse an id that it has seen;
/// [`fail_next`](Self::fail_next) does, where that is tested. A [`MemoryStore`](crate::memory::MemoryStore)
/// knows both.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), outbox_core::EnqueueError> {
/// use outbox_core::{Enqueue, EnqueueError, Event, testing::RecordingOutbox};
///
/// async fn place<T>(outbox: &impl Enqueue<T>, transaction: &mut T) -> Result<(), EnqueueError> {
///     outbox.enqueue(transaction, &Event::builder("order", "4711", "order.placed").build()?).await?;
///     Ok(())
/// }
///
/// let outbox = RecordingOutbox::new();
/// place(&outbox, &mut ()).await?;
/// assert_eq!(outbox.events()[0].event_type(), "order.placed");
///
/// outbox.fail_next(1, |_| EnqueueError::NoTransaction);
/// assert!(place(&outbox, &mut ()).await.is_err());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RecordingOutbox<O = NoDatabase> {
    outbox: O,
    record: Arc<Mutex<Record>>,
}

/// An event that was enqueued.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Recorded {
    /// Its sequence, as the outbox answered.
    pub sequence: Sequence,
    /// The event.
    pub event: Event,
}

#[derive(Default)]
struct Record {
    written: Vec<Recorded>,
    refusals: VecDeque<Refusal>,
}

struct Refusal {
    error: Box<dyn FnMut(&Event) -> EnqueueError + Send>,
    times_left: u32,
}

impl RecordingOutbox {
    /// An outbox without a database. Sequences ascend from 1, and a payload above
    /// [`PAYLOAD_BYTES_MAX_DEFAULT`] is refused.
    pub fn new() -> Self {
        Self::around(NoDatabase::default())
    }
}

impl Default for RecordingOutbox {
    fn default() -> Self {
        Self::new()
    }
}

impl<O> RecordingOutbox<O> {
    /// Writes into `outbox`, and remembers what that has taken.
    pub fn around(outbox: O) -> Self {
        Self { outbox, record: Arc::default() }
    }

    /// The events that were enqueued and not taken, in order.
    pub fn events(&self) -> Vec<Event> {
        self.lock().written.iter().map(|recorded| recorded.event.clone()).collect()
    }

    /// Takes what was enqueued since the last call, in order, with its sequences: what one transaction wrote,
    /// if it is called behind each.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.lock().written)
    }

    /// Refuses the next `times` calls with what `error` says of their (first) event; nothing of them is
    /// written. Behind what was told before.
    pub fn fail_next(&self, times: u32, error: impl FnMut(&Event) -> EnqueueError + Send + 'static) {
        self.lock().refusals.push_back(Refusal { error: Box::new(error), times_left: times });
    }

    /// The error that the next call is told to have, once.
    fn refusal(&self, event: &Event) -> Option<EnqueueError> {
        let mut record = self.lock();
        while record.refusals.front()?.times_left == 0 {
            record.refusals.pop_front();
        }
        let refusal = record.refusals.front_mut()?;
        refusal.times_left -= 1;
        Some((refusal.error)(event))
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<O: fmt::Debug> fmt::Debug for RecordingOutbox<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingOutbox")
            .field("outbox", &self.outbox)
            .field("written", &self.lock().written)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized, O: Enqueue<T>> Enqueue<T> for RecordingOutbox<O> {
    fn enqueue(
        &self,
        transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        let written = match self.refusal(event) {
            Some(error) => Err(error),
            None => Ok(self.outbox.enqueue(transaction, event)),
        };
        // The future must not hold the transaction itself, which need not be `Send`.
        let record = Arc::clone(&self.record);
        async move {
            let sequence = written?.await?;
            lock(&record).written.push(Recorded { sequence, event: event.clone() });
            Ok(sequence)
        }
    }

    fn enqueue_all(
        &self,
        transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        let written = match events.first().and_then(|event| self.refusal(event)) {
            Some(error) => Err(error),
            None => Ok(self.outbox.enqueue_all(transaction, events)),
        };
        let record = Arc::clone(&self.record);
        async move {
            let sequences = written?.await?;
            let recorded = sequences.iter().zip(events);
            lock(&record).written.extend(
                recorded.map(|(sequence, event)| Recorded { sequence: *sequence, event: event.clone() }),
            );
            Ok(sequences)
        }
    }
}

/// An outbox that writes nowhere, in any transaction: what a [`RecordingOutbox`] is around unless told
/// otherwise.
#[derive(Debug, Clone, Default)]
pub struct NoDatabase {
    written: Arc<AtomicI64>,
}

impl NoDatabase {
    fn write(&self, events: &[Event]) -> Result<Vec<Sequence>, EnqueueError> {
        for event in events {
            event.check_payload(PAYLOAD_BYTES_MAX_DEFAULT)?;
        }
        Ok(events.iter().map(|_| self.written.fetch_add(1, Ordering::Relaxed) + 1).collect())
    }
}

impl<T: ?Sized> Enqueue<T> for NoDatabase {
    fn enqueue(
        &self,
        _transaction: &mut T,
        event: &Event,
    ) -> impl Future<Output = Result<Sequence, EnqueueError>> + Send {
        ready(self.write(std::slice::from_ref(event)).map(|sequences| sequences[0]))
    }

    fn enqueue_all(
        &self,
        _transaction: &mut T,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Sequence>, EnqueueError>> + Send {
        ready(self.write(events))
    }
}
