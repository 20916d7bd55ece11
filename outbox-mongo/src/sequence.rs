//! The position of an event. The server gives it: it fills a top-level `Timestamp(0, 0)` of a document that is
//! inserted, in a transaction too, with the next moment of the replica set's clock, which is unique, ascends, and is
//! handed on at an election.

use chrono::{DateTime, Utc};
use mongodb::bson::Timestamp;
use outbox_core::Sequence;

/// The bits of a sequence below those of the seconds. One less than a timestamp has, so that a sequence stays positive
/// until the seconds end in 2106; two thousand million events in one second are none too few.
const COUNT_BITS: u32 = 31;
const COUNT_MASK: i64 = (1 << COUNT_BITS) - 1;

/// The sequence of a timestamp; `None` where the server has not filled it, or somebody else has.
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

/// When the event was written, by the database's clock, to the second.
pub(crate) fn written_at(sequence: Sequence) -> DateTime<Utc> {
    DateTime::from_timestamp(sequence >> COUNT_BITS, 0).unwrap_or_default()
}

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
        assert_eq!(written_at(at(1_795_000_000, 3)).timestamp(), 1_795_000_000);
    }
}
