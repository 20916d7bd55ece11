//! The position of an event. The server gives it: it fills a top-level `Timestamp(0, 0)` of a document that
//! is inserted, in a transaction too, with the next moment of the replica set's clock, which is unique,
//! ascends, and is handed on at an election.

use chrono::{DateTime, TimeDelta, Utc};
use mongodb::bson::{Document, Timestamp, doc};
use outbox_core::store::Sequence;

/// The bits of a sequence below those of the seconds. One less than a timestamp has, so that a sequence stays
/// positive until the seconds end in 2106; two thousand million events in one second are enough.
const COUNT_BITS: u32 = 31;
const COUNT_MASK: i64 = (1 << COUNT_BITS) - 1;

/// The sequence of a timestamp; `None` where the server has not filled it, or another writer has.
pub(crate) fn sequence_of(timestamp: Timestamp) -> Option<Sequence> {
    let count = i64::from(timestamp.increment);
    let is_filled = timestamp.time > 0 && count <= COUNT_MASK;
    is_filled.then_some(i64::from(timestamp.time) << COUNT_BITS | count)
}

/// The timestamp of a sequence. What cannot be one is before all others.
pub(crate) fn timestamp_of(sequence: Sequence) -> Timestamp {
    let sequence = sequence.max(0);
    let time = u32::try_from(sequence >> COUNT_BITS).unwrap_or(u32::MAX);
    let increment = u32::try_from(sequence & COUNT_MASK).unwrap_or(u32::MAX);
    Timestamp { time, increment }
}

/// The first sequence of a second since 1970.
pub(crate) fn first_of(second: i64) -> Sequence {
    second.clamp(0, i64::from(u32::MAX)) << COUNT_BITS
}

/// When the event was written. The sequence has the second, by the database's clock; what is below that is
/// the writer's, as far as it is of that second.
pub(crate) fn created_at(sequence: Sequence, of_writer: Option<DateTime<Utc>>) -> DateTime<Utc> {
    let second = DateTime::from_timestamp(sequence >> COUNT_BITS, 0).unwrap_or_default();
    of_writer.map_or(second, |at| at.clamp(second, second + LAST_OF_SECOND))
}

/// The same as an expression of the server.
pub(crate) fn created_at_expression() -> Document {
    let second = doc! { "$toDate": { "$multiply": [{ "$toLong": { "$tsSecond": "$sequence" } }, 1000] } };
    let last = doc! { "$add": [second.clone(), LAST_OF_SECOND.num_milliseconds()] };
    doc! { "$min": [last, { "$max": [second.clone(), { "$ifNull": ["$created_at", second] }] }] }
}

/// Times have a resolution of a millisecond.
const LAST_OF_SECOND: TimeDelta = TimeDelta::milliseconds(999);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_its_timestamp() {
        for (time, increment) in
            [(1, 1), (1_795_000_000, 77), (u32::MAX, COUNT_MASK as u32), (2_200_000_000, 1)]
        {
            let timestamp = Timestamp { time, increment };
            let sequence = sequence_of(timestamp).unwrap();
            assert!(sequence > 0, "{timestamp:?}");
            assert_eq!(timestamp_of(sequence), timestamp);
        }
        assert_eq!(sequence_of(Timestamp { time: 0, increment: 0 }), None);
        assert_eq!(sequence_of(Timestamp { time: 1, increment: u32::MAX }), None);
        assert_eq!(timestamp_of(-1), Timestamp { time: 0, increment: 0 });
    }

    #[test]
    fn sequences_ascend_as_timestamps_do() {
        let at = |time, increment| sequence_of(Timestamp { time, increment }).unwrap();
        assert!(at(5, 9) < at(5, 10) && at(5, 10) < at(6, 1));
        assert!(first_of(6) > at(5, 1_000_000) && first_of(6) < at(6, 1));
    }

    #[test]
    fn the_writers_clock_counts_within_the_second_of_the_servers() {
        let sequence = sequence_of(Timestamp { time: 1_795_000_000, increment: 3 }).unwrap();
        let millis = |of_writer: Option<i64>| {
            let of_writer = of_writer.and_then(|at| DateTime::from_timestamp_millis(1_795_000_000_000 + at));
            created_at(sequence, of_writer).timestamp_millis() - 1_795_000_000_000
        };
        assert_eq!([None, Some(250), Some(-1), Some(3_600_000)].map(millis), [0, 250, 0, 999]);
    }
}
