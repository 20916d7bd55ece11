//! A relay that can be killed: this test program, started again as a process of its own.

use std::{io::Read as _, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use outbox::{Relay, RelayConfig, RelayHandle, RelayStatus, Severity, relay::Phase};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{PATIENCE, brokers::BrokerAt, databases::StoreAt};

const VARIABLE: &str = "OUTBOX_END_TO_END_RELAY";

/// What stands before a status line, which may follow something of the test harness.
const MARK: &str = "@status ";

/// What a relay process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) store: StoreAt,
    pub(crate) broker: BrokerAt,
    pub(crate) topic: String,
    pub(crate) lease_ms: u64,
    pub(crate) in_flight_max: usize,
}

/// What a relay process says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) stopped: bool,
    pub(crate) partitions: usize,
    pub(crate) in_flight: usize,
    pub(crate) published: u64,
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) fenced: u64,
    pub(crate) buried: u64,
    pub(crate) store_errors: u64,
    pub(crate) broker_available: bool,
    pub(crate) trouble: Option<String>,
}

/// A relay process, killed when this is dropped.
pub(crate) struct RelayProcess {
    name: &'static str,
    child: Child,
    /// The process ends when this does, and waiting for a child closes the one that the child has.
    _stdin: Option<ChildStdin>,
    seen: watch::Receiver<Seen>,
}

impl RelayProcess {
    pub(crate) fn start(name: &'static str, settings: &Settings) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "relay::relay_process", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, serde_json::to_string(settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, status)) = line.split_once(MARK) {
                    tell.send_replace(serde_json::from_str(status).unwrap());
                }
            }
        });
        Self { name, _stdin: child.stdin.take(), child, seen }
    }

    /// The last status.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until the process says what is wanted.
    pub(crate) async fn wait_for(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let name = self.name;
        let seen = tokio::time::timeout(PATIENCE, self.seen.wait_for(|seen| wanted(seen))).await;
        let seen = seen.map(|ended| ended.map(|seen| seen.clone()));
        match seen {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => panic!("relay {name} ended before {what}: {:?}", self.seen()),
            Err(_) => panic!("waited {PATIENCE:?} in vain for relay {name}: {what}: {:?}", self.seen()),
        }
    }

    /// Waits until it is at work: something is in flight, and more than a little has been sent since now.
    pub(crate) async fn in_mid_batch(&mut self) -> Seen {
        let before = self.seen().sent;
        self.wait_for("in mid-batch", |seen| seen.sent > before + 50 && seen.in_flight > 0).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("the process has not been waited for");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Kills it, and waits until it is dead.
    pub(crate) async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
    }

    /// Asks it to end, and waits until it has done so in order.
    pub(crate) async fn stop(mut self) -> Seen {
        self.signal(Signal::SIGTERM);
        let last = self.wait_for("the end that was asked for", |seen| seen.stopped).await;
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status =
            status.unwrap_or_else(|_| panic!("relay {} did not exit in {PATIENCE:?}", self.name)).unwrap();
        assert!(status.success(), "relay {} ended with {status}", self.name);
        last
    }
}

/// Waits until the relays own all partitions, in equal shares if there are several, and returns one that owns
/// some: in turns, by the round.
pub(crate) async fn share_out(relays: &mut [RelayProcess; 2], partitions: usize, round: usize) -> usize {
    if partitions > 1 {
        for relay in relays {
            relay.wait_for("its share of the partitions", |seen| seen.partitions == partitions / 2).await;
        }
        return round % 2;
    }
    let [a, b] = relays;
    let owner = tokio::select! {
        _ = a.wait_for("the partition", |seen| seen.partitions == 1) => 0,
        _ = b.wait_for("the partition", |seen| seen.partitions == 1) => 1,
    };
    owner
}

/// Not a test by itself: the other tests start it as the relay. Without settings it has nothing to do.
#[test]
fn relay_process() {
    let Ok(settings) = std::env::var(VARIABLE) else { return };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    std::thread::spawn(|| {
        // Ends with the process that started it, whatever became of that.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(relay(&settings));
}

async fn relay(settings: &Settings) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let relay = build(settings).await;
    let errors: Vec<_> =
        relay.check().await.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let narrator = tokio::spawn(narrate(relay.handle()));
    let ended = async {
        terminate.recv().await;
    };
    let status = relay.run_until(ended).await;
    narrator.await.unwrap();
    assert_eq!(status.in_flight, 0, "the shutdown left something in flight: {status:?}");
}

/// Times that fit each other, as shares of the lease.
async fn build(settings: &Settings) -> Relay {
    let lease = Duration::from_millis(settings.lease_ms);
    let config = RelayConfig::default()
        .with_topic(settings.topic.parse().unwrap())
        .with_lease_ttl(lease)
        .with_publish_timeout(lease * 2 / 5)
        .with_lease_margin(lease / 10)
        .with_beat_interval(lease / 6)
        .with_membership_interval(Duration::from_millis(100))
        .with_in_flight_max(settings.in_flight_max)
        .with_topic_recheck(Duration::from_secs(1))
        .with_unavailable_delay((Duration::from_millis(50), Duration::from_millis(500)));
    let store = settings.store.open().await;
    let publisher = settings.broker.open(lease / 4);
    Relay::new(store, publisher, config).unwrap()
}

/// Prints every change, at most two hundred a second.
async fn narrate(mut handle: RelayHandle) {
    let mut printed = RelayStatus::default();
    loop {
        let status = handle.wait_for(|status| *status != printed).await.unwrap();
        // The harness may have left its own line open.
        println!("\n{MARK}{}", serde_json::to_string(&seen(&status)).unwrap());
        if status.phase == Phase::Stopped {
            return;
        }
        printed = status;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn seen(status: &RelayStatus) -> Seen {
    Seen {
        stopped: status.phase == Phase::Stopped,
        partitions: status.partitions,
        in_flight: status.in_flight,
        published: status.published,
        sent: status.sent,
        failed: status.failed,
        fenced: status.fenced,
        buried: status.buried,
        store_errors: status.store_errors,
        broker_available: !status.broker.is_unavailable(),
        trouble: status.last_store_error.clone().or(status.last_publish_error.clone()),
    }
}
