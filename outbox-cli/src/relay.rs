//! `outbox relay`: the relay from its check to the end of its shutdown.

use std::time::{Duration, Instant};

use outbox_core::{Finding, Phase, Relay, RelayHandle, RelayStatus};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};

use crate::{
    config::Config,
    has_errors,
    output::{Failure, LogFormat, name_findings},
    parts::Store,
};

/// How long changes of the relay's state are gathered after one was logged, so that a flapping broker cannot flood
/// the log.
const CHANGES_INTERVAL: Duration = Duration::from_secs(1);

/// Signals that come within this time are one request. What ends a process group, such as `timeout`, may signal the
/// process itself as well.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// Checks, relays until a signal comes, and finishes what is in flight.
pub(crate) async fn run(config: Config, format: LogFormat) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let publisher = config.publisher.as_ref().map(crate::config::PublisherConfig::shown);
    let (from, to) = (config.store.shown(), publisher.unwrap_or_default());
    let topic = config.relay.topic.to_string();
    let relay = tokio::select! {
        relay = checked(config, format) => relay?,
        name = signals.next() => {
            tracing::info!("{name} came before the relay had started");
            return Ok(());
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %from, %to, %topic, "relaying");
    let handle = relay.handle();
    let running = tokio::spawn(relay.run());
    let narrator = tokio::spawn(narrate(handle.clone()));
    let ended = until_ended(running, handle, &mut signals).await;
    narrator.abort();
    ended
}

/// A relay as the configuration says, not yet running.
pub(crate) async fn build(config: Config) -> Result<Relay, Failure> {
    let Some(publisher) = config.publisher else {
        return Err(Failure::Runtime("publisher.url is missing".to_owned()));
    };
    let publisher = publisher.open()?;
    let (store, _) = Store::open(config.store).await?.sides();
    Relay::new(store, publisher, config.relay).map_err(|error| {
        let finding = |problem| Finding::error("settings", problem, "correct it in [relay]");
        Failure::Findings(error.problems.into_iter().map(finding).collect())
    })
}

async fn checked(config: Config, format: LogFormat) -> Result<Relay, Failure> {
    let relay = build(config).await?;
    let findings = relay.check().await;
    if has_errors(&findings) {
        return Err(Failure::Findings(findings));
    }
    name_findings(&findings, format);
    Ok(relay)
}

async fn until_ended(
    mut running: JoinHandle<RelayStatus>,
    handle: RelayHandle,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut draining_since: Option<Instant> = None;
    loop {
        let name = tokio::select! {
            ended = &mut running => return summary(ended),
            name = signals.next() => name,
        };
        match draining_since {
            None => {
                draining_since = Some(Instant::now());
                tracing::info!("{name}: finishing what is in flight; a second signal ends at once");
                handle.shutdown();
            }
            Some(since) if since.elapsed() < SAME_REQUEST => {}
            Some(_) => {
                return Err(Failure::Runtime(format!(
                    "ended at once by a second signal, {name}; messages in flight, now {}, will be published again, \
                     and the partitions are free when the lease expires",
                    handle.status().in_flight
                )));
            }
        }
    }
}

fn summary(ended: Result<RelayStatus, tokio::task::JoinError>) -> Result<(), Failure> {
    let status = ended.map_err(|error| Failure::Runtime(format!("the relay failed: {error}")))?;
    let RelayStatus { published, refused, sent, retried, failed, fenced, buried, store_errors, .. } = status;
    tracing::info!(published, refused, sent, retried, failed, fenced, buried, store_errors, "ended");
    if status.in_flight > 0 {
        return Err(Failure::Runtime(format!(
            "relay.shutdown_timeout passed; messages in flight, {}, will be published again",
            status.in_flight
        )));
    }
    Ok(())
}

/// Logs what changes. What the engine logs itself, errors of the store and a burial, is not repeated.
async fn narrate(mut handle: RelayHandle) {
    let mut seen = RelayStatus::default();
    seen.broker_available = true;
    loop {
        let status = handle.wait_for(|status| status.phase == Phase::Stopped || changed(&seen, status)).await;
        if status.phase == Phase::Stopped {
            return;
        }
        if status.partitions != seen.partitions {
            tracing::info!(partitions = status.partitions, before = seen.partitions, "partitions changed");
        }
        let error = status.last_publish_error.as_deref().unwrap_or("no reason given");
        match (seen.broker_available, status.broker_available) {
            (true, false) => tracing::warn!(error, "the broker is unavailable: waiting for it"),
            (false, true) => tracing::info!("the broker is available again"),
            _ => {}
        }
        if status.failed > seen.failed {
            let (count, total) = (status.failed - seen.failed, status.failed);
            tracing::warn!(count, total, error, "events were given up; they are kept in the table as failed");
        }
        seen = status;
        tokio::time::sleep(CHANGES_INTERVAL).await;
    }
}

fn changed(seen: &RelayStatus, status: &RelayStatus) -> bool {
    let of = |status: &RelayStatus| (status.partitions, status.broker_available, status.failed);
    status.phase != Phase::Starting && of(seen) != of(status)
}

/// The signals that end a process in an orderly way.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
