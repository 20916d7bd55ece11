//! Every store with every broker: how fast a backlog drains beside what each of the two does alone, how long
//! a lone event takes, and what a broker that restarts in the middle costs. `cargo bench -p benches --bench
//! matrix`.
//!
//! Arguments choose pairs by parts of their names, such as `postgres`, `nats` or `mysql-kafka`; `restart`
//! asks for the restarts as well, which stops the brokers that `scripts/services.sh` started. `stores` asks
//! instead how the stores drain alone, by the size of the backlog, and who spends the processor's time.
//! Prints Markdown tables.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot be made ends here")]
#![allow(clippy::expect_used, reason = "as above")]

mod pair;

use std::time::Duration;

use pair::Pair;
use testbed::{brokers, databases};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--").collect();
    let mut is_asked = |question: &str| {
        let count = chosen.len();
        chosen.retain(|argument| argument != question);
        chosen.len() < count
    };
    let (restarts, stores) = (is_asked("restart"), is_asked("stores"));
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(part.as_str()));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average at the start {load}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if stores {
            pair::stores(is_chosen).await;
        } else {
            pairs(is_chosen, restarts).await;
        }
    });
}

async fn pairs(is_chosen: impl Fn(&str) -> bool, restarts: bool) {
    println!(
        "| store | broker | store alone | broker alone | both | of the ceiling | lone event p50, p99 | \
         broker restarts |\n|---|---|---|---|---|---|---|---|"
    );
    for database in databases::Kind::ALL {
        for broker in brokers::Kind::ALL {
            if is_chosen(&format!("{database:?}-{broker:?}").to_lowercase()) {
                println!("{}", Pair { database, broker }.measure(restarts).await);
            }
        }
    }
}
