//! What a publisher needs to know: [`NatsConfig`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::stream::{Config as StreamConfig, StorageType},
};
use outbox_core::{
    ConfigError,
    settings::{Kind, Problem, Setting, check_file},
};

/// The settings that a program which reads some can give: see [`NatsAdapter`](crate::NatsAdapter).
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "credentials_file",
        Kind::Path,
        "A file with a JWT and the seed of its nkey, instead of a user in the URL.",
    )
    .reloadable(),
    Setting::new(
        "ca_file",
        Kind::Path,
        "For TLS: the authorities to trust, instead of the system's, as certificates in PEM.",
    )
    .reloadable(),
    Setting::new("client_certificate", Kind::Path, "For TLS: the relay's own certificate, in PEM.")
        .reloadable(),
    Setting::new("client_key", Kind::Path, "The key of client_certificate, in PEM.").reloadable(),
    Setting::new("stream", Kind::Text, "A stream to create where there is none of this name."),
    Setting::new(
        "stream_subjects",
        Kind::Text,
        "The subjects of that stream, such as \"orders.>, invoices.>\".",
    ),
    STREAM_REPLICAS,
];

const STREAM_REPLICAS: Setting = Setting::new(
    "stream_replicas",
    Kind::Integer { min: 1, max: 5 },
    "How many servers of a cluster keep a copy of that stream. Use three where a lost \
                 disk must lose no message.",
)
.default("1")
.unit("servers");

/// How long one attempt to connect may take, with all that TLS and a login need.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

/// A connection on which nothing has come for three times this is given up. A publish that is not
/// acknowledged notices much earlier; this is for one that is idle.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Longer than a publish may take, so that the publish timeout decides, and shorter than what overflows a
/// clock.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How to reach NATS, and what to ask of it. Made by [`NatsConfig::builder`].
#[derive(Clone)]
pub struct NatsConfig {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) stream: Option<NatsStream>,
    login: Login,
    ca_file: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    tls_required: bool,
    name: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Login {
    Anonymous,
    User { name: String, password: String },
    Token(String),
    Nkey(String),
    CredentialsFile(PathBuf),
}

/// A stream to create where there is none of its name: kept in files, without limits.
///
/// A stream that is there is left as it is. One that needs more than this, such as a limit or a placement, is
/// better made beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsStream {
    name: String,
    subjects: Vec<String>,
    replicas: usize,
}

impl NatsConfig {
    /// Starts a configuration for the cluster that is found through `servers`: `nats://host:port`, several
    /// with commas. `tls://` demands TLS. A user and a password may stand in the URL, with their special
    /// characters percent-encoded; a name alone is a token.
    pub fn builder(servers: impl Into<String>) -> NatsConfigBuilder {
        NatsConfigBuilder {
            servers: servers.into(),
            logins: Vec::new(),
            config: Self {
                servers: Vec::new(),
                stream: None,
                login: Login::Anonymous,
                ca_file: None,
                client_certificate: None,
                tls_required: false,
                name: "outbox".to_owned(),
            },
        }
    }

    /// The client's options. `connected` tells those of the first connection from a later one, which is never
    /// made: whatever the client has buffered for a connection that is lost would be sent by the next.
    pub(crate) async fn options(&self, connected: Arc<AtomicBool>) -> io::Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .connection_timeout(CONNECT_WAIT_MAX)
            .ping_interval(PING_INTERVAL)
            .no_echo()
            .require_tls(self.tls_required)
            .reconnect_delay_callback(move |_| {
                if connected.load(Ordering::Acquire) { FOREVER } else { Duration::ZERO }
            });
        options = match &self.login {
            Login::Anonymous => options,
            Login::User { name, password } => options.user_and_password(name.clone(), password.clone()),
            Login::Token(token) => options.token(token.clone()),
            Login::Nkey(seed) => options.nkey(seed.clone()),
            Login::CredentialsFile(path) => options.credentials_file(path).await?,
        };
        if let Some(path) = &self.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }

    /// Whether the connection may come to use TLS.
    pub(crate) fn has_tls(&self) -> bool {
        self.tls_required || self.ca_file.is_some() || self.servers.iter().any(ServerAddr::tls_required)
    }
}

impl NatsStream {
    /// The stream `name`, which takes the messages of `subjects`, such as `orders.>`.
    pub fn new<S: Into<String>>(name: impl Into<String>, subjects: impl IntoIterator<Item = S>) -> Self {
        Self { name: name.into(), subjects: subjects.into_iter().map(Into::into).collect(), replicas: 1 }
    }

    /// How many servers of a cluster keep a copy, from 1 to 5; 1 unless set. Use three where a lost disk must
    /// lose no message.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn config(&self) -> StreamConfig {
        StreamConfig {
            name: self.name.clone(),
            subjects: self.subjects.clone(),
            num_replicas: self.replicas,
            storage: StorageType::File,
            ..StreamConfig::default()
        }
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if self.name.is_empty() || !self.name.bytes().all(legal) {
            let what = format!("has the name {:?}", self.name);
            problems.push(Problem::new("stream", what, "give letters, digits, - and _"));
        }
        if self.subjects.is_empty() {
            let remedy = "name at least one, such as \"orders.>\"";
            problems.push(Problem::new("stream_subjects", "is empty", remedy));
        }
        let broken = |subject: &&String| {
            subject.chars().any(|c| c.is_whitespace() || c.is_control())
                || subject.split('.').any(str::is_empty)
        };
        for subject in self.subjects.iter().filter(broken) {
            let what = format!("has the subject {subject:?}");
            problems.push(Problem::new("stream_subjects", what, "give words with dots between them"));
        }
        STREAM_REPLICAS.check_integer(self.replicas, problems);
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(ServerAddr::as_url_str).collect();
        f.debug_struct("NatsConfig")
            .field("servers", &servers)
            .field("login", &self.login)
            .field("stream", &self.stream)
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate.as_ref().map(|(path, _)| path))
            .field("tls_required", &self.tls_required)
            .field("name", &self.name)
            .finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User { name, .. } => write!(f, "user {name:?}"),
            Self::Token(_) => f.write_str("a token"),
            Self::Nkey(_) => f.write_str("an nkey"),
            Self::CredentialsFile(path) => write!(f, "credentials file {}", path.display()),
        }
    }
}

/// Builds a [`NatsConfig`]; [`build`](Self::build) validates it.
#[derive(Clone)]
#[must_use = "a configuration is complete only once it is built"]
pub struct NatsConfigBuilder {
    servers: String,
    logins: Vec<Login>,
    config: NatsConfig,
}

impl NatsConfigBuilder {
    /// A user and a password.
    pub fn user_and_password(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.logins.push(Login::User { name: name.into(), password: password.into() });
        self
    }

    /// A token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.logins.push(Login::Token(token.into()));
        self
    }

    /// The seed of an nkey.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.logins.push(Login::Nkey(seed.into()));
        self
    }

    /// A file with a JWT and the seed of its nkey, as `nsc` writes them. Read for each connection.
    pub fn credentials_file(mut self, path: impl AsRef<Path>) -> Self {
        self.logins.push(Login::CredentialsFile(path.as_ref().to_owned()));
        self
    }

    /// The authorities to trust for TLS, as certificates in PEM. Those of the system unless set.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.config.ca_file = Some(path.as_ref().to_owned());
        self
    }

    /// The client's own certificate and its key for TLS, in PEM.
    pub fn client_certificate(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.config.client_certificate = Some((certificate.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// Demands TLS of all servers, as `tls://` does of one.
    pub fn require_tls(mut self) -> Self {
        self.config.tls_required = true;
        self
    }

    /// A stream to create where it is missing.
    pub fn stream(mut self, stream: NatsStream) -> Self {
        self.config.stream = Some(stream);
        self
    }

    /// The name of the connection, as the server shows it; `outbox` unless set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The configuration, if all of it can work.
    ///
    /// # Errors
    /// Names everything that is wrong at once. Never holds a secret.
    pub fn build(mut self) -> Result<NatsConfig, ConfigError> {
        let mut problems = Vec::new();
        for (number, text) in (1..).zip(self.servers.split(',')) {
            match server(text.trim()) {
                // The text itself stays out: it may hold a password.
                None => problems.push(Problem::new(
                    "servers",
                    format!("has no address in place {number}"),
                    "give nats://host:port or tls://host:port, several with commas",
                )),
                Some((server, login)) => {
                    self.config.servers.push(server);
                    self.logins.extend(login);
                }
            }
        }
        self.logins.dedup();
        match self.logins.len() {
            0 => {}
            1 => self.config.login = self.logins.swap_remove(0),
            count => problems.push(Problem::new(
                "servers",
                format!("and what stands beside it give {count} logins"),
                "give one user, token, nkey or credentials file for all servers",
            )),
        }
        let files = self.config.client_certificate.as_ref();
        let (certificate, key) = files.map(|(one, other)| (&**one, &**other)).unzip();
        check_file("ca_file", self.config.ca_file.as_deref(), &mut problems);
        check_file("client_certificate", certificate, &mut problems);
        check_file("client_key", key, &mut problems);
        if let Some(stream) = &self.config.stream {
            stream.check(&mut problems);
        }
        ConfigError::check(problems)?;
        Ok(self.config)
    }
}

impl fmt::Debug for NatsConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfigBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The address without its login, and the login.
fn server(text: &str) -> Option<(ServerAddr, Option<Login>)> {
    let address: ServerAddr = text.parse().ok()?;
    if !matches!(address.scheme(), "nats" | "tls") || address.host().is_empty() {
        return None;
    }
    let login = match (address.username(), address.password()) {
        (None, _) => None,
        (Some(token), None) => Some(Login::Token(percent_decoded(token)?)),
        (Some(name), Some(password)) => {
            Some(Login::User { name: percent_decoded(name)?, password: percent_decoded(password)? })
        }
    };
    let mut url = address.into_inner();
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some((ServerAddr::from_url(url).ok()?, login))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let error = NatsConfig::builder("nats://a:1,http://b:2,")
            .token("t")
            .nkey("n")
            .ca_file("/no/such/file")
            .stream(NatsStream::new("a b", ["orders..x"]).replicas(0))
            .build()
            .unwrap_err();
        let named: Vec<&str> = error.problems().iter().map(|problem| &*problem.setting).collect();
        let expected =
            ["servers", "servers", "servers", "ca_file", "stream", "stream_subjects", "stream_replicas"];
        assert_eq!(named, expected, "{error}");
        assert!(
            error.to_string().contains("in place 2")
                && error.to_string().contains("in place 3")
                && error.to_string().contains("give 2 logins"),
            "{error}"
        );
        let error = NatsConfig::builder("a:1").stream(NatsStream::new("a", [""; 0])).build().unwrap_err();
        assert!(error.to_string().contains("stream_subjects is empty"), "{error}");
    }

    #[test]
    fn a_login_in_the_url_is_taken_out_of_it() {
        let config = NatsConfig::builder("nats://me:p%40ss@a:1, nats://me:p%40ss@b").build().unwrap();
        assert!(config.login == Login::User { name: "me".to_owned(), password: "p@ss".to_owned() });
        let servers: Vec<_> = config.servers.iter().map(ServerAddr::as_url_str).collect();
        assert_eq!(servers, ["nats://a:1", "nats://b"]);
        let config = NatsConfig::builder("tls://s3cret@a:1").build().unwrap();
        assert!(config.login == Login::Token("s3cret".to_owned()) && config.has_tls());
        assert!(NatsConfig::builder("nats://me:%zz@a").build().is_err());
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        for builder in [
            NatsConfig::builder("nats://me:hunter1@a:1"),
            NatsConfig::builder("nats://hunter1@a:1"),
            NatsConfig::builder("a:1").user_and_password("me", "hunter1"),
            NatsConfig::builder("a:1").token("hunter1"),
            NatsConfig::builder("a:1").nkey("hunter1"),
        ] {
            let text = format!("{builder:?} {:?}", builder.clone().build().unwrap());
            assert!(!text.contains("hunter"), "{text}");
            assert!(text.contains("a:1"), "{text}");
        }
        let error = NatsConfig::builder("http://me:hunter1@a:1,nats://me:hunter2@").build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    }
}
