//! A server of a test's own, which it may stop: started by `scripts/services.sh` on ports of its own.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU16, Ordering},
};

use outbox_conformance::testing;

/// Ports that a server takes, above the first of the script's.
const PORTS: [u16; 4] = [672, 671, 673, 674];

static NEXT: AtomicU16 = AtomicU16::new(20_000);

pub(crate) struct Own {
    base: u16,
    folder: PathBuf,
}

impl Own {
    /// Starts one, or says in a line why it cannot be started.
    pub(crate) fn start() -> Option<Self> {
        // Tests run beside each other, in this process and in others.
        let free =
            |base: &u16| PORTS.iter().all(|port| TcpListener::bind(("127.0.0.1", base + port)).is_ok());
        let bases = std::iter::repeat_with(|| NEXT.fetch_add(1_000, Ordering::Relaxed));
        let base = bases.take(40).map(|next| next + std::process::id() as u16 % 200).find(free)?;
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("own-{base}"));
        let own = Self { base, folder };
        let output = own.script(&["up", "rabbitmq"]);
        if output.status.success() {
            return Some(own);
        }
        let text = format!(
            "RabbitMQ cannot be started for this test alone: scripts/services.sh says {}",
            String::from_utf8_lossy(&output.stderr)
        );
        testing::absent(&text);
        None
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://outbox:outbox@127.0.0.1:{}/%2f", self.base + PORTS[0])
    }

    /// The port with TLS, without a login.
    pub(crate) fn tls_url(&self) -> String {
        format!("amqps://127.0.0.1:{}/%2f", self.base + PORTS[1])
    }

    pub(crate) fn certificates(&self) -> PathBuf {
        self.folder.join("data/rabbitmq/certificates")
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&self) {
        assert!(self.script(&["kill", "rabbitmq"]).status.success());
    }

    /// Starts it again on what it had stored.
    pub(crate) fn up(&self) {
        assert!(self.script(&["up", "rabbitmq"]).status.success());
    }

    /// Runs rabbitmqctl.
    pub(crate) fn tool(&self, arguments: &[&str]) {
        assert!(self.script(&[&["tool", "rabbitmq"], arguments].concat()).status.success(), "{arguments:?}");
    }

    fn script(&self, arguments: &[&str]) -> Output {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services.sh"))
            .args(arguments)
            .env("SVC_DIR", &self.folder)
            .env("SVC_PORT_BASE", self.base.to_string())
            .output()
            .unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.script(&["wipe", "rabbitmq"]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
