//! Every store with every broker: how fast a backlog drains beside what each of the two does alone, how long a lone
//! event takes, and what a broker that restarts in the middle costs. `cargo bench --bench matrix --all-features`.
//!
//! Arguments choose pairs by parts of their names, such as `postgres`, `nats` or `mysql-kafka`; `restart` asks for the
//! restarts as well, which stops the brokers that `scripts/services.sh` started. Prints a Markdown table.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot be made ends here")]
#![allow(clippy::print_stderr, clippy::expect_used, dead_code, reason = "as above, and the tests use more")]

#[path = "../../tests/end_to_end/brokers/mod.rs"]
mod brokers;
#[path = "../../tests/end_to_end/checker.rs"]
mod checker;
#[path = "../../tests/end_to_end/databases/mod.rs"]
mod databases;
#[path = "../relay/gate.rs"]
mod gate;
mod pair;
#[path = "../relay/publishers.rs"]
mod publishers;
#[path = "../../tests/end_to_end/servers.rs"]
mod servers;

use std::time::Duration;

use pair::Pair;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--").collect();
    let restarts = arguments.iter().any(|argument| argument == "restart");
    let chosen: Vec<&String> = arguments.iter().filter(|argument| *argument != "restart").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!(
            "load average at the start {}",
            std::fs::read_to_string("/proc/loadavg").unwrap_or_default()
        );
        println!(
            "| store | broker | store alone | broker alone | both | of the ceiling | lone event p50, p99 | \
             broker restarts |\n|---|---|---|---|---|---|---|---|"
        );
        for database in databases::Kind::ALL {
            for broker in brokers::Kind::ALL {
                let name = format!("{database:?}-{broker:?}").to_lowercase();
                if chosen.is_empty() || chosen.iter().any(|part| name.contains(part.as_str())) {
                    println!("{}", Pair { database, broker }.measure(restarts).await);
                }
            }
        }
    });
}
