//! Databases and brokers as the end-to-end tests and the benchmarks use them: a fresh place in each, a
//! service's own table beside the outbox, and what was delivered. An absent server is named, and is a failure
//! if `OUTBOX_REQUIRE_SERVERS=1` says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "this is a part of tests, which end where something is wrong"
)]
#![allow(
    missing_docs,
    reason = "tests and benchmarks of this workspace alone see it, where the names say enough"
)]

pub mod brokers;
pub mod checker;
pub mod databases;
pub mod servers;

use std::time::Duration;

/// How long anything is waited for: MongoDB keeps the transaction of a relay that was killed, and with it the
/// documents of its leases, for 60 seconds.
pub const PATIENCE: Duration = Duration::from_secs(150);
