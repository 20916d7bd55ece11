//! The order system: its README tells what it is, and which file does what.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its reader")]

mod billing;
mod broker;
mod client;
mod consumer;
mod demo;
mod inventory;
mod notification;
mod order_service;
mod postgres_consumer;
mod process;
mod reconcile;
mod relay;
mod shop;
mod stage;

use std::{net::SocketAddr, process::ExitCode};

use broker::Broker;
use clap::{Args, Parser, Subcommand};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// An order service with a transactional outbox, its relays, and the three services that live on its events.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// End when the standard input does, so that nothing outlives the demo that started it.
    #[arg(long, global = true, hide = true)]
    attended: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Take orders over HTTP, and write each with its event in one transaction.
    OrderService {
        /// Its PostgreSQL database.
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Publish what the order service has committed. Any number may run beside each other.
    Relay {
        /// The order service's database.
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        #[command(flatten)]
        broker: Broker,
    },
    /// Move stock, once for each order. Its database is PostgreSQL.
    Inventory(Consumer),
    /// Write invoices, one for each order. Its database is PostgreSQL.
    Billing(Consumer),
    /// Write to customers, once for each event. Its database is a SQLite file.
    Notification(Consumer),
    /// Run all of it on real servers, kill some of it, and compare what was promised with what came of it.
    Demo(demo::Options),
}

/// A service that consumes the events.
#[derive(Args)]
struct Consumer {
    /// The service's own database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[command(flatten)]
    broker: Broker,
    /// Stand still when the effect of the N-th new event has committed and the broker does not know it yet: the worst
    /// moment to be killed.
    #[arg(long, value_name = "N")]
    pause_before_acknowledgement: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    run(Arguments::parse()).await.unwrap_or_else(|error| {
        eprintln!("error: {}", outbox::chain(&*error));
        ExitCode::FAILURE
    })
}

async fn run(Arguments { command, attended }: Arguments) -> Result<ExitCode, Error> {
    let ended = process::ended(attended);
    match command {
        Command::OrderService { database_url, listen } => {
            order_service::run(&database_url, listen, ended).await?;
        }
        Command::Relay { database_url, broker } => relay::run(&database_url, &broker, ended).await?,
        Command::Inventory(arguments) => consumer::run::<inventory::Inventory>(&arguments, ended).await?,
        Command::Billing(arguments) => consumer::run::<billing::Billing>(&arguments, ended).await?,
        Command::Notification(arguments) => {
            consumer::run::<notification::Notification>(&arguments, ended).await?;
        }
        Command::Demo(options) => return demo::run(&options).await,
    }
    Ok(ExitCode::SUCCESS)
}
