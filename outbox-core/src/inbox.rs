//! The consumer's side: [`Inbox`], which tells a message that was handled already from one that was not.
//!
//! Brokers and relays deliver at least once. A consumer makes that an effect that happens *exactly once* by
//! writing down, in the transaction of the effect, which event it handled:
//!
//! ```text
//! begin ──▶ inbox.receive ──┬─ New ────▶ effect ──▶ commit ──▶ acknowledge the message
//!                           ├─ Seen ──▶ nothing ──▶ end ────▶ acknowledge the message
//!                           └─ TooOld ▶ nothing ──▶ end ────▶ set the message aside, then acknowledge it
//! ```
//!
//! Never acknowledge before the commit: a crash in between loses the effect. A crash between commit and
//! acknowledgement brings the message again, and it is [`Receipt::Seen`]. An error rolls back, receipt and
//! effect together, and leaves the message unacknowledged. [`consume_once`] is this order as a function.
//!
//! # What must not happen
//! An event whose receipt has committed is never answered [`Receipt::New`] again, also after its row was
//! purged. So a purge leaves a *horizon* behind, for each consumer and source: the latest time of an event of
//! which the row was removed. What has no row and is not later than the horizon is [`Receipt::TooOld`]: it
//! may have been handled.
//!
//! # Time
//! The horizon is a time of events, compared with times of events: an event carries its own time, which is
//! the same in every copy of it. No clock decides whether an event was seen. The consumer's database clock
//! decides only which rows are old enough to be purged, so the age given to [`Inbox::purge`] is the margin
//! for everything that makes a message late: the time it can wait in the producer's outbox (parked and
//! requeued events included), the time the broker keeps it, the time the consumer can be down, and the
//! difference between the producer's clock and the consumer's. Beyond that margin, an event that was never
//! handled is answered `TooOld`, and a person has to look at it.
//!
//! An event without a time, of which the id is not a UUIDv7 either, is remembered for ever: with nothing to
//! compare, its row cannot be purged without forgetting it. `check` reports such rows.

use std::{future::Future, time::Duration};

use chrono::{DateTime, Datelike, SubsecRound, Utc};
use uuid::Uuid;

use crate::{EventError, InboxError, event::check_name};

/// The least age that may be purged: one hour.
///
/// It is a constant, so that a purge in one process and a receipt in another agree on it: a store need not
/// look at the horizon for an event that is younger. It bounds how far the clock of a consumer's database may
/// be set back.
pub const PURGE_AGE_MIN: Duration = Duration::from_secs(3600);

/// Whether an event was handled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "only a new event may have its effect"]
pub enum Receipt {
    /// It was not. The receipt is written, and commits or rolls back with the transaction: make the effect in
    /// it.
    New,
    /// It was, in a transaction that has committed, or in this one. Acknowledge the message and do nothing.
    Seen,
    /// It is as old as what was purged, so it is not known whether it was handled. Nothing is written. Treat
    /// it as a message that cannot be handled: set it aside for a person to look at, and acknowledge it.
    TooOld,
}

/// What identifies an event: CloudEvents' `source` and `id` together, and the time at which it happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventIdentity {
    source: String,
    id: String,
    time: Option<DateTime<Utc>>,
}

impl EventIdentity {
    /// An identity from a message's attributes. Without a `time`, it is taken from an `id` that is a UUIDv7.
    /// It is kept to the microsecond.
    ///
    /// The time must be the event's own, the same in every copy of the message; never the time at which a
    /// broker took it.
    ///
    /// # Errors
    /// A `source` or `id` that is empty, longer than [`NAME_BYTES_MAX`](crate::event::NAME_BYTES_MAX) bytes
    /// or holds a control character; a time that is not within the years 1 to 9999.
    pub fn new(
        source: impl Into<String>,
        id: impl Into<String>,
        time: Option<DateTime<Utc>>,
    ) -> Result<Self, EventError> {
        let (source, id) = (source.into(), id.into());
        check_name("source", &source)?;
        check_name("id", &id)?;
        if let Some(time) = time.filter(|time| !(1..=9999).contains(&time.year())) {
            return Err(EventError::Time(time));
        }
        let time = time.or_else(|| time_of_id(&id)).map(|time| time.trunc_subsecs(6));
        Ok(Self { source, id, time })
    }

    /// Where the event comes from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its id, unique within its source.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When it happened, by the clock of its source; `None` if neither an attribute nor the id tells.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        self.time
    }
}

/// The time in a UUIDv7 (RFC 9562, section 5.7).
fn time_of_id(id: &str) -> Option<DateTime<Utc>> {
    let id = Uuid::parse_str(id).ok().filter(|id| id.get_version_num() == 7)?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let time = DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?;
    (time.year() <= 9999).then_some(time)
}

/// Checks the name of a consumer: what reads the messages, such as `billing`, the same in all its processes
/// and for all time, because its receipts are kept under it.
///
/// # Errors
/// A name that is empty, longer than [`NAME_BYTES_MAX`](crate::event::NAME_BYTES_MAX) bytes or holds a
/// control character.
pub fn check_consumer(name: &str) -> Result<(), EventError> {
    check_name("consumer", name)
}

/// Checks the age of a purge. Called by every [`Inbox::purge`].
///
/// # Errors
/// [`InboxError::PurgeAge`] below [`PURGE_AGE_MIN`].
pub fn check_purge_age(older_than: Duration) -> Result<(), InboxError> {
    if older_than < PURGE_AGE_MIN { Err(InboxError::PurgeAge(older_than)) } else { Ok(()) }
}

/// The inbox of one consumer, in the consumer's own transaction, which `T` is: a driver's type, never a pool,
/// which would lose atomicity silently. Several consumers may share the tables. Runs no DDL, and commits
/// nothing.
///
/// Names are compared byte for byte: case, accents and trailing spaces count.
pub trait Inbox<T: ?Sized> {
    /// Writes down that the event is being handled, unless it was before. To be called before the effect.
    ///
    /// While another transaction has received the same event and is open, this waits for its end and answers
    /// `Seen` after a commit, `New` after a rollback; a store that cannot wait answers
    /// [`StoreErrorKind::Conflict`](crate::StoreErrorKind::Conflict), as any store may under an isolation
    /// level that does not see what was committed meanwhile: roll back, and begin again.
    ///
    /// # Errors
    /// [`InboxError::NoTransaction`] where nothing would be atomic; [`InboxError::Store`] from the store,
    /// after which the transaction is what the driver says of it.
    fn receive(
        &self,
        transaction: &mut T,
        event: &EventIdentity,
    ) -> impl Future<Output = Result<Receipt, InboxError>> + Send;

    /// Removes receipts of events whose time is more than `older_than` ago by the database's clock, oldest
    /// first and at most `rows_max`, and raises the horizon in the same transaction. Returns how many; call
    /// it again, in another transaction, while that is `rows_max`. Any number of processes may do it.
    ///
    /// # Errors
    /// [`InboxError::PurgeAge`] if `older_than` is below [`PURGE_AGE_MIN`]; else as
    /// [`receive`](Self::receive).
    fn purge(
        &self,
        transaction: &mut T,
        older_than: Duration,
        rows_max: u32,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send;
}

/// Makes an effect once: asks the inbox and runs `effect` if the event is new, both in `transaction`, which
/// the caller began and ends.
///
/// After `Ok`, commit and then acknowledge the message, whatever the receipt; set a [`Receipt::TooOld`] one
/// aside before. After an error, roll back and do not acknowledge: the broker delivers the message again.
///
/// ```
/// use std::sync::Arc;
/// use outbox_core::{
///     InboxError, Receipt, consume_once,
///     inbox::EventIdentity,
///     memory::{MemoryInbox, MemoryStore, MemoryTransaction},
///     relay::TokioClock,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let database = MemoryStore::new(Arc::new(TokioClock::default()));
/// let inbox = MemoryInbox::new(&database, "billing")?;
/// let event = EventIdentity::new("/shop", "01997a4e-8d6c-7c53-a2b0-6b9f5a1d3c11", None)?;
/// for expected in [Receipt::New, Receipt::Seen] {
///     let mut transaction = database.begin();
///     let receipt = consume_once(&inbox, &mut transaction, &event, async |transaction: &mut MemoryTransaction| {
///         transaction.put("invoice-4711", "written");
///         Ok::<(), InboxError>(())
///     });
///     assert_eq!(receipt.await?, expected);
///     transaction.commit();
///     // Acknowledge the message here, not earlier.
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// What the inbox or the effect says.
pub async fn consume_once<T, I, E>(
    inbox: &I,
    transaction: &mut T,
    event: &EventIdentity,
    effect: impl AsyncFnOnce(&mut T) -> Result<(), E>,
) -> Result<Receipt, E>
where
    T: ?Sized,
    I: Inbox<T> + ?Sized,
    E: From<InboxError>,
{
    let receipt = inbox.receive(transaction, event).await?;
    if receipt == Receipt::New {
        effect(transaction).await?;
    }
    Ok(receipt)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;

    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn an_identity_is_refused_by_field() {
        let refused = |source: &str, id: &str| EventIdentity::new(source, id, None).unwrap_err();
        assert_eq!(refused("", "1"), EventError::Empty { field: "source" });
        assert_eq!(refused("/shop", ""), EventError::Empty { field: "id" });
        assert_eq!(
            refused("/shop", &"x".repeat(1024)).to_string(),
            "id has 1024 bytes, more than the limit of 255"
        );
        assert_eq!(
            refused(&"x".repeat(256), "1").to_string(),
            "source has 256 bytes, more than the limit of 255"
        );
        assert!(matches!(refused("/shop", "a\0b"), EventError::ControlCharacter { field: "id", .. }));
        assert!(matches!(check_consumer("").unwrap_err(), EventError::Empty { field: "consumer" }));
        let ancient = Utc.timestamp_opt(-80_000_000_000, 0).unwrap();
        let error = EventIdentity::new("/shop", "1", Some(ancient)).unwrap_err();
        assert!(matches!(error, EventError::Time(_)), "{error}");
    }

    #[test]
    fn the_time_is_the_attribute_or_that_of_a_uuid_v7() {
        let of = |id: &str, time| EventIdentity::new("/shop", id, time).unwrap().time();
        // The example of RFC 9562, appendix A.6.
        let v7 = "017F22E2-79B0-7CC3-98C4-DC0C0C07398F";
        assert_eq!(of(v7, None), Some(time("2022-02-22T19:22:22Z")));
        let given = time("2026-09-21T14:13:20.000001999Z");
        assert_eq!(of(v7, Some(given)), Some(time("2026-09-21T14:13:20.000001Z")), "to the microsecond");
        for none in ["919108f7-52d1-4320-9bac-f847db4148a8", "4711", "017F22E2"] {
            assert_eq!(of(none, None), None, "{none}");
        }
    }

    #[test]
    fn young_receipts_are_not_purged() {
        assert!(check_purge_age(PURGE_AGE_MIN).is_ok());
        let error = check_purge_age(Duration::from_secs(3599)).unwrap_err();
        assert_eq!(error.to_string(), "purge of receipts older than 3599s: give 3600s at least");
    }
}
