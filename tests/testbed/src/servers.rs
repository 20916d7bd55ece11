//! The real servers: where they are, and how they are stopped and started.

use std::{
    path::Path,
    process::{Command, Stdio},
};

const REQUIRED: &str = "OUTBOX_REQUIRE_SERVERS";

/// The address of the server of this name in `scripts/services`, or a line that says that it is missing.
pub fn address(name: &str, variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        missing(&format!(
            "{name} is not there: {variable} is not set; run `scripts/services.sh up {name}` and \
             `eval \"$(scripts/services.sh env)\"`"
        ));
    }
    address
}

fn missing(text: &str) {
    assert!(std::env::var(REQUIRED).as_deref() != Ok("1"), "{text}");
    eprintln!("{text}");
}

/// A server that `scripts/services.sh` has started. Up again when this is dropped, whatever became of the
/// test.
#[derive(Debug)]
pub struct Managed(&'static str);

impl Managed {
    /// The server of this name at this address, or a line that says why it cannot be restarted.
    pub fn find(name: &'static str, address: &str) -> Option<Self> {
        let output = script(&["env", name]).stdout(Stdio::piped()).output().unwrap();
        if String::from_utf8_lossy(&output.stdout).contains(&format!("='{address}'")) {
            return Some(Self(name));
        }
        missing(&format!(
            "{name} was not started by scripts/services.sh with this SVC_DIR and SVC_PORT_BASE, so it cannot be \
             restarted by a test: run `scripts/services.sh up {name}` and use the address that it gives"
        ));
        None
    }

    /// Stops it in an orderly way.
    pub fn down(&self) {
        run(&["down", self.0]);
    }

    /// Kills it.
    pub fn kill(&self) {
        run(&["kill", self.0]);
    }

    /// Starts it and waits until it answers.
    pub fn up(&self) {
        assert!(self.started(), "{} could not be started again, see its log in SVC_DIR", self.0);
    }

    fn started(&self) -> bool {
        // PostgreSQL refuses to start while a child of its killed predecessor still has its memory.
        (0..3).any(|_| script(&["up", self.0]).status().is_ok_and(|status| status.success()))
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        // A panic in here would hide the one that is under way.
        let _ = self.started();
    }
}

fn run(arguments: &[&str]) {
    let status = script(arguments).status().unwrap();
    assert!(status.success(), "scripts/services.sh {arguments:?} ended with {status}");
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/services.sh"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
