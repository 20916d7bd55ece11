//! What the process tests share: a folder, the program in it, and waiting with an end.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module that several test programs share, each in part"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use uuid::Uuid;

/// Far above what anything here takes on a busy machine, and far below a patience that would hide a hang.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Returns once `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A folder that is removed with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(Uuid::now_v7().to_string());
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The program, run in this folder, without settings of the test's own environment.
    pub fn outbox(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OUTBOX_") {
                command.env_remove(name);
            }
        }
        command.current_dir(&self.0).args(args).envs(variables.iter().copied());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Ended {
        Running::start(self.outbox(args, variables)).ended_with_output()
    }

    /// Starts a relay, and returns once it relays. Its log is JSON.
    pub fn relay(&self, variables: &[(&str, &str)]) -> Running {
        let mut running = Running::start(self.outbox(&["relay", "--log-format", "json"], variables));
        running.wait_for_log("relaying");
        running
    }

    pub fn status(&self, variables: &[(&str, &str)]) -> Value {
        let ended = self.run(&["status", "--json"], variables);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that has ended. Without a code, a signal ended it.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A process that runs, and is killed when the test ends, or when it hangs on reading what the process
/// writes.
pub struct Running {
    child: Arc<Mutex<Child>>,
    pub stdout: Option<ChildStdout>,
    lines: Receiver<String>,
    reading: Option<JoinHandle<()>>,
    seen: String,
    /// Dropped with the process, which tells the guard that nothing hangs.
    _guard: Sender<()>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reading = thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        let stdout = child.stdout.take();
        let child = Arc::new(Mutex::new(child));
        let (guard, dropped) = mpsc::channel::<()>();
        let hanging = Arc::clone(&child);
        thread::spawn(move || {
            if dropped.recv_timeout(3 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
                let _ = hanging.lock().unwrap().kill();
            }
        });
        Self { child, stdout, lines, reading: Some(reading), seen: String::new(), _guard: guard }
    }

    /// Waits for a line of the log with this text, and returns it.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) else {
                panic!("no {text:?} in the log:\n{}", self.seen);
            };
            self.seen.push_str(&line);
            self.seen.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until a line with this text has been written, whichever lines came before it or after.
    #[track_caller]
    pub fn wait_until_logged(&mut self, text: &str) {
        if !self.seen.contains(text) {
            self.wait_for_log(text);
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_none()
    }

    pub fn signal(&self, name: &str) {
        self.signals(&[name]);
    }

    /// Sends signals without a pause between them.
    pub fn signals(&self, names: &[&str]) {
        let id = self.child.lock().unwrap().id();
        let kill: String = names.iter().map(|name| format!("kill -{name} {id};")).collect();
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end, and returns all that was written.
    #[track_caller]
    pub fn ended_with_output(mut self) -> Ended {
        let mut stdout = self.stdout.take().unwrap();
        let reading = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let mut ended = self.ended();
        ended.stdout = reading.join().unwrap();
        ended
    }

    /// Waits for the end, and returns all that was logged.
    #[track_caller]
    pub fn ended(mut self) -> Ended {
        until("the process ends", || !self.is_running());
        let code = self.child.lock().unwrap().wait().unwrap().code();
        self.reading.take().unwrap().join().unwrap();
        for line in self.lines.try_iter() {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        Ended { code, stdout: String::new(), stderr: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The whole lines of a file of JSON lines. A last one that is being written is left out.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The numbers `n` of the payloads, by the event's subject, in the order of arrival. An event that arrived
/// again counts once, where it arrived first.
pub fn arrivals(events: &[Value]) -> BTreeMap<String, Vec<u64>> {
    let mut arrivals: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for event in events {
        if seen.insert(event["id"].as_str().unwrap()) {
            let subject = event["subject"].as_str().unwrap().to_owned();
            arrivals.entry(subject).or_default().push(event["data"]["n"].as_u64().unwrap());
        }
    }
    arrivals
}

/// Starts many migrations of an outbox that is not there, all at once. Each succeeds, and the outbox is
/// whole.
pub fn migrate_at_once(folder: &Folder, variables: &[(&str, &str)]) {
    for _ in 0..2 {
        let migrations: Vec<_> =
            (0..6).map(|_| Running::start(folder.outbox(&["migrate"], variables))).collect();
        for migration in migrations {
            let ended = migration.ended_with_output();
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        }
    }
    let variables = [variables, &[("OUTBOX_PUBLISHER_URL", "stdout:")]].concat();
    let ended = folder.run(&["check"], &variables);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "nothing to report\n"), "{ended:?}");
}

/// The outbox says that its tables have version 9, which no release has made.
pub fn assert_newer_is_refused(folder: &Folder, variables: &[(&str, &str)]) {
    let variables = [variables, &[("OUTBOX_PUBLISHER_URL", "stdout:")]].concat();
    for (command, code) in [("relay", 2), ("check", 2), ("migrate", 1)] {
        let ended = folder.run(&[command], &variables);
        assert_eq!(ended.code, Some(code), "{command}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("version 9") && said.contains("upgrade"), "{command}: {ended:?}");
    }
}
