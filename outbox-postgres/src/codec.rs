//! Values of the core as they are on the wire, and back.

mod micros;

use std::time::Duration;

use outbox_core::store::{Epoch, Lease, Partition};

pub(crate) use self::micros::Micros;

/// The driver's numbers are signed.
pub(crate) fn partition_code(partition: Partition) -> i16 {
    i16::try_from(partition).unwrap_or(i16::MAX)
}

pub(crate) fn partition_of(code: i16) -> Partition {
    Partition::try_from(code).unwrap_or(Partition::MAX)
}

/// A duration as the server's milliseconds.
pub(crate) fn millis(duration: Duration) -> i64 {
    // A thousand years: beyond that an interval added to now leaves the range of a timestamp.
    const MILLIS_MAX: i64 = 1000 * 365 * 86_400 * 1000;
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(MILLIS_MAX)
}

/// Parts and epochs as two arrays, for `unnest`.
pub(crate) fn lease_arrays<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> (Vec<i16>, Vec<Epoch>) {
    leases.into_iter().map(|lease| (partition_code(lease.partition), lease.epoch)).unzip()
}

pub(crate) fn attempts_code(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}
