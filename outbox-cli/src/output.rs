//! What the process says: results to the standard output, everything else to the standard error.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::ValueEnum;
use outbox_core::{Finding, Severity, StoreError, chain};
use serde::Serialize;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text for each event.
    Human,
    /// A JSON object in a line for each event.
    Json,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The settings or the surroundings are at fault; nothing was started.
    Findings(Vec<Finding>),
    /// The same, and the user knows already.
    Reported,
    /// Something went wrong on the way.
    Runtime(String),
}

/// Whether these keep a command from being run.
pub(crate) fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

impl From<Vec<Finding>> for Failure {
    fn from(findings: Vec<Finding>) -> Self {
        Self::Findings(findings)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Runtime(chain(&error).to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Runtime(error.to_string())
    }
}

/// Starts the log. The standard output is left to results, and to the messages of the publisher that writes
/// there.
pub(crate) fn start_log(filter: Targets, format: LogFormat) {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Human => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // Not as the layer's own filter: after a question whether something is enabled, as rdkafka puts them,
    // that one drops the next event of the same thread.
    tracing_subscriber::registry().with(filter).with(layer).init();
}

/// Writes a result to the standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader may stop reading, as `head` does.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a result for programs to the standard output.
pub(crate) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Runtime(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Names findings on the standard error: as lines for people, or in the log for programs.
pub(crate) fn name_findings(findings: &[Finding], format: LogFormat) {
    for finding in findings {
        let Finding { code, problem, remedy, .. } = finding;
        match (format, finding.severity) {
            // There is no way left to tell of a standard error that cannot be written.
            (LogFormat::Human, _) => _ = writeln!(io::stderr(), "{finding}"),
            (LogFormat::Json, Severity::Error) => tracing::error!(code, remedy, "{problem}"),
            (LogFormat::Json, Severity::Warning) => tracing::warn!(code, remedy, "{problem}"),
        }
    }
}

/// Names a failure, and gives the exit code that belongs to it.
pub(crate) fn report(failure: &Failure, format: LogFormat) -> ExitCode {
    match failure {
        Failure::Findings(findings) => name_findings(findings, format),
        Failure::Reported => {}
        Failure::Runtime(what) => {
            match format {
                LogFormat::Human => _ = writeln!(io::stderr(), "error: {what}"),
                LogFormat::Json => tracing::error!("{what}"),
            }
            return ExitCode::from(1);
        }
    }
    ExitCode::from(2)
}
