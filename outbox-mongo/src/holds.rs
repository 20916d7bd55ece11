//! Holds as documents. The rules by which they change are the core's.

use std::collections::HashMap;

use mongodb::bson::{Bson, DateTime as BsonDateTime, Document, RawBsonRef, RawDocument, doc};
use outbox_core::{
    AggregateKey,
    store::{HoldReason, Partition},
};

use crate::codec::{
    document::{partition_of, whole},
    sequence::{sequence_of, timestamp_of},
};

/// A hold whose times are the server's.
pub(crate) type Hold = outbox_core::store::Hold<BsonDateTime>;

/// One document of the holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Held {
    pub(crate) partition: Partition,
    pub(crate) hold: Hold,
}

/// The `_id` of an aggregate's hold.
pub(crate) fn hold_id(key: &AggregateKey) -> Bson {
    doc! { "aggregate_type": key.aggregate_type(), "aggregate_id": key.aggregate_id() }.into()
}

impl Held {
    /// A hold with its aggregate; `None` for a document that is not a hold.
    pub(crate) fn of(document: &RawDocument) -> Option<(AggregateKey, Self)> {
        let key = key_of(document)?;
        let partition = document.get("partition").ok().flatten().and_then(whole);
        let partition = partition.and_then(|partition| Partition::try_from(partition).ok());
        let date = |name| match document.get(name) {
            Ok(Some(RawBsonRef::DateTime(at))) => Some(at),
            _ => None,
        };
        let sequence = document.get_timestamp("sequence").ok().and_then(sequence_of);
        let reason = HoldReason::of(document.get_str("reason").unwrap_or_default());
        let hold = Hold::new(sequence, date("until"), reason, date("paused_at"));
        let partition = partition.unwrap_or_else(|| partition_of(&key));
        Some((key, Self { partition, hold }))
    }

    /// The fields beside the `_id`.
    pub(crate) fn document(&self) -> Document {
        let hold = &self.hold;
        let mut document = doc! {
            "partition": i32::from(self.partition),
            "sequence": hold.sequence.map(timestamp_of),
            "until": hold.until,
            "reason": hold.reason.as_str(),
        };
        if let Some(paused_at) = hold.paused_at {
            document.insert("paused_at", paused_at);
        }
        document
    }
}

/// Puts what `rule` makes of an aggregate's hold in its place. Its partition is the one that the hold has, or
/// that of the aggregate.
pub(crate) fn change(
    holds: &mut HashMap<AggregateKey, Held>,
    key: &AggregateKey,
    rule: impl FnOnce(Option<Hold>) -> Option<Hold>,
) {
    let before = holds.get(key).copied();
    match rule(before.map(|held| held.hold)) {
        Some(hold) => {
            let partition = before.map_or_else(|| partition_of(key), |held| held.partition);
            holds.insert(key.clone(), Held { partition, hold });
        }
        None => drop(holds.remove(key)),
    }
}

/// The aggregate of a hold.
pub(crate) fn key_of(hold: &RawDocument) -> Option<AggregateKey> {
    let id = hold.get_document("_id").ok()?;
    Some(AggregateKey::new(id.get_str("aggregate_type").ok()?, id.get_str("aggregate_id").ok()?))
}
