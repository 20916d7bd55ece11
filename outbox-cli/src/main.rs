//! The outbox relay as a process: services in any language write events by plain INSERT, and `outbox relay`
//! publishes them.

mod config;
mod events;
mod filter;
mod operate;
mod output;
mod relay;
mod replay;
mod status;
mod table;

use std::{path::PathBuf, process::ExitCode, sync::LazyLock, time::Duration};

use clap::{Parser, Subcommand};
use outbox_core::{OutboxAdmin, store::Sequence};

use self::{
    config::{Config, Needs},
    events::EventName,
    filter::{Chosen, Conditions},
    operate::Target,
    output::{Failure, LogFormat},
    replay::ReplayArgs,
};

/// glibc's allocator took a third of the relay's own processor time; huge pages would double its memory.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for relay: ended by SIGTERM or SIGINT with nothing left in flight
  1  something failed while running, the relay had to end with messages in flight, or a replay is not complete
  2  the command line, the settings or a check is at fault, and nothing was started

Every setting of the file can be given by environment, which wins: relay.lease_ttl is OUTBOX_RELAY_LEASE_TTL, and
OUTBOX_STORE_URL_FILE names a file that holds store.url. Of several outboxes, OUTBOX_SHOP_STORE_URL is store.url of the
one with the name shop.";

static LOG_DEFAULT: LazyLock<String> = LazyLock::new(config::log_default);

/// Publishes the events that services write into their outbox tables.
#[derive(Debug, Parser)]
#[command(name = "outbox", version, after_help = EXIT_CODES)]
struct Cli {
    /// The configuration file [default: outbox.toml, if there is one]
    #[arg(long, global = true, env = "OUTBOX_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,

    /// How much is logged: error, warn, info, debug, trace, or by target, such as info,outbox_kafka=debug
    #[arg(long, global = true, env = "OUTBOX_LOG", value_name = "LEVEL", default_value = LOG_DEFAULT.as_str())]
    log: tracing_subscriber::filter::Targets,

    /// How it is logged, always to the standard error
    #[arg(long, global = true, env = "OUTBOX_LOG_FORMAT", value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,

    /// Only this outbox of those that the configuration file names
    #[arg(long, global = true, env = "OUTBOX_OUTBOX", value_name = "NAME")]
    outbox: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
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
    /// List events, the oldest first
    List {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        conditions: Conditions,
        /// How many
        #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Only events after this sequence: the next page
        #[arg(long, value_name = "SEQUENCE")]
        after: Option<Sequence>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show all of one event, by its id or its sequence, from the table or the archive
    Inspect {
        /// The id or the sequence
        event: EventName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what keeps aggregates back, in the order in which it ends
    Holds {
        /// How many
        #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Put failed events back: they are delivered next, in order
    Requeue {
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Give failed and held events up; what waits behind them goes on
    Discard {
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Keep an aggregate or a topic back until it is resumed
    Pause {
        #[command(flatten)]
        target: Target,
    },
    /// End the pause of an aggregate or a topic, or the park of an aggregate
    Resume {
        #[command(flatten)]
        target: Target,
    },
    /// Publish events that were sent or archived once more
    Replay(ReplayArgs),
    /// Print what can be configured
    Config {
        #[command(subcommand)]
        print: Print,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Print {
    /// A configuration file with every setting and its default
    Example,
    /// The reference of all settings, in Markdown
    Reference,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::start_log(cli.log.clone(), cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::report(&Failure::from(error), cli.log_format),
    };
    let done = runtime.block_on(run(&cli));
    // A thread that still writes to a pipe that is not read would otherwise be waited for without end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::report(&failure, cli.log_format),
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Config { print: Print::Example } => return output::print(&config::example()),
        Command::Config { print: Print::Reference } => return output::print(&config::reference()),
        _ => {}
    }
    let needs = match &cli.command {
        Command::Relay | Command::Check => Needs::StoreAndPublisher,
        Command::Replay(args) if !args.dry_run => Needs::StoreAndPublisher,
        _ => Needs::Store,
    };
    let config = Config::load(cli.config.clone(), cli.outbox.as_deref(), needs)?;
    match cli.command.clone() {
        Command::Relay => relay::run(config, cli.log_format).await,
        Command::Migrate { print: true } => print_migrations(&config),
        Command::Migrate { print: false } => migrate(config).await,
        Command::Check => check(config).await,
        Command::Status { json } => status::run(config, json).await,
        Command::Replay(args) => replay::run(config, args, cli.log_format).await,
        command => {
            let (outbox, _) = config.one()?;
            let look_around = outbox.relay.membership_interval;
            operate(command, outbox.store.open().await?.admin.as_ref(), look_around).await
        }
    }
}

/// The commands of an operator, each of which works on one outbox.
async fn operate(command: Command, admin: &dyn OutboxAdmin, look_around: Duration) -> Result<(), Failure> {
    match command {
        Command::List { chosen, conditions, limit, after, json } => {
            let filter = chosen.apply(conditions.filter().after(after));
            events::list(admin, &filter, limit, json).await
        }
        Command::Inspect { event, json } => events::inspect(admin, &event, json).await,
        Command::Holds { limit, json } => operate::holds(admin, limit, json).await,
        Command::Requeue { conditions } => operate::requeue(admin, &conditions).await,
        Command::Discard { conditions } => operate::discard(admin, &conditions).await,
        Command::Pause { target } => operate::pause(admin, &target).await,
        Command::Resume { target } => operate::resume(admin, &target, look_around).await,
        Command::Relay
        | Command::Migrate { .. }
        | Command::Check
        | Command::Status { .. }
        | Command::Replay(_)
        | Command::Config { .. } => Ok(()),
    }
}

fn print_migrations(config: &Config) -> Result<(), Failure> {
    for outbox in &config.outboxes {
        if let Some(name) = &outbox.name {
            output::print(&format!("-- The outbox {name}.\n"))?;
        }
        output::print(&outbox.store.migration())?;
    }
    Ok(())
}

/// Migrates all, whatever becomes of one of them.
async fn migrate(config: Config) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for outbox in config.outboxes {
        let shown = outbox.shown();
        let migrated = outbox.store.migrate().await;
        match migrated {
            Ok(()) => output::print(&format!("{shown} is up to date\n"))?,
            Err(error) => {
                let name = outbox.name.map(|name| format!("outbox {name}: ")).unwrap_or_default();
                problems.push(format!("{name}{}", outbox_core::chain(&error)));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Runtime(problems.join("; "))) }
}

async fn check(config: Config) -> Result<(), Failure> {
    let findings = relay::check(config).await;
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    output::print(if lines.is_empty() { "nothing to report\n" } else { &lines })?;
    if output::has_errors(&findings) { Err(Failure::Reported) } else { Ok(()) }
}
