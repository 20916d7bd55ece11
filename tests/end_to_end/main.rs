//! The main job end to end, on real servers and with real processes: `scripts/services.sh up all`.
//!
//! Relays are processes of their own, which are killed, frozen, cut off and restarted while writers commit, roll back
//! and keep transactions open. After each scenario the topic is read from its beginning and compared with what the
//! service's own table says was committed: nothing lost, nothing invented, first deliveries in sequence order, and no
//! more duplicates than the scenario explains.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these are tests"
)]

mod brokers;
mod checker;
mod databases;
mod proxy;
mod relay;
mod scenarios;
mod servers;
mod stage;
mod workload;

use std::time::{Duration, Instant};

/// How long anything is waited for: MongoDB keeps the transaction of a relay that was killed, and with it the documents
/// of its leases, for 60 seconds.
const PATIENCE: Duration = Duration::from_secs(150);

/// Waits until the condition holds. It is asked again and again, because a server sends no signal for it.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
