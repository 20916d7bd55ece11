//! The whole system as processes on real servers, three kills in the middle, and the reconciliation.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Args;
use futures::future::try_join_all;
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    broker::Kind,
    client::{Client, Promises},
    consumer::{HANDLED, PAUSED, SEEN},
    error::Error,
    process::{PATIENCE, Process},
    reconcile::{Books, reconcile},
    stage::{SERVICES, Stage},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Which broker to use.
    #[arg(long, value_enum, default_value_t = Kind::Kafka)]
    broker: Kind,
    /// How many orders to place, in all.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(40..))]
    orders: u32,
    /// Show every event that a service handles.
    #[arg(long)]
    verbose: bool,
    /// Print the result as JSON too, in the last line.
    #[arg(long)]
    json: bool,
}

/// Customers that order at the same time.
const CLIENTS: u32 = 4;

/// Which of its new events the billing service is killed at.
const KILLED_AT: &str = "20";

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    broker: String,
    orders_placed: usize,
    orders_rolled_back: usize,
    orders_cancelled: usize,
    requests_asked_again: u64,
    events_sent: i64,
    stock_moved: usize,
    invoiced: usize,
    notified: usize,
    /// Events that came again and were recognised, by service.
    duplicates: BTreeMap<String, usize>,
    /// What was killed.
    killed: Vec<String>,
    /// What is not as it was promised.
    problems: Vec<String>,
}

/// Runs it; 1 if anything is not as it was promised.
pub(crate) async fn run(options: &Options) -> Result<ExitCode, Error> {
    chapter(&format!("1. Databases, and a topic on {}", options.broker));
    let stage = Stage::set(options.broker).await?;
    let played = tokio::select! {
        played = play(&stage, options) => played,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            stage.remove().await?;
            return Err("interrupted".into());
        }
    };
    let report = match played {
        Ok(report) if report.problems.is_empty() => {
            stage.remove().await?;
            report
        }
        Ok(report) => {
            eprintln!("{}", stage.keep());
            report
        }
        Err(error) => return Err(format!("{}; {}", outbox::chain(&*error), stage.keep()).into()),
    };
    report.print();
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(stage: &Stage, options: &Options) -> Result<Report, Error> {
    let mut company = Company { stage, verbose: options.verbose, said: BTreeMap::new(), killed: Vec::new() };

    chapter("2. Four services and two relays, each a process of its own");
    let mut orders = company.start("order-service", &["order-service"])?;
    let mut consumers = Vec::new();
    for service in SERVICES {
        let pause = ["--pause-before-acknowledgement", KILLED_AT];
        let arguments = if service == "billing" { [&[service][..], &pause].concat() } else { vec![service] };
        consumers.push(company.start(service, &arguments)?);
    }
    let (address, at) = watch::channel(listening(&mut orders).await?);
    let mut relays = [company.start("relay-1", &["relay"])?, company.start("relay-2", &["relay"])?];
    for process in &mut consumers {
        process.says(|line| line == "ready").await?;
    }
    for relay in &mut relays {
        relay.says(|line| line.starts_with("owns 32 ")).await?;
    }

    chapter("3. Customers place orders, and three processes are killed");
    let (progress, mut placed) = watch::channel(0);
    let customers = tokio::spawn(customers(options.orders, at, progress));

    let [mut first, second] = relays;
    first.says(|line| line.ends_with(" events sent")).await?;
    company.kill(first).await?;
    let first = company.start("relay-1", &["relay"])?;

    let third = options.orders / 3;
    let heard = timeout(PATIENCE, placed.wait_for(|placed| *placed >= third)).await;
    // Where no customer is left, what they have returned tells why.
    _ = heard.map_err(|_| format!("{third} orders were not placed in {PATIENCE:?}"))?;
    company.kill(orders).await?;
    let mut orders = company.start("order-service", &["order-service"])?;
    address.send_replace(listening(&mut orders).await?);

    let mut billing = consumers.remove(1);
    billing.says(|line| line.ends_with(PAUSED)).await?;
    company.kill(billing).await?;
    consumers.push(company.start("billing", &["billing"])?);

    let promises = customers.await??;

    chapter("4. Everybody has ordered. When it is quiet, the processes are asked to end");
    let mut processes = vec![orders, first, second];
    processes.append(&mut consumers);
    quiet(stage, &promises, &mut processes).await?;
    for process in processes {
        let name = process.name.clone();
        let said = process.stop().await?;
        company.said.entry(name).or_default().extend(said);
    }
    // Once more, since they have handled to the end what they had in their hands.
    let books = Books::read(stage).await?;
    Ok(company.report(options.broker, &promises, &books))
}

/// All customers' orders, and what they were told.
async fn customers(
    orders: u32,
    order_service: watch::Receiver<SocketAddr>,
    progress: watch::Sender<u32>,
) -> Result<Promises, Error> {
    let client = |n| {
        let share = orders / CLIENTS + u32::from(n < orders % CLIENTS);
        Client::new(order_service.clone()).run(share, progress.clone())
    };
    let mut promises = Promises::default();
    for told in try_join_all((0..CLIENTS).map(client)).await? {
        promises.orders.extend(told.orders);
        promises.refused.extend(told.refused);
        promises.asked_again += told.asked_again;
    }
    Ok(promises)
}

/// Where the order service listens.
async fn listening(orders: &mut Process) -> Result<SocketAddr, Error> {
    let line = orders.says(|line| line.starts_with("listening on ")).await?;
    Ok(line.trim_start_matches("listening on ").parse()?)
}

/// Waits until all is as it was promised, or for as long as patience lasts: the report tells what is missing
/// then.
async fn quiet(stage: &Stage, promises: &Promises, processes: &mut [Process]) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !reconcile(promises, &Books::read(stage).await?).is_empty() {
        for process in &mut *processes {
            if let Some(status) = process.exited()? {
                return Err(format!("{} ended before it was to, with {status}", process.name).into());
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// All processes.
struct Company<'a> {
    stage: &'a Stage,
    verbose: bool,
    /// What those that have ended said, by name.
    said: BTreeMap<String, Vec<String>>,
    killed: Vec<String>,
}

impl Company<'_> {
    fn start(&self, name: &str, arguments: &[&str]) -> Result<Process, Error> {
        let stage = self.stage;
        let database = match arguments {
            ["inventory", ..] => &stage.inventory,
            ["billing", ..] => &stage.billing,
            ["notification", ..] => &stage.notification,
            _ => &stage.orders,
        };
        let environment = [
            ("DATABASE_URL", database.as_str()),
            ("BROKER", &stage.broker.kind.to_string()),
            ("BROKER_URL", &stage.broker.url),
            ("TOPIC", &stage.broker.topic),
        ];
        let verbose = self.verbose;
        // That the broker's servers are one is known here.
        let usual = [HANDLED, " events sent"];
        let quiet = move |line: &str| {
            !verbose && (usual.iter().any(|end| line.ends_with(end)) || line.contains("[single-copy]"))
        };
        Process::start(name, arguments, &environment, quiet)
    }

    async fn kill(&mut self, process: Process) -> Result<(), Error> {
        let name = process.name.clone();
        let said = process.kill().await?;
        self.said.entry(name.clone()).or_default().extend(said);
        self.killed.push(name);
        Ok(())
    }

    fn report(&self, broker: Kind, promises: &Promises, books: &Books) -> Report {
        let seen = |service: &str| {
            let said = self.said.get(service).into_iter().flatten();
            said.filter(|line| line.ends_with(SEEN)).count()
        };
        let orders = || promises.orders.values();
        Report {
            broker: broker.to_string(),
            orders_placed: orders().count(),
            orders_rolled_back: promises.refused.len(),
            orders_cancelled: orders().filter(|(_, steps)| steps.len() == 2).count(),
            requests_asked_again: promises.asked_again,
            events_sent: books.sent,
            stock_moved: books.movements.len(),
            invoiced: books.invoices.len(),
            notified: books.letters.len(),
            duplicates: SERVICES.iter().map(|service| ((*service).to_owned(), seen(service))).collect(),
            killed: self.killed.clone(),
            problems: reconcile(promises, books),
        }
    }
}

impl Report {
    fn print(&self) {
        chapter("5. What was promised, and what came of it");
        let duplicates: Vec<_> =
            self.duplicates.iter().map(|(service, count)| format!("{service} {count}")).collect();
        for (what, how_many) in [
            ("orders placed", self.orders_placed.to_string()),
            ("of them cancelled", self.orders_cancelled.to_string()),
            ("orders rolled back, and their events with them", self.orders_rolled_back.to_string()),
            ("requests that the client sent again", self.requests_asked_again.to_string()),
            ("processes killed", self.killed.join(", ")),
            ("events sent", self.events_sent.to_string()),
            ("stock moved: once for each order, and back once if cancelled", self.stock_moved.to_string()),
            ("invoices: one for each order, and a credit note if cancelled", self.invoiced.to_string()),
            ("letters: one for each event, in the order of each order", self.notified.to_string()),
            ("events that came again, and were recognised", duplicates.join(", ")),
        ] {
            println!("  {what:<62} {how_many}");
        }
        if self.problems.is_empty() {
            println!("\nNothing was lost, nothing was invented, everything was done once and in order.");
        }
        self.problems.iter().for_each(|problem| eprintln!("BROKEN: {problem}"));
    }
}

fn chapter(title: &str) {
    println!("\n{title}");
}
