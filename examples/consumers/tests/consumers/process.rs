//! A consumer that can be killed: this test program, started again as a process of its own.

use std::{collections::BTreeMap, io::Read as _, process::Stdio};

use outbox::Receipt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::PATIENCE;

const VARIABLE: &str = "OUTBOX_CONSUMER_PROCESS";

/// What stands before a line of the consumer, which may follow something of the test harness.
const MARK: &str = "@consumer ";

/// How far a message has come, by the consumer's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) step: String,
    pub(crate) event: String,
    pub(crate) receipt: String,
}

/// Where a consumer stands still, to be killed there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stop {
    pub(crate) step: String,
    /// Which of the new events, from 1.
    pub(crate) nth: usize,
}

/// What a consumer process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Orders<S> {
    settings: S,
    stop: Option<Stop>,
}

/// A consumer process, killed when this is dropped.
pub(crate) struct ConsumerProcess {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The process ends when this does, and waiting for a child closes the one that the child has.
    _stdin: Option<ChildStdin>,
}

impl ConsumerProcess {
    /// Starts the test `test`, which is to call [`serve`].
    pub(crate) fn start(test: &str, settings: &impl Serialize, stop: Option<Stop>) -> Self {
        let orders = serde_json::to_string(&Orders { settings, stop }).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(VARIABLE, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _stdin: child.stdin.take(), child, lines }
    }

    /// What it tells until the last told thing is as wanted.
    pub(crate) async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Told) -> bool) -> Vec<Told> {
        let mut told = Vec::new();
        let listening = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let Some((_, line)) = line.split_once(MARK) else { continue };
                told.push(serde_json::from_str::<Told>(line).unwrap());
                if told.last().is_some_and(&mut wanted) {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(PATIENCE, listening).await {
            Ok(true) => told,
            Ok(false) => panic!("the consumer ended before {what}: {told:?}"),
            Err(_) => panic!("waited {PATIENCE:?} in vain for {what}: {told:?}"),
        }
    }

    /// Waits until it stands where it was to stop, kills it there, and returns what it told.
    pub(crate) async fn kill_at(mut self, stop: &Stop) -> Vec<Told> {
        let mut new = 0;
        let told = self
            .until(&format!("{} {}", stop.step, stop.nth), |told| {
                new += usize::from(told.step == stop.step && told.receipt == "New");
                new == stop.nth
            })
            .await;
        self.child.kill().await.unwrap();
        told
    }
}

/// In the process that was started: runs the consumer, tells what it does, and stands still where it was told
/// to. Without orders there is nothing to do.
pub(crate) fn serve<S: DeserializeOwned>(
    consumer: impl AsyncFnOnce(S, &Teller) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) {
    let Ok(orders) = std::env::var(VARIABLE) else { return };
    let orders: Orders<S> = serde_json::from_str(&orders).unwrap();
    std::thread::spawn(|| {
        // Ends with the process that started it, whatever became of that.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let teller = Teller { stop: orders.stop, new: std::sync::Mutex::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(consumer(orders.settings, &teller)).unwrap();
}

/// Tells the test what a consumer does.
pub(crate) struct Teller {
    stop: Option<Stop>,
    /// New events so far, by step.
    new: std::sync::Mutex<BTreeMap<String, usize>>,
}

impl Teller {
    pub(crate) async fn tell(&self, step: &str, event: &str, receipt: Receipt) {
        let told = Told { step: step.to_owned(), event: event.to_owned(), receipt: format!("{receipt:?}") };
        // The harness may have left its own line open.
        println!("\n{MARK}{}", serde_json::to_string(&told).unwrap());
        if receipt != Receipt::New {
            return;
        }
        let nth = {
            let mut new = self.new.lock().unwrap();
            let nth = new.entry(told.step).or_default();
            *nth += 1;
            *nth
        };
        if self.stop.as_ref().is_some_and(|stop| stop.step == step && stop.nth == nth) {
            std::future::pending::<()>().await;
        }
    }
}
