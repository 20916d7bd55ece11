//! Holds, and the rules by which they change, which are those of `OutboxStore::settle` and of the operator's calls.

use mongodb::bson::{Bson, DateTime as BsonDateTime, Document, RawBsonRef, RawDocument, doc};
use outbox_core::{AggregateKey, HoldReason, Partition, Sequence};

use crate::codec::{
    document::{partition_of, whole},
    sequence::{sequence_of, timestamp_of},
};

/// One document of the holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hold {
    pub(crate) partition: Partition,
    pub(crate) sequence: Option<Sequence>,
    /// `None` is without end.
    pub(crate) until: Option<BsonDateTime>,
    pub(crate) reason: HoldReason,
    /// Since when an operator has paused it. What it waits for stays as it is below the pause.
    pub(crate) paused_at: Option<BsonDateTime>,
}

/// The `_id` of an aggregate's hold.
pub(crate) fn hold_id(key: &AggregateKey) -> Bson {
    doc! { "aggregate_type": key.aggregate_type(), "aggregate_id": key.aggregate_id() }.into()
}

impl Hold {
    /// A hold with its aggregate; `None` for a document that is none.
    pub(crate) fn of(document: &RawDocument) -> Option<(AggregateKey, Self)> {
        let key = key_of(document)?;
        let partition = document.get("partition").ok().flatten().and_then(whole);
        let partition = partition.and_then(|partition| Partition::try_from(partition).ok());
        let date = |name| match document.get(name) {
            Ok(Some(RawBsonRef::DateTime(at))) => Some(at),
            _ => None,
        };
        let sequence = document.get_timestamp("sequence").ok().and_then(sequence_of);
        let reason = document.get_str("reason").ok().and_then(HoldReason::parse);
        let hold = Self {
            partition: partition.unwrap_or_else(|| partition_of(&key)),
            sequence,
            until: date("until"),
            // A word that somebody wrote by hand is a hold that somebody put there.
            reason: reason.unwrap_or(HoldReason::Paused),
            paused_at: date("paused_at"),
        };
        Some((key, hold))
    }

    pub(crate) fn is_due(&self, now: BsonDateTime) -> bool {
        self.paused_at.is_none() && self.until.is_some_and(|until| until <= now)
    }

    /// The fields beside the `_id`.
    pub(crate) fn document(&self) -> Document {
        let mut document = doc! {
            "partition": i32::from(self.partition),
            "sequence": self.sequence.map(timestamp_of),
            "until": self.until,
            "reason": self.reason.as_str(),
        };
        if let Some(paused_at) = self.paused_at {
            document.insert("paused_at", paused_at);
        }
        document
    }

    /// What becomes of a hold where a retry or a park wants `new`.
    pub(crate) fn held(before: Option<&Self>, new: Self) -> Self {
        let Some(hold) = before else { return new };
        if hold.sequence == new.sequence {
            return Self { until: new.until, reason: new.reason, ..hold.clone() };
        }
        let is_later = is_later(new.until, hold.until);
        Self {
            sequence: [hold.sequence, new.sequence].into_iter().flatten().min(),
            until: if is_later { new.until } else { hold.until },
            // The reason goes with the time: it says what the aggregate waits for.
            reason: if hold.sequence.is_none() || is_later { new.reason } else { hold.reason },
            ..hold.clone()
        }
    }

    /// What becomes of a hold when its event has come to its end: it goes, or goes on as a plain pause.
    pub(crate) fn ended(&self) -> Option<Self> {
        self.paused_at?;
        Some(Self { sequence: None, until: None, reason: HoldReason::Paused, ..self.clone() })
    }

    /// What becomes of a hold where the events `requeued` of its aggregate are put back.
    pub(crate) fn requeued(
        before: Option<&Self>,
        (key, requeued): (&AggregateKey, &[Sequence]),
        now: BsonDateTime,
    ) -> Self {
        let first = requeued.iter().copied().min();
        let new = Self {
            partition: partition_of(key),
            sequence: first,
            until: Some(now),
            reason: HoldReason::Requeued,
            paused_at: before.and_then(|hold| hold.paused_at),
        };
        match before {
            // A hold of another event keeps its own time; one of these events waits for nothing else than this.
            Some(hold) if hold.sequence.is_some_and(|held| !requeued.contains(&held)) => {
                Self { sequence: hold.sequence.min(first), ..hold.clone() }
            }
            Some(hold) => Self { partition: hold.partition, ..new },
            None => new,
        }
    }
}

/// The aggregate of a hold.
pub(crate) fn key_of(hold: &RawDocument) -> Option<AggregateKey> {
    let id = hold.get_document("_id").ok()?;
    Some(AggregateKey::new(id.get_str("aggregate_type").ok()?, id.get_str("aggregate_id").ok()?))
}

/// Whether `left` is later than `right`, where `None` is without end.
fn is_later(left: Option<BsonDateTime>, right: Option<BsonDateTime>) -> bool {
    match (left, right) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(left), Some(right)) => left > right,
    }
}
