//! How fast events get from PostgreSQL to Kafka, and what that costs: `cargo bench -p benches --bench relay`.
//!
//! Without arguments all questions are asked; the names of questions choose among them. `--full` adds
//! backlogs of a million; `NAME=NUMBER` changes a setting of the relay (see `Bed::config`). Needs the servers
//! that `scripts/services.sh up postgres kafka` starts. Prints a Markdown table.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot be made ends here")]
#![allow(clippy::print_stderr, clippy::expect_used, reason = "as above")]

mod bed;
mod latency;
mod questions;

use bed::Bed;

/// As the `outbox` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const QUESTIONS: [&str; 11] = [
    "memory",
    "ceiling",
    "cost",
    "aggregates",
    "relays",
    "backlog",
    "latency",
    "idle",
    "parked",
    "enqueue",
    "steady",
];

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let [drain, schema, events] = &arguments[..]
        && drain == "drain"
    {
        let events = events.parse().expect("a number of events");
        return runtime
            .block_on(async { questions::drain(&Bed::new(Vec::new()).await, schema, events).await });
    }
    let full = arguments.iter().any(|argument| argument == "--full");
    let mut settings = Vec::new();
    let mut asked = Vec::new();
    for argument in arguments.iter().filter(|argument| *argument != "--full") {
        match argument.split_once('=') {
            Some((name, value)) => settings.push((name.to_owned(), value.parse().expect("a number"))),
            None if QUESTIONS.contains(&argument.as_str()) || argument == "horizon" => {
                asked.push(argument.as_str());
            }
            None => panic!("there is no question {argument:?}: {QUESTIONS:?}, horizon (a minute)"),
        }
    }
    if asked.is_empty() {
        asked = QUESTIONS.to_vec();
        asked.push("horizon");
    }
    runtime.block_on(async {
        let mut bed = Bed::new(settings).await;
        questions::machine(&mut bed).await;
        println!("\n| question | case | result |\n|---|---|---|");
        // Creates the topic, and warms the broker up.
        bed.broker_rate(20_000, 1_000).await;
        for question in asked {
            match question {
                "memory" => questions::memory(&mut bed, full).await,
                "ceiling" => questions::ceiling(&mut bed).await,
                "cost" => questions::cost(&mut bed).await,
                "aggregates" => questions::aggregates(&mut bed).await,
                "relays" => questions::relays(&mut bed).await,
                "backlog" => questions::backlog(&mut bed, full).await,
                "latency" => latency::rates(&mut bed).await,
                "idle" => questions::idle(&mut bed).await,
                "parked" => questions::parked(&mut bed).await,
                "enqueue" => questions::enqueue(&mut bed).await,
                "steady" => latency::steady(&mut bed).await,
                _ => latency::horizon(&mut bed).await,
            }
        }
    });
}
