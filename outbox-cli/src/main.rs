//! The outbox relay as a process: services in any language write events by plain INSERT, and `outbox relay` publishes
//! them.

mod config;
mod output;
mod parts;
mod relay;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use outbox_core::{Finding, Severity};

use self::{
    config::{Config, Needs},
    output::{Failure, LogFormat},
    parts::Store,
};

/// glibc's allocator took a third of the relay's own processor time.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for relay: ended by SIGTERM or SIGINT with nothing left in flight
  1  something failed while running, or the relay had to end with messages in flight
  2  the command line, the settings or a check is at fault, and nothing was started

Every setting of the file can be given by environment, which wins: relay.lease_ttl is OUTBOX_RELAY_LEASE_TTL, and
OUTBOX_STORE_URL_FILE names a file that holds store.url.";

/// While a broker is away, librdkafka warns several times a second of what the relay says once.
const LOG_DEFAULT: &str = "info,librdkafka=error";

/// Publishes the events that services write into their outbox tables.
#[derive(Debug, Parser)]
#[command(name = "outbox", version, after_help = EXIT_CODES)]
struct Cli {
    /// The configuration file [default: outbox.toml, if there is one]
    #[arg(long, global = true, env = "OUTBOX_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,

    /// How much is logged: error, warn, info, debug, trace, or by target, such as info,outbox_kafka=debug
    #[arg(long, global = true, env = "OUTBOX_LOG", value_name = "LEVEL", default_value = LOG_DEFAULT)]
    log: tracing_subscriber::filter::Targets,

    /// How it is logged, always to the standard error
    #[arg(long, global = true, env = "OUTBOX_LOG_FORMAT", value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Publish events until SIGTERM or SIGINT, which lets what is in flight finish; a second one ends at once
    Relay,
    /// Create or upgrade the tables
    Migrate {
        /// Print the SQL instead, for a migration tool of your own
        #[arg(long)]
        print: bool,
    },
    /// Look for whatever would keep the relay from working, and name all of it
    Check,
    /// Show how many events wait, since when, and what is held back
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::start_log(cli.log.clone(), cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::report(&Failure::from(error), cli.log_format),
    };
    let done = runtime.block_on(run(&cli));
    // A thread that still writes to a pipe nobody reads would otherwise be waited for without end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::report(&failure, cli.log_format),
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    let needs = match cli.command {
        Command::Relay | Command::Check => Needs::StoreAndPublisher,
        Command::Migrate { .. } | Command::Status { .. } => Needs::Store,
    };
    let config = Config::load(cli.config.clone(), needs)?;
    match cli.command {
        Command::Relay => relay::run(config, cli.log_format).await,
        Command::Migrate { print: true } => output::print(&config.store.migration_sql()),
        Command::Migrate { print: false } => migrate(config).await,
        Command::Check => check(config).await,
        Command::Status { json } => status::run(config, json).await,
    }
}

async fn migrate(config: Config) -> Result<(), Failure> {
    let shown = config.store.shown();
    Store::open(config.store).await?.migrate().await?;
    output::print(&format!("the outbox of {shown} is up to date\n"))
}

async fn check(config: Config) -> Result<(), Failure> {
    let findings = match relay::build(config).await {
        Ok(relay) => relay.check().await,
        Err(Failure::Findings(findings)) => findings,
        Err(failure) => return Err(failure),
    };
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    output::print(if lines.is_empty() { "nothing to report\n" } else { &lines })?;
    if has_errors(&findings) { Err(Failure::Reported) } else { Ok(()) }
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}
