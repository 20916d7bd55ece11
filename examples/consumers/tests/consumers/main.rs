//! The consumers on real servers: a consumer is killed (SIGKILL) before its commit, and between its commit
//! and its acknowledgement, and the business effect of each event happens exactly once all the same. Trace
//! context and CloudEvents attributes arrive as the shop wrote them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these are tests"
)]

/// A consumer as a process that tells what it does.
macro_rules! consumer_process {
    ($broker:ident) => {
        /// Not a test by itself: the others start it as the consumer. Without orders it has nothing to do.
        #[test]
        fn consumer_process() {
            crate::process::serve(async |settings, teller| {
                consumers::$broker::run(&settings, async |step, event, receipt| {
                    teller.tell(&format!("{step:?}"), event, receipt).await;
                })
                .await
            });
        }
    };
}

mod kafka;
mod kills;
mod nats;
mod process;
mod rabbitmq;
mod shop;
mod survival;

use std::time::Duration;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The address of a server, or a line that says that it is missing.
fn address(server: &str, name: &str, variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        let text = format!(
            "{server} is not there: {variable} is not set; run `scripts/services.sh up {name}` and \
             `eval \"$(scripts/services.sh env)\"`"
        );
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{text}");
        eprintln!("{text}");
    }
    address
}
