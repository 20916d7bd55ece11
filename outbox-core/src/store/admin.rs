//! The operator's side of a store: [`OutboxAdmin`].

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{FailureCause, HoldReason, Partition, Sequence, Status};
use crate::{AggregateKey, StoreError, with::with};

/// Which events an operator means. Conditions are joined by *and*; none is all events of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventFilter {
    /// Only these ids; empty is any.
    pub ids: Vec<Uuid>,
    /// Only this status.
    pub status: Option<Status>,
    /// Only failures of this cause.
    pub cause: Option<FailureCause>,
    /// Only this aggregate type.
    pub aggregate_type: Option<String>,
    /// Only this aggregate id.
    pub aggregate_id: Option<String>,
    /// Only this event type.
    pub event_type: Option<String>,
    /// Only events written at this time or later: `created_at`, by the store's clock and in its resolution.
    pub created_from: Option<DateTime<Utc>>,
    /// Only events written before this time. A range includes its start and not its end, so that ranges that
    /// follow each other share no event.
    pub created_before: Option<DateTime<Utc>>,
    /// Events of the archive instead of those of the table. They can be listed and no more: `requeue` and
    /// `discard` find none of them, nor any of the table.
    pub archived: bool,
    /// Only events after this one, for the next page.
    pub after: Option<Sequence>,
}

impl EventFilter {
    /// Only these ids; none is any.
    #[must_use]
    pub fn with_ids(self, ids: Vec<Uuid>) -> Self {
        Self { ids, ..self }
    }

    /// Only this status.
    #[must_use]
    pub fn with_status(self, status: impl Into<Option<Status>>) -> Self {
        Self { status: status.into(), ..self }
    }

    /// Only failures of this cause.
    #[must_use]
    pub fn with_cause(self, cause: impl Into<Option<FailureCause>>) -> Self {
        Self { cause: cause.into(), ..self }
    }

    /// Only aggregates of this type.
    #[must_use]
    pub fn with_aggregate_type(self, aggregate_type: impl Into<String>) -> Self {
        Self { aggregate_type: Some(aggregate_type.into()), ..self }
    }

    /// Only aggregates of this id.
    #[must_use]
    pub fn with_aggregate_id(self, aggregate_id: impl Into<String>) -> Self {
        Self { aggregate_id: Some(aggregate_id.into()), ..self }
    }

    /// Only events of this type.
    #[must_use]
    pub fn with_event_type(self, event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..self }
    }

    /// Only events written at this time or later.
    #[must_use]
    pub fn with_created_from(self, from: impl Into<Option<DateTime<Utc>>>) -> Self {
        Self { created_from: from.into(), ..self }
    }

    /// Only events written before this time.
    #[must_use]
    pub fn with_created_before(self, before: impl Into<Option<DateTime<Utc>>>) -> Self {
        Self { created_before: before.into(), ..self }
    }

    /// Events of the archive instead of those of the table.
    #[must_use]
    pub fn in_archive(self) -> Self {
        Self { archived: true, ..self }
    }

    /// Only events after this one, for the next page.
    #[must_use]
    pub fn after(self, sequence: impl Into<Option<Sequence>>) -> Self {
        Self { after: sequence.into(), ..self }
    }

    /// The event with this id.
    pub fn id(id: Uuid) -> Self {
        Self { ids: vec![id], ..Self::default() }
    }

    /// Events of this status.
    pub fn status(status: Status) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Events of this aggregate.
    pub fn aggregate(key: &AggregateKey) -> Self {
        Self {
            aggregate_type: Some(key.aggregate_type().to_owned()),
            aggregate_id: Some(key.aggregate_id().to_owned()),
            ..Self::default()
        }
    }

    /// Whether an event is one of those meant, by everything but [`archived`](Self::archived), which says
    /// where events are looked for. For a store that looks at its events one by one; one with a query
    /// language has it compare.
    pub fn matches(&self, event: &EventRecord) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        self.after.is_none_or(|after| event.sequence > after)
            && (self.ids.is_empty() || event.id.is_some_and(|id| self.ids.contains(&id)))
            && self.status.is_none_or(|status| event.status == status)
            && self.cause.is_none_or(|cause| event.cause == Some(cause))
            && is(&self.aggregate_type, event.key.aggregate_type())
            && is(&self.aggregate_id, event.key.aggregate_id())
            && is(&self.event_type, &event.event_type)
            && self.created_from.is_none_or(|from| event.created_at >= from)
            && self.created_before.is_none_or(|before| event.created_at < before)
    }
}

/// All that a store knows of an event, whatever its status.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EventRecord {
    /// The idempotency key; `None` where the row's id cannot be read.
    pub id: Option<Uuid>,
    /// Its position.
    pub sequence: Sequence,
    /// Its partition.
    pub partition: Partition,
    /// Its aggregate.
    pub key: AggregateKey,
    /// What happened.
    pub event_type: String,
    /// The version of the payload's schema.
    pub version: i32,
    /// The payload; `None` is a tombstone, or a payload that cannot be read.
    pub payload: Option<Bytes>,
    /// The media type of the payload.
    pub content_type: Option<String>,
    /// Headers, as far as they can be read.
    pub headers: BTreeMap<String, String>,
    /// The destination, where the writer chose one.
    pub topic: Option<String>,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// When it is scheduled for.
    pub available_at: Option<DateTime<Utc>>,
    /// Where it is in its life.
    pub status: Status,
    /// Recorded attempts.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Why it was given up.
    pub cause: Option<FailureCause>,
    /// When it was acknowledged.
    pub sent_at: Option<DateTime<Utc>>,
    /// When it was given up.
    pub failed_at: Option<DateTime<Utc>>,
}

impl EventRecord {
    /// A record of what every row has; the fields that a row may lack are empty, the version is 1.
    pub fn new(
        sequence: Sequence,
        partition: Partition,
        key: AggregateKey,
        status: Status,
        created_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id: None,
            sequence,
            partition,
            key,
            event_type: String::new(),
            version: 1,
            payload: None,
            content_type: None,
            headers: BTreeMap::new(),
            topic: None,
            created_at,
            available_at: None,
            status,
            attempts: 0,
            last_error: None,
            cause: None,
            sent_at: None,
            failed_at: None,
        }
    }

    /// The size of the payload, in bytes; zero for a tombstone.
    pub fn payload_len(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// A hold as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HoldRecord {
    /// The aggregate that waits.
    pub key: AggregateKey,
    /// Its partition.
    pub partition: Partition,
    /// The event it waits behind.
    pub sequence: Option<Sequence>,
    /// How long it still waits by the store's clock; zero when due; `None` without end.
    pub due_in: Option<Duration>,
    /// Why.
    pub reason: HoldReason,
    /// An operator paused it.
    pub paused: bool,
}

impl HoldRecord {
    /// A hold without end that is not paused.
    pub fn new(
        key: AggregateKey,
        partition: Partition,
        sequence: Option<Sequence>,
        reason: HoldReason,
    ) -> Self {
        Self { key, partition, sequence, due_in: None, reason, paused: false }
    }
}

/// What an operator does to events and aggregates. Every call is one transaction, takes effect within the
/// relay's next polls, and needs no relay to be running.
#[async_trait]
pub trait OutboxAdmin: Send + Sync + 'static {
    /// Events of the table, or of the archive if the filter says so, in ascending sequence, at most
    /// `rows_max`. Pages are told apart by the sequence, which an archive may have more than once, after a
    /// restore or where the numbers began again: its page ends with the last event of its last sequence,
    /// beyond `rows_max` if it must.
    async fn list(&self, filter: &EventFilter, rows_max: u32) -> Result<Vec<EventRecord>, StoreError>;

    /// Holds, in the order in which they become due, at most `rows_max`.
    async fn holds(&self, rows_max: u32) -> Result<Vec<HoldRecord>, StoreError>;

    /// Puts failed events back: pending, no attempts, `last_error` kept, and their aggregate held behind the
    /// first of them with a time of now, so that it is delivered next. Returns how many; events that are not
    /// failed are left alone. A hold of an event that is not among them keeps its own time, with the lower
    /// sequence; a pause stays a pause.
    async fn requeue(&self, filter: &EventFilter) -> Result<u64, StoreError>;

    /// Gives events up: those that are failed get the cause `discarded`, and a hold that names one of them
    /// (it is parked) becomes due; those that are pending and named by their aggregate's hold become failed
    /// with that cause, and the hold becomes due. Other pending events are left alone, since one could be on
    /// its way. Returns how many.
    async fn discard(&self, filter: &EventFilter) -> Result<u64, StoreError>;

    /// Keeps an aggregate back until it is resumed. What is in flight still arrives.
    async fn pause(&self, key: &AggregateKey) -> Result<(), StoreError>;

    /// Ends a pause or a park: the hold becomes due now. True if there was a hold.
    async fn resume(&self, key: &AggregateKey) -> Result<bool, StoreError>;

    /// Keeps a topic back until it is resumed. What is in flight still arrives.
    async fn pause_topic(&self, topic: &str) -> Result<(), StoreError>;

    /// Ends the pause of a topic; holds with [`HoldReason::Topic`] become due now. True if it was paused.
    async fn resume_topic(&self, topic: &str) -> Result<bool, StoreError>;

    /// The topics that are paused.
    async fn paused_topics(&self) -> Result<Vec<String>, StoreError>;
}

with!(EventRecord {
    with_id id: Option<Uuid>,
    with_event_type event_type: String,
    with_version version: i32,
    with_payload payload: Option<Bytes>,
    with_content_type content_type: Option<String>,
    with_headers headers: BTreeMap<String, String>,
    with_topic topic: Option<String>,
    with_available_at available_at: Option<DateTime<Utc>>,
    with_status status: Status,
    with_attempts attempts: u32,
    with_last_error last_error: Option<String>,
    with_cause cause: Option<FailureCause>,
    with_sent_at sent_at: Option<DateTime<Utc>>,
    with_failed_at failed_at: Option<DateTime<Utc>>,
});

with!(HoldRecord { with_due_in due_in: Option<Duration>, with_paused paused: bool });

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> EventRecord {
        let (key, at) = (AggregateKey::new("order", "1"), DateTime::from_timestamp(100, 0).unwrap());
        EventRecord::new(5, 0, key, Status::Failed, at)
            .with_id(Some(Uuid::from_u128(7)))
            .with_event_type("order.placed".to_owned())
            .with_cause(Some(FailureCause::Expired))
    }

    #[test]
    fn each_condition_of_a_filter_lets_its_own_events_pass_and_no_others() {
        let any = EventFilter::default;
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        let text = |text: &str| Some(text.to_owned());
        let pairs = [
            (EventFilter::id(Uuid::from_u128(7)), EventFilter::id(Uuid::from_u128(8))),
            (EventFilter::status(Status::Failed), EventFilter::status(Status::Sent)),
            (
                EventFilter { cause: Some(FailureCause::Expired), ..any() },
                EventFilter { cause: Some(FailureCause::Permanent), ..any() },
            ),
            (
                EventFilter::aggregate(&AggregateKey::new("order", "1")),
                EventFilter::aggregate(&AggregateKey::new("order", "2")),
            ),
            (
                EventFilter { aggregate_type: text("order"), ..any() },
                EventFilter { aggregate_type: text("Order"), ..any() },
            ),
            (
                EventFilter { event_type: text("order.placed"), ..any() },
                EventFilter { event_type: text("order"), ..any() },
            ),
            (EventFilter { created_from: at(100), ..any() }, EventFilter { created_from: at(101), ..any() }),
            (
                EventFilter { created_before: at(101), ..any() },
                EventFilter { created_before: at(100), ..any() },
            ),
            (EventFilter { after: Some(4), ..any() }, EventFilter { after: Some(5), ..any() }),
            (EventFilter { archived: true, ..any() }, EventFilter { ids: vec![Uuid::nil()], ..any() }),
        ];
        for (meant, other) in pairs {
            assert!(meant.matches(&record()), "{meant:?}");
            assert!(!other.matches(&record()), "{other:?}");
        }
        let unread = EventRecord { id: None, ..record() };
        assert!(any().matches(&unread) && !EventFilter::id(Uuid::nil()).matches(&unread));
    }
}
