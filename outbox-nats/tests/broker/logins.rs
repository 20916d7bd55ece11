//! Against real servers that demand each kind of login, or allow a user some subjects only.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use outbox_conformance::testing;
use outbox_core::{
    Publisher,
    publisher::{PublishErrorKind::Unavailable, PublishErrorScope as Scope, Stored},
};
use outbox_nats::{NatsConfigBuilder, NatsStream};
use uuid::Uuid;

use crate::common::{TIMEOUT, brief, config, message, publish, publish_one, publisher, url};

/// A server with a configuration of its own.
struct Server {
    process: Child,
    folder: PathBuf,
    address: String,
}

impl Server {
    /// Starts one with JetStream and what is given, or says in a line why it cannot be started.
    fn start(security: &str) -> Option<Self> {
        url()?;
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("login-{}", Uuid::now_v7()));
        fs::create_dir_all(&folder).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let file = folder.join("nats.conf");
        fs::write(
            &file,
            format!("listen: \"{address}\"\njetstream {{ store_dir: {folder:?} }}\n{security}\n"),
        )
        .unwrap();
        let start = |program| {
            Command::new(program).arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        match start("nats-server").or_else(|_| start("/usr/sbin/nats-server")) {
            Ok(process) => Some(Self { process, folder, address }),
            Err(error) => {
                let text = format!("NATS cannot be started for this test alone: {error}");
                testing::absent(&text);
                None
            }
        }
    }

    fn config(&self) -> NatsConfigBuilder {
        config(&self.address).stream(NatsStream::new("all", ["allowed.>", "denied.>"]))
    }

    /// With the one configuration messages arrive, with the other it is the login that is refused, and not
    /// shown.
    async fn takes(&self, right: NatsConfigBuilder, wrong: NatsConfigBuilder, secret: &str) {
        let right = publisher(right);
        assert_eq!(publish_one(&right, message("allowed.1", "1", "{}")).await, Ok(()));
        let wrong = publisher(wrong);
        let findings = wrong.check(&[]).await;
        assert_eq!(findings[0].code, "login-refused", "{findings:?}");
        let text = format!("{findings:?} {wrong:?} {right:?}");
        assert!(!text.contains(secret), "{text}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_a_login() {
    let Some(server) = Server::start("authorization { token: \"s3cret\" }") else { return };
    server.takes(server.config().token("s3cret"), server.config().token("hunter2"), "hunter2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_is_a_login() {
    let (known, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let security = format!("authorization {{ users: [ {{ nkey: {:?} }} ] }}", known.public_key());
    let Some(server) = Server::start(&security) else { return };
    let seed = stranger.seed().unwrap();
    server.takes(server.config().nkey(known.seed().unwrap()), server.config().nkey(&seed), &seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_is_a_login() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let limits = "\"subs\":-1,\"data\":-1,\"payload\":-1,\"imports\":-1,\"exports\":-1,\"wildcards\":true,\
                  \"conn\":-1,\"leaf\":-1,\"mem_storage\":-1,\"disk_storage\":-1,\"streams\":-1,\"consumer\":-1";
    let is_account = format!("\"type\":\"account\",\"version\":2,\"limits\":{{{limits}}}");
    let is_system = "\"type\":\"account\",\"version\":2";
    // JetStream needs an account for the system itself.
    let system = KeyPair::new_account();
    let (account_key, system_key) = (account.public_key(), system.public_key());
    let security = format!(
        "operator: {:?}\nresolver: MEMORY\nsystem_account: {system_key}\n\
         resolver_preload: {{ {account_key}: {:?}, {system_key}: {:?} }}",
        token(&operator, &operator, "\"type\":\"operator\",\"version\":2"),
        token(&operator, &account, &is_account),
        token(&operator, &system, is_system),
    );
    let Some(server) = Server::start(&security) else { return };
    let credentials = |name: &str, account: &KeyPair| {
        let limits =
            "\"type\":\"user\",\"version\":2,\"pub\":{},\"sub\":{},\"subs\":-1,\"data\":-1,\"payload\":-1";
        let (token, seed) = (token(account, &user, limits), user.seed().unwrap());
        let file = server.folder.join(name);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        fs::write(&file, text).unwrap();
        server.config().credentials_file(file)
    };
    let right = credentials("right.creds", &account);
    let wrong = credentials("wrong.creds", &KeyPair::new_account());
    server.takes(right, wrong, &user.seed().unwrap()).await;

    let findings = publisher(server.config().credentials_file("/no/such/file")).check(&[]).await;
    assert_eq!(findings[0].code, "login-refused", "{findings:?}");
}

/// What `issuer` says of `subject`, signed, in the form that NATS has for it.
fn token(issuer: &KeyPair, subject: &KeyPair, claims: &str) -> String {
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let head = encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let (issuer_name, subject_name) = (issuer.public_key(), subject.public_key());
    let body = format!(
        "{{\"jti\":\"1\",\"iat\":1,\"iss\":{issuer_name:?},\"name\":\"test\",\"sub\":{subject_name:?},\"nats\":{{{claims}}}}}"
    );
    let signed = format!("{head}.{}", encode(body.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(&signature))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_the_user_may_not_send_to_fails_alone_and_at_once() {
    let security = "authorization { users: [ { user: u, password: p, \
                    permissions: { publish: { allow: [\"allowed.>\", \"$JS.API.>\"] } } } ] }";
    let Some(server) = Server::start(security) else { return };
    let publisher = publisher(server.config().user_and_password("u", "p"));
    let denied = ("PermissionsViolation".to_owned(), Unavailable, Scope::Destination, Stored::Unknown);
    for _ in 0..2 {
        // Had the denial to be waited for, it would take as long as the call may, and be called something
        // else.
        let topics = ["denied.1", "allowed.1", "denied.2", "denied.1", "allowed.2"];
        let messages = topics.map(|topic| message(topic, topic, "{}"));
        let results = publish(&publisher, messages.into(), TIMEOUT).await;
        for (topic, result) in topics.into_iter().zip(results) {
            match topic.starts_with("denied") {
                true => assert_eq!(brief(result.unwrap()), denied),
                false => assert_eq!(result.unwrap(), Ok(())),
            }
        }
        // Also where nothing else is sent that would be answered.
        assert_eq!(brief(publish_one(&publisher, message("denied.1", "1", "{}")).await), denied);
    }
}
