//! Processes: how one ends, and how the demo starts, hears and kills the others.

use std::{
    future::Future,
    io::{self, Read as _},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::error::Error;

/// How long anything is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Ready when this process is to end: by SIGTERM, by SIGINT or, if it is attended, when its standard input
/// ends.
pub(crate) fn ended(attended: bool) -> impl Future<Output = ()> + Send + 'static {
    let (tell, left_alone) = oneshot::channel::<()>();
    let tell = if attended {
        std::thread::spawn(move || {
            // Whether it ended or failed, no process is there any more.
            _ = io::stdin().read_to_end(&mut Vec::new());
            _ = tell.send(());
        });
        None
    } else {
        Some(tell)
    };
    async move {
        // Dropped, it would tell as well.
        let _tell = tell;
        let terminated = async {
            match signal(SignalKind::terminate()) {
                Ok(mut terminate) => _ = terminate.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = terminated => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = left_alone => {}
        }
    }
}

/// A process of the demo: this program once more, with another command. Killed when this is dropped.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    /// Closed, it asks the process to end.
    stdin: Option<ChildStdin>,
    said: watch::Receiver<Vec<String>>,
    listener: JoinHandle<()>,
}

impl Process {
    /// Starts it, and prints what it says, but for the lines that are `quiet`.
    pub(crate) fn start(
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        quiet: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .arg("--attended")
            // Not on the command line, where everybody could read the passwords.
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("the process has no output")?).lines();
        let (tell, said) = watch::channel(Vec::new());
        let speaker = name.to_owned();
        let listener = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if !quiet(&line) {
                    say(&speaker, &line);
                }
                tell.send_modify(|said| said.push(line));
            }
        });
        Ok(Self { name: name.to_owned(), stdin: child.stdin.take(), child, said, listener })
    }

    /// Waits for a line that is wanted, and returns it.
    pub(crate) async fn says(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String, Error> {
        let heard = self.said.wait_for(|said| said.iter().any(|line| wanted(line)));
        let said = match tokio::time::timeout(PATIENCE, heard).await {
            Ok(Ok(said)) => said.clone(),
            Ok(Err(_)) => return Err(format!("{} ended before it was to", self.name).into()),
            Err(_) => return Err(format!("waited {PATIENCE:?} for {} in vain", self.name).into()),
        };
        Ok(said.into_iter().find(|line| wanted(line)).unwrap_or_default())
    }

    /// What it ended with, if it did.
    pub(crate) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it (SIGKILL), waits until it is dead, and returns all that it said.
    pub(crate) async fn kill(mut self) -> Result<Vec<String>, Error> {
        say(&self.name, &format!("is killed: kill -9 {}", self.child.id().unwrap_or_default()));
        self.child.kill().await?;
        self.listener.await?;
        Ok(self.said.borrow().clone())
    }

    /// Asks it to end, waits until it has done so in order, and returns all that it said.
    pub(crate) async fn stop(mut self) -> Result<Vec<String>, Error> {
        drop(self.stdin.take());
        let name = &self.name;
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.map_err(|_| format!("{name} did not end in {PATIENCE:?}"))??;
        if !status.success() {
            return Err(format!("{name} ended with {status}").into());
        }
        self.listener.await?;
        Ok(self.said.borrow().clone())
    }
}

pub(crate) fn say(who: &str, what: &str) {
    println!("  {who:>13} | {what}");
}
