//! The reading of settings, all adapters alike.

mod adapters;
mod example;
mod outboxes;

use std::fs;

use outbox_core::settings::Adapter;

use super::{
    source::{Environment, FileSettings, FileValue},
    *,
};

/// A file in a folder of its own, removed with it.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outbox-cli-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// The one outbox of a configuration.
struct One {
    store: StoreConfig,
    publisher: Option<PublisherConfig>,
    relay: RelayConfig,
}

impl One {
    fn of(config: Config) -> Self {
        let (outbox, publisher) = config.one().unwrap();
        assert_eq!(outbox.name, None);
        Self { store: outbox.store, publisher, relay: outbox.relay }
    }
}

fn load(file: &str, variables: &[(&str, &str)]) -> Result<One, Vec<Finding>> {
    load_all(file, variables).map(One::of)
}

fn load_all(file: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<Finding>> {
    let file = TempFile::new("outbox.toml", file);
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::read(Some(&file.0), variables, Needs::StoreAndPublisher)
}

/// The findings as lines, with the file's path cut down to its name.
fn lines(findings: &[Finding]) -> Vec<String> {
    let short = |line: String| {
        let words = line.split(' ').map(|word| match word.rsplit_once('/') {
            Some((before, name)) if before.contains("outbox-cli-") && word.starts_with('(') => {
                format!("({name}")
            }
            Some((before, name)) if before.contains("outbox-cli-") => name.to_owned(),
            _ => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    findings.iter().map(|finding| short(finding.to_string())).collect()
}

fn refused(file: &str, variables: &[(&str, &str)]) -> Vec<String> {
    lines(&load_all(file, variables).expect_err("the configuration was taken"))
}

#[track_caller]
fn assert_one(lines: &[String], parts: &[&str]) {
    let matching = lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    assert_eq!(matching, 1, "{parts:?} in {lines:#?}");
}

/// A URL for an adapter: the pattern that it shows, filled in.
fn url_for(adapter: &Adapter) -> String {
    adapter.url_form.replace("port", "1")
}

/// A store and a publisher, in every combination that this build has.
fn pairs() -> impl Iterator<Item = (&'static Adapter, &'static Adapter)> {
    let publishers = Side::publisher().adapters;
    Side::store()
        .adapters
        .into_iter()
        .flat_map(move |store| publishers.clone().into_iter().map(move |it| (store, it)))
}

fn minimal(store: &str, publisher: &str) -> String {
    format!("[store]\nurl = {store:?}\n[publisher]\nurl = {publisher:?}\n")
}

const MINIMAL: &str = "[store]\nurl = \"sqlite:x.db\"\n[publisher]\nurl = \"stdout:\"\n";

#[test]
fn the_environment_wins_over_the_file() {
    let file = format!(
        "{MINIMAL}[relay]\nlease_ttl = \"20s\"\nbeat_interval = \"2s\"\n[relay.retry]\nattempts_max = 4\n"
    );
    let variables = [
        ("OUTBOX_STORE_URL", "sqlite:y.db"),
        ("OUTBOX_RELAY_LEASE_TTL", "30s"),
        ("OUTBOX_RELAY_RETRY_ATTEMPTS_MAX", "7"),
        ("OUTBOX_RELAY_SOURCE", ""),
    ];
    let config = load(&file, &variables).unwrap();
    assert_eq!(config.store.shown(), "sqlite:y.db");
    assert_eq!(config.relay.lease_ttl.as_secs(), 30);
    assert_eq!(config.relay.beat_interval.as_secs(), 2);
    assert_eq!(config.relay.retry.attempts_max, 7);
    assert_eq!(&*config.relay.source, "/outbox", "an empty variable counts as absent");
}

#[test]
fn values_of_every_kind_are_read() {
    let file = "[store]\nurl = \"sqlite:x\"\n[publisher]\nurl = \"file:x\"\n[publisher.file]\nsync = false\n[relay]\n\
         topic = \"x.{event_type}\"\nbuffer_bytes_max = 1_000_000\n\
         unavailable_delay = \"1s to 2s\"\nseed = 7\n[relay.retry]\nage_max = \"2d\"\ngive_up = \"park\"\n\
         [relay.retention]\nwhen_sent = \"archive\"\nsent = \"never\"\nfailed = \"archive after 30d\"\n";
    let relay = load(file, &[]).unwrap().relay;
    assert_eq!(relay.topic.to_string(), "x.{event_type}");
    assert_eq!(relay.buffer_bytes_max, 1_000_000);
    assert_eq!(format!("{:?}", relay.unavailable_delay), "(1s, 2s)");
    assert_eq!(relay.seed, Some(7));
    assert_eq!(format!("{:?} {:?}", relay.retry.age_max, relay.retry.give_up), "Some(172800s) Park");
    assert_eq!(
        format!("{:?} {:?} {:?}", relay.retention.when_sent, relay.retention.sent, relay.retention.failed),
        "Archive None Some((2592000s, Archive))"
    );
}

// The remedy of a URL names the adapters that are in the build.
#[cfg(all(feature = "postgres", feature = "kafka", feature = "rabbitmq", feature = "nats"))]
#[test]
fn all_problems_are_named_at_once_with_their_origin() {
    let file = "[store]\nurl = \"oracle://me:hush@h/d\"\nprefx = \"o\"\n[publisher]\nurl = \"mqtt://h\"\n[relay]\n\
                lease_ttl = 15\nsource = 7\nin_flight_max = \"many\"\npublish_max = \"5\"\npoll_min = \"soon\"\n\
                beat_interval = \"1s\"\npublish_timeout = \"20s\"\nattempts_max = 3\nbuffer_bytes_max = 1.5\n\
                [relay.retention]\nsent = \"burn after 3d\"\n";
    let variables = [
        ("OUTBOX_RELAY_RETRY_GIVE_UP", "cry"),
        ("OUTBOX_RELAY_TOPIC", "{tenant}"),
        ("OUTBOX_RELAY_LEASE_TLL", "1s"),
        ("OUTBOX_RELAY_NONSENSE", "1"),
        ("OUTBOX_STOREURL", "sqlite:x"),
        ("OUTBOX_TEST_POSTGRES_URL", "is not a setting"),
        ("OUTBOX_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("OUTBOX_RELAY_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    let lines = refused(file, &variables);
    let expected: &[&[&str]] = &[
        &["[wrong-value]", "store.url (outbox.toml line 2)", "scheme \"oracle\"", "postgres://", "sqlite:"],
        &["[unknown-key]", "store.prefx (outbox.toml line 3)", "did you mean store.prefix?"],
        &["publisher.url (outbox.toml line 5)", "\"mqtt\"", "kafka://", "amqp://", "nats://"],
        &["relay.lease_ttl (outbox.toml line 7) is 15", "unit"],
        &["relay.source (outbox.toml line 8) is 7"],
        &["relay.in_flight_max (outbox.toml line 9) is \"many\"", "whole number"],
        &["relay.publish_max (outbox.toml line 10) is \"5\"", "whole number"],
        &["relay.poll_min (outbox.toml line 11) is \"soon\""],
        &["[unknown-key]", "relay.attempts_max (outbox.toml line 14)", "relay.retry.attempts_max?"],
        &["relay.buffer_bytes_max (outbox.toml line 15) is of the type float"],
        &["relay.retention.sent (outbox.toml line 17) is \"burn after 3d\"", "delete after 3d"],
        &[
            "relay.retry.give_up (OUTBOX_RELAY_RETRY_GIVE_UP) is \"cry\"",
            "\"store\" or \"discard\" or \"park\"",
        ],
        &["relay.topic (OUTBOX_RELAY_TOPIC)", "{tenant}", "{aggregate_type}"],
        &["[unknown-variable]", "OUTBOX_RELAY_LEASE_TLL", "OUTBOX_RELAY_LEASE_TTL?"],
        &["[unknown-variable]", "OUTBOX_RELAY_NONSENSE"],
        &["[unknown-variable]", "OUTBOX_STOREURL", "OUTBOX_STORE_URL?"],
    ];
    for parts in expected {
        assert_one(&lines, parts);
    }
    // No problem of the whole is derived from the default of a lease_ttl that was refused.
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert!(!lines.concat().contains("hush"), "{lines:#?}");
}

#[test]
fn settings_that_do_not_fit_are_named_with_their_origin() {
    let file = format!("{MINIMAL}[relay]\npublish_timeout = \"20s\"\npoll_max = \"1ms\"\n");
    let lines = refused(
        &file,
        &[("OUTBOX_RELAY_BEAT_INTERVAL", "2s"), ("OUTBOX_RELAY_UNAVAILABLE_DELAY", "9s to 1s")],
    );
    assert_one(
        &lines,
        &[
            "lease_ttl",
            "relay.publish_timeout (outbox.toml line 6)",
            "relay.beat_interval (OUTBOX_RELAY_BEAT_INTERVAL)",
        ],
    );
    assert_one(&lines, &["poll_min", "relay.poll_max (outbox.toml line 7)", "OUTBOX_RELAY_POLL_MAX"]);
    assert_one(&lines, &["unavailable_delay", "relay.unavailable_delay (OUTBOX_RELAY_UNAVAILABLE_DELAY)"]);
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

#[test]
fn what_is_missing_is_named_with_every_way_to_give_it() {
    let lines = refused("", &[]);
    assert_one(
        &lines,
        &["[missing-key]", "store.url is missing", "OUTBOX_STORE_URL or OUTBOX_STORE_URL_FILE"],
    );
    assert_one(&lines, &["[missing-key]", "publisher.url is missing", "OUTBOX_PUBLISHER_URL"]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let store_alone = [("OUTBOX_STORE_URL".into(), "sqlite:x.db".into())];
    assert!(Config::read(None, store_alone, Needs::Store).is_ok());
}

#[test]
fn a_file_that_is_not_toml_is_named_by_line_and_hides_nothing_else() {
    let lines = refused(
        "[store]\nurl = postgres://me:hush@h/d\n[relay\n[publisher]\nurl = \"stdout:\n",
        &[("OUTBOX_RELAY_POLL_MIN", "soon")],
    );
    assert_one(&lines, &["[config-file]", "outbox.toml line 2 is not valid TOML"]);
    assert_one(&lines, &["[config-file]", "outbox.toml line 3 is not valid TOML"]);
    assert_one(&lines, &["[config-file]", "outbox.toml line 5 is not valid TOML"]);
    assert_one(&lines, &["relay.poll_min (OUTBOX_RELAY_POLL_MIN)"]);
    assert!(!lines.concat().contains("missing"), "what could not be read is not missing: {lines:#?}");
    assert!(!lines.concat().contains("hush"), "{lines:#?}");
}

#[test]
fn a_named_file_must_be_there() {
    let findings = Config::read(Some(Path::new("/no/such/file")), [], Needs::Store).unwrap_err();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].to_string().contains("/no/such/file"), "{findings:?}");
}

#[test]
fn tables_and_settings_are_not_mixed_up() {
    let lines = refused("store = \"sqlite:x\"\n[relay.lease_ttl]\n[nonsense]\n[publisher.file]\n", &[]);
    assert_one(&lines, &["[unknown-key]", "store (outbox.toml line 1)", "write [store]"]);
    assert_one(&lines, &["relay.lease_ttl (outbox.toml line 2) is of the type table"]);
    assert_one(&lines, &["[unknown-key]", "nonsense (outbox.toml line 3)"]);
    assert_eq!(lines.len(), 5, "and two that are missing: {lines:#?}");
}

#[test]
fn a_secret_can_be_a_file() {
    let secret = TempFile::new("url", "sqlite:from-a-file.db\n");
    let publisher = ("OUTBOX_PUBLISHER_URL", "stdout:");
    let config = load("", &[("OUTBOX_STORE_URL_FILE", secret.path()), publisher]).unwrap();
    assert_eq!(config.store.shown(), "sqlite:from-a-file.db");

    let lines = refused(MINIMAL, &[("OUTBOX_STORE_URL_FILE", "/no/such/file")]);
    assert_one(&lines, &["[value-file]", "OUTBOX_STORE_URL_FILE names /no/such/file"]);
    let lines = refused("", &[("OUTBOX_STORE_URL_FILE", "/no/such/file"), publisher]);
    assert_eq!(lines.len(), 1, "what cannot be read is not missing as well: {lines:#?}");
    let lines =
        refused("", &[("OUTBOX_STORE_URL_FILE", secret.path()), ("OUTBOX_STORE_URL", "sqlite:y"), publisher]);
    assert_one(&lines, &["[conflicting-variables]", "OUTBOX_STORE_URL and OUTBOX_STORE_URL_FILE"]);
    let empty = TempFile::new("url", "\n");
    let lines = refused("", &[("OUTBOX_STORE_URL_FILE", empty.path()), publisher]);
    assert_one(&lines, &["OUTBOX_STORE_URL_FILE", "is empty"]);
}

#[test]
fn no_secret_is_ever_shown() {
    let secret = TempFile::new("secret", "hush:hush@hush");
    let urls = [
        "oracle://me:hush@h/d",
        "mysql://me:hush@h",
        "mongodb://me:hush@h",
        "mongodb+srv://me:hush@h/d",
        "mysql://me:hush@[bad/d",
        "hush:hush@h",
        "hush",
        "postgres:/me:hush@h/d",
        "postgres://me:hush@[bad/d",
        "postgres://me:hush@h:hush/d",
        "sqlite:?key=hush",
        "kafka://me:hush@h:1",
        "kafka://h:1/?sasl.password=hush",
        "amqp://me:hush@[bad/v",
        "nats://me:hush@",
        "file:",
    ];
    for url in urls {
        for key in ["OUTBOX_STORE_URL", "OUTBOX_PUBLISHER_URL"] {
            let lines = refused("", &[(key, url)]);
            assert!(!lines.concat().contains("hush"), "{key}={url}: {lines:#?}");
            let key = if key == "OUTBOX_STORE_URL" { "[store]" } else { "[publisher]" };
            let lines = refused(&format!("{key}\nurl = {url:?}\n"), &[]);
            assert!(!lines.concat().contains("hush"), "{key} {url}: {lines:#?}");
        }
    }
    for text in [
        "url = postgres://me:hush@h/d",
        "url = \"postgres://me:hush@h/d",
        "url = 'postgres://me:hush@h/d\"",
        "url = \"postgres://me:hush\\qhush@h/d\"",
        "postgres://me:hush@h/d",
        "url: \"postgres://me:hush@h/d\"",
        "url = \"postgres://me:hush@h/d\" hush",
        "url = [\"hush\", hush]",
        "url = \"hush\"\nurl = \"hush\"",
        "url = { hush = \"hush\"",
        "url = 12hush",
        "url = [\"hush\"]",
    ] {
        let lines = refused(&format!("[store]\n{text}\n"), &[("OUTBOX_PUBLISHER_URL", "stdout:")]);
        assert!(!lines.concat().contains("hush"), "{text}: {lines:#?}");
    }
    for key in ["STORE_URL", "PUBLISHER_URL", "RELAY_POLL_MIN", "RELAY_SEED", "PUBLISHER_KAFKA_SASL_PASSWORD"]
    {
        let file = "[publisher]\nurl = \"kafka://h:1\"\n[publisher.kafka]\n\"ssl.key.pem\" = \"hush\"\n";
        let lines = refused(file, &[(&format!("OUTBOX_{key}_FILE"), secret.path())]);
        assert!(!lines.concat().contains("hush"), "{key}: {lines:#?}");
    }
}

#[test]
fn variables_of_a_services_neighbours_are_nobodys_settings() {
    let names = |name: &str| {
        let environment = Environment::new([(OsString::from(name), OsString::from("x"))]);
        environment.names().count()
    };
    for link in [
        "OUTBOX_RELAY_SERVICE_HOST",
        "OUTBOX_RELAY_SERVICE_PORT_HTTP",
        "OUTBOX_RELAY_PORT",
        "OUTBOX_STORE_PORT_5432_TCP",
        "OUTBOX_STORE_PORT_5432_TCP_PROTO",
    ] {
        assert_eq!(names(link), 0, "{link}");
    }
    for setting in ["OUTBOX_RELAY_LEASE_TTL", "OUTBOX_RELAY_PORT_X", "OUTBOX_RELAY_IMPORT"] {
        assert_eq!(names(setting), 1, "{setting}");
    }
}
