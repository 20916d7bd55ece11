//! The main job end to end, on real servers and with real processes: `scripts/services.sh up all`.
//!
//! Relays are processes of their own, which are killed, frozen, cut off and restarted while writers commit,
//! roll back and keep transactions open. After each scenario the topic is read from its beginning and
//! compared with what the service's own table says was committed: nothing lost, nothing invented, first
//! deliveries in sequence order, and no more duplicates than the scenario explains.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these are tests"
)]

mod proxy;
mod relay;
mod scenarios;
mod stage;
mod turn;
mod workload;

use std::time::{Duration, Instant};

use testbed::{PATIENCE, brokers, checker, databases, servers};

/// Waits until the condition holds. It is asked again and again, because a server sends no signal for it.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
