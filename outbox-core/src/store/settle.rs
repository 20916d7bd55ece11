//! What became of events, and the request that records it.

use std::{borrow::Cow, time::Duration};

use super::{FailureCause, HoldReason, Lease, Partition, RelayId, Sequence, WhenSent};
use crate::{AggregateKey, with::with};

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The broker acknowledged this very message.
    Sent,
    /// To be tried again: the aggregate is held behind this event.
    Retry {
        /// How long to hold it, by the store's clock from the time of the settle.
        after: Duration,
        /// What went wrong; kept as `last_error`.
        error: String,
        /// Why it is held: [`HoldReason::Backoff`] or [`HoldReason::Topic`].
        reason: HoldReason,
    },
    /// Given up.
    Failed {
        /// Why.
        cause: FailureCause,
        /// What went wrong; kept as `last_error`.
        error: String,
        /// What becomes of its successors.
        successors: Successors,
    },
}

impl Outcome {
    /// A [`Retry`](Self::Retry) whose error is cut to what every store can keep: [`storable_error`].
    pub fn retry(after: Duration, error: impl AsRef<str>, reason: HoldReason) -> Self {
        Self::Retry { after, error: storable_error(error.as_ref()).into_owned(), reason }
    }

    /// A [`Failed`](Self::Failed) whose error is cut to what every store can keep: [`storable_error`].
    pub fn failed(cause: FailureCause, error: impl AsRef<str>, successors: Successors) -> Self {
        Self::Failed { cause, error: storable_error(error.as_ref()).into_owned(), successors }
    }
}

/// The longest `last_error` that is kept, in bytes: a page of text, more than any driver's message, and
/// little enough that a hundred thousand failed events stay below half a gigabyte.
pub const ERROR_BYTES_MAX: usize = 4096;

/// The text of an error as every store can keep it: at most [`ERROR_BYTES_MAX`] bytes, cut between
/// characters, and without NUL, which PostgreSQL cannot store.
///
/// [`Outcome::retry`] and [`Outcome::failed`] have done so already. A store calls it for outcomes that were
/// built by hand if its database would refuse the text.
pub fn storable_error(error: &str) -> Cow<'_, str> {
    let error =
        if error.contains('\0') { Cow::Owned(error.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(error) };
    let end = error.floor_char_boundary(ERROR_BYTES_MAX);
    match error {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
        Cow::Owned(mut text) => {
            text.truncate(end);
            Cow::Owned(text)
        }
    }
}

/// What becomes of the successors of an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Successors {
    /// They go on.
    Release,
    /// They wait behind a hold without end, until an operator acts.
    Park,
}

/// An outcome to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// The event.
    pub sequence: Sequence,
    /// Its partition; the lease is found by it.
    pub partition: Partition,
    /// Its aggregate.
    pub key: AggregateKey,
    /// The number of attempts to be stored. Absolute, so that settling twice counts once.
    pub attempts: u32,
    /// What became of it.
    pub outcome: Outcome,
}

impl Settlement {
    /// The outcome of attempt number `attempts` of an event.
    pub fn new(
        sequence: Sequence,
        partition: Partition,
        key: AggregateKey,
        attempts: u32,
        outcome: Outcome,
    ) -> Self {
        Self { sequence, partition, key, attempts, outcome }
    }
}

/// A hold that holds nothing any more and is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unhold {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// The hold's event as it was read, so that a hold that has changed since is not removed.
    pub sequence: Option<Sequence>,
}

impl Unhold {
    /// The removal of a hold as it was read.
    pub fn new(key: AggregateKey, partition: Partition, sequence: Option<Sequence>) -> Self {
        Self { key, partition, sequence }
    }
}

/// What one settle records, all of it in one transaction.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SettleRequest {
    /// Who settles.
    pub relay: RelayId,
    /// A lease for every partition that occurs in `settlements` or `unholds`.
    pub leases: Vec<Lease>,
    /// What became of which event; one entry an event.
    pub settlements: Vec<Settlement>,
    /// Holds to be removed.
    pub unholds: Vec<Unhold>,
    /// What becomes of sent rows.
    pub when_sent: WhenSent,
}

/// What a settle did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// The partitions whose lease is lost. Nothing of theirs was changed after it was lost; everything else
    /// was recorded.
    pub fenced: Vec<Partition>,
}

impl SettleRequest {
    /// A request that records nothing yet and keeps sent rows.
    pub fn new(relay: RelayId, leases: Vec<Lease>) -> Self {
        Self { relay, leases, settlements: Vec::new(), unholds: Vec::new(), when_sent: WhenSent::Keep }
    }

    /// Every partition that the request names, in ascending order: by a lease, a settlement or an unhold.
    pub fn partitions(&self) -> Vec<Partition> {
        let leases = self.leases.iter().map(|lease| lease.partition);
        let settlements = self.settlements.iter().map(|settlement| settlement.partition);
        let unholds = self.unholds.iter().map(|unhold| unhold.partition);
        let mut partitions: Vec<Partition> = leases.chain(settlements).chain(unholds).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }

    /// The partitions that are fenced, in ascending order: those that the request names without a lease that
    /// is `held`, by owner and epoch.
    pub fn fenced(&self, held: impl Fn(Lease) -> bool) -> Vec<Partition> {
        let mut ours: Vec<Partition> =
            self.leases.iter().filter(|lease| held(**lease)).map(|lease| lease.partition).collect();
        ours.sort_unstable();
        let mut fenced = self.partitions();
        fenced.retain(|partition| ours.binary_search(partition).is_err());
        fenced
    }

    /// The settlements of partitions that are not `fenced`, in the order in which they apply: ascending, so
    /// that a retry that comes after the end of the held event leaves its own hold behind.
    pub fn settlements_in_order(&self, fenced: &[Partition]) -> Vec<&Settlement> {
        let ours = |settlement: &&Settlement| !fenced.contains(&settlement.partition);
        let mut settlements: Vec<&Settlement> = self.settlements.iter().filter(ours).collect();
        settlements.sort_by_key(|settlement| settlement.sequence);
        settlements
    }

    /// The unholds of partitions that are not `fenced`. They apply after the settlements.
    pub fn unholds_of(&self, fenced: &[Partition]) -> impl Iterator<Item = &Unhold> {
        self.unholds.iter().filter(move |unhold| !fenced.contains(&unhold.partition))
    }
}

with!(SettleRequest {
    with_relay relay: RelayId,
    with_leases leases: Vec<Lease>,
    with_settlements settlements: Vec<Settlement>,
    with_unholds unholds: Vec<Unhold>,
    with_when_sent when_sent: WhenSent,
});

with!(Settled { with_fenced fenced: Vec<Partition> });

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(partition: Partition) -> Lease {
        Lease { partition, epoch: 1 }
    }

    fn settlement(sequence: Sequence, partition: Partition) -> Settlement {
        let key = AggregateKey::new("order", "1");
        Settlement { sequence, partition, key, attempts: 1, outcome: Outcome::Sent }
    }

    fn request() -> SettleRequest {
        SettleRequest {
            relay: RelayId(uuid::Uuid::nil()),
            leases: vec![lease(4), lease(1), lease(2)],
            settlements: vec![settlement(9, 4), settlement(3, 2), settlement(5, 7)],
            unholds: vec![Unhold { key: AggregateKey::new("order", "2"), partition: 6, sequence: None }],
            when_sent: WhenSent::Keep,
        }
    }

    #[test]
    fn what_is_named_without_a_held_lease_is_fenced() {
        assert_eq!(request().partitions(), [1, 2, 4, 6, 7]);
        assert_eq!(request().fenced(|lease| lease.partition != 2), [2, 6, 7]);
    }

    #[test]
    fn what_is_not_fenced_applies_in_ascending_sequence() {
        let request = request();
        let sequences = |fenced: &[Partition]| -> Vec<Sequence> {
            request.settlements_in_order(fenced).iter().map(|settlement| settlement.sequence).collect()
        };
        assert_eq!(sequences(&[7]), [3, 9]);
        assert_eq!(sequences(&[2]), [5, 9]);
        assert_eq!(request.unholds_of(&[6]).count(), 0);
        assert_eq!(request.unholds_of(&[7]).count(), 1);
    }

    #[test]
    fn an_error_is_cut_between_characters_and_without_nul() {
        assert_eq!(storable_error("a\0b"), "a\u{fffd}b");
        assert_eq!(storable_error("short"), "short");
        assert_eq!(storable_error(&"\0".repeat(ERROR_BYTES_MAX)).len(), ERROR_BYTES_MAX / 3 * 3);
        let text = "ä".repeat(ERROR_BYTES_MAX);
        assert_eq!(storable_error(&format!("x{text}")).len(), ERROR_BYTES_MAX - 1);
    }

    #[test]
    fn an_outcome_is_made_with_an_error_that_every_store_can_keep() {
        let text = format!("a\0b{}", "c".repeat(ERROR_BYTES_MAX));
        let kept = storable_error(&text).into_owned();
        assert_eq!(kept.len(), ERROR_BYTES_MAX);
        let retry = Outcome::retry(Duration::ZERO, &text, HoldReason::Backoff);
        assert!(matches!(retry, Outcome::Retry { error, .. } if error == kept));
        let failed = Outcome::failed(FailureCause::Permanent, text, Successors::Park);
        assert!(matches!(failed, Outcome::Failed { error, .. } if error == kept));
    }
}
