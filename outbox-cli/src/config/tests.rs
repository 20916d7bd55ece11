use std::{collections::BTreeSet, fs};

use super::{
    source::{Environment, FileSettings},
    *,
};

const EXAMPLE: &str = include_str!("../../outbox.example.toml");

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

/// The example with what is commented out put in force; an empty text stands for a setting without a default.
fn example_in_force() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting)
            if setting.starts_with(|c: char| c.is_ascii_lowercase()) && !setting.ends_with("= \"\"") =>
        {
            setting.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(|text| line(text) + "\n").collect()
}

const MINIMAL: &str = "[store]\nurl = \"sqlite:x.db\"\n[publisher]\nurl = \"stdout:\"\n";

#[test]
fn the_example_is_valid_as_it_is() {
    let config = load(EXAMPLE, &[]).unwrap();
    assert_eq!(config.store.shown(), "sqlite:shop.db");
    assert_eq!(format!("{:?}", config.relay), format!("{:?}", RelayConfig::default()));
}

#[test]
fn the_example_names_every_setting_with_its_default() {
    // The settings that mean nothing to the store or publisher of the example are read and then refused, so the
    // values are compared by two examples.
    let text = example_in_force();
    let mut keys = BTreeSet::new();
    let mut reader = Reader::new(None, []);
    relay::read(&mut reader);
    store::read(&mut reader, Default::default());
    publisher::read(&mut reader, RelayConfig::default().publish_timeout, Needs::Store);
    for key in reader.keys() {
        keys.insert((*key).to_owned());
    }
    let every_setting: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.ends_with("= \"\"") => setting.to_owned() + "\n",
            _ => line.to_owned() + "\n",
        })
        .collect();
    let in_example: BTreeSet<String> =
        FileSettings::parse(Path::new("x"), &every_setting).given.into_keys().collect();
    assert_eq!(in_example, keys);

    let text: String =
        text.lines().filter(|line| !line.starts_with("connections")).map(|l| l.to_owned() + "\n").collect();
    let config = load(&text, &[]).unwrap();
    let default = load(MINIMAL, &[]).unwrap();
    assert_eq!(format!("{:?}", config.relay), format!("{:?}", default.relay));
    assert_eq!(format!("{:?}", config.store).replace("shop.db", "x.db"), format!("{:?}", default.store));
}

#[cfg(feature = "kafka")]
#[test]
fn the_examples_kafka_settings_are_the_defaults() {
    let publisher = |file: String| {
        let text = file.replace("\"stdout:\"", "\"kafka://k:9092\"").replace("connections = 5\n", "");
        format!("{:?}", load(&text, &[]).unwrap().publisher)
    };
    assert_eq!(publisher(example_in_force()), publisher(MINIMAL.to_owned()));
}

#[cfg(feature = "postgres")]
#[test]
fn the_examples_postgres_settings_are_the_defaults() {
    let store = |file: String| {
        let text = file.replace("sqlite:shop.db", "postgres://h/d").replace("sqlite:x.db", "postgres://h/d");
        let text = text.replace("busy_timeout = \"5s\"\n", "");
        format!("{:?}", load(&text, &[]).unwrap().store)
    };
    assert_eq!(store(example_in_force()), store(MINIMAL.to_owned()));
}

/// A setting that the engine gains must be gained here.
#[test]
fn every_setting_of_the_relay_can_be_given() {
    let mut reader = Reader::new(None, []);
    let config = relay::read(&mut reader);
    let mut path: Vec<String> = vec!["relay".to_owned()];
    let mut names = Vec::new();
    for line in format!("{config:#?}").lines().skip(1) {
        let indent = (line.len() - line.trim_start().len()) / 4;
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        path.truncate(indent);
        path.push(name.to_owned());
        if !value.ends_with("RetryPolicy {") && !value.ends_with("Retention {") {
            names.push(path.join("."));
        }
    }
    assert!(names.len() > 25, "the relay's settings are no longer found: {names:?}");
    for name in names {
        assert!(reader.keys().contains(&name.as_str()), "{name} cannot be given");
    }
}

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
fn the_environment_suffices_for_every_setting() {
    let file = FileSettings::parse(Path::new("x"), &example_in_force());
    let variables: Vec<(OsString, OsString)> = file
        .given
        .iter()
        .filter(|(key, _)| *key != "store.connections")
        .map(|(key, given)| {
            let value = match &given.value {
                source::Value::Text(text) | source::Value::Integer(text) => text.clone(),
                source::Value::Boolean(boolean) => boolean.to_string(),
                _ => panic!("{key}"),
            };
            (reader::variable(key).into(), value.into())
        })
        .collect();
    assert!(variables.len() > 30);
    let config = Config::read(None, variables, Needs::StoreAndPublisher).map_err(|findings| lines(&findings));
    assert_eq!(format!("{:?}", One::of(config.unwrap()).relay), format!("{:?}", RelayConfig::default()));
}

#[test]
fn values_of_every_kind_are_read() {
    let file = format!(
        "{MINIMAL}[publisher.file]\nsync = false\n[relay]\ntopic = \"x.{{event_type}}\"\nbuffer_bytes_max = 1_000_000\n\
         unavailable_delay = \"1s to 2s\"\nseed = 7\n[relay.retry]\nage_max = \"2d\"\ngive_up = \"park\"\n\
         [relay.retention]\nwhen_sent = \"archive\"\nsent = \"never\"\nfailed = \"archive after 30d\"\n"
    );
    let relay = load(&file, &[]).unwrap().relay;
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
        ("OUTBOX_TEST_POSTGRES_URL", "is nobody's setting"),
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
fn a_file_that_is_no_toml_is_named_by_line_and_hides_nothing_else() {
    let lines = refused(
        "[store]\nurl = postgres://me:hush@h/d\n[relay\n[publisher]\nurl = \"stdout:\n",
        &[("OUTBOX_RELAY_POLL_MIN", "soon")],
    );
    assert_one(&lines, &["[config-file]", "outbox.toml line 2 is no TOML"]);
    assert_one(&lines, &["[config-file]", "outbox.toml line 3 is no TOML"]);
    assert_one(&lines, &["[config-file]", "outbox.toml line 5 is no TOML"]);
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
fn urls_are_shown_without_what_may_be_secret() {
    for (url, shown) in [
        ("postgres://me:hush@h:5432/shop?sslpassword=hush", "postgres://me@h:5432/shop"),
        ("postgres://me:hu/sh@h/shop", "postgres://me@h/shop"),
        ("postgres://me:hu?sh#hush@h/shop", "postgres://me@h/shop"),
        ("postgres://me:hu@sh@h/shop", "postgres://me@h/shop"),
        ("postgres://h/shop#hush", "postgres://h/shop"),
        ("postgres://me:hush", "postgres://me/"),
        ("postgres:///shop?host=/run", "postgres:///shop"),
    ] {
        assert_eq!(store::redacted(url), shown);
        assert!(!store::redacted(url).contains("hush"));
    }
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_properties_are_passed_on_and_their_problems_named() {
    let file = "[store]\nurl = \"sqlite:x.db\"\n[publisher]\nurl = \"kafka://k1:9092,k2:9092\"\n[publisher.kafka]\n\
                linger = \"1ms\"\nkey = \"aggregate\"\ncompression.type = \"lz4\"\n\"socket.timeout.ms\" = 7000\n";
    let config = load(file, &[("OUTBOX_PUBLISHER_KAFKA_CLIENT_ID", "me")]).unwrap();
    let shown = format!("{:?}", config.publisher.unwrap());
    for part in [
        "\"compression.type\": \"lz4\"",
        "\"socket.timeout.ms\": \"7000\"",
        "\"client.id\": \"me\"",
        "key: Aggregate,",
        "linger: 1ms",
        "delivery_timeout: 3.5s",
        "\"k1:9092,k2:9092\"",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }

    let file =
        file.replace("compression.type = \"lz4\"", "acks = 1\ndelivery_timeout = \"4s\"\nno.such = true");
    let lines = refused(
        &file,
        &[("OUTBOX_PUBLISHER_KAFKA_COMPRESSION_TYPE", "rar"), ("OUTBOX_PUBLISHER_KAFKA_IN_FLIGHT_MAX", "9")],
    );
    assert_one(&lines, &["[kafka-property]", "publisher.kafka.acks (outbox.toml line 8)", "always `all`"]);
    assert_one(&lines, &["publisher.kafka.delivery_timeout (outbox.toml line 9)", "relay.publish_timeout"]);
    assert_one(&lines, &["[kafka-property]", "publisher.kafka.no.such (outbox.toml line 10)", "No such"]);
    assert_one(&lines, &["publisher.kafka.compression.type (OUTBOX_PUBLISHER_KAFKA_COMPRESSION_TYPE)"]);
    assert_one(&lines, &["publisher.kafka.in_flight_max (OUTBOX_PUBLISHER_KAFKA_IN_FLIGHT_MAX)", "5"]);
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[cfg(all(feature = "rabbitmq", feature = "nats"))]
#[test]
fn rabbitmqs_and_natss_settings_are_passed_on_and_their_problems_named() {
    let with = |url: &str, table: &str| {
        format!("[store]\nurl = \"sqlite:x.db\"\n[publisher]\nurl = \"{url}\"\n{table}")
    };
    let config = load(
        &with("amqp://me:hush@h:1/v", "[publisher.rabbitmq]\nexchange = \"events\"\npayload_bytes_max = 7\n"),
        &[],
    );
    let publisher = config.unwrap().publisher.unwrap();
    assert_eq!(publisher.shown(), "amqp://me@h:1/v");
    let shown = format!("{publisher:?}");
    assert!(shown.contains("exchange: \"events\"") && shown.contains("payload_bytes_max: 7"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");

    let table = "[publisher.nats]\nstream = \"S\"\nstream_subjects = \"a.>, b\"\nstream_replicas = 3\n";
    let config = load(&with("nats://me:hush@h:1,tls://i", table), &[]);
    let publisher = config.unwrap().publisher.unwrap();
    assert_eq!(publisher.shown(), "nats://me@h:1/,tls://i/");
    let shown = format!("{publisher:?}");
    assert!(shown.contains("subjects: [\"a.>\", \"b\"]") && shown.contains("replicas: 3"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");

    let table = "[publisher.rabbitmq]\nexchange = \"e\"\nexchange_from_topic = true\npayload_bytes_max = 0\n\
                 ca_file = \"/no/such\"\nclient_key = \"k\"\n";
    let lines = refused(&with("amqps://h", table), &[]);
    assert_one(&lines, &["publisher.rabbitmq.exchange (outbox.toml line 6)", "exchange_from_topic"]);
    assert_one(&lines, &["publisher.rabbitmq.payload_bytes_max (outbox.toml line 8)", "is refused"]);
    assert_one(&lines, &["publisher.rabbitmq.ca_file (outbox.toml line 9)", "/no/such"]);
    assert_one(&lines, &["publisher.rabbitmq.client_certificate", "client_key"]);
    assert_eq!(lines.len(), 4, "{lines:#?}");

    let table = "[publisher.nats]\nstream = \"a b\"\ncredentials_file = \"c\"\n";
    let lines = refused(&with("nats://me:hush@h", table), &[]);
    assert_one(&lines, &["publisher.nats.stream (outbox.toml line 6)", "stream_subjects"]);
    assert_one(&lines, &["publisher.url (outbox.toml line 4)", "login is given 2 times"]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
}

#[cfg(feature = "kafka")]
#[test]
fn a_property_can_be_a_file() {
    let secret = TempFile::new("secret", "hush\n");
    let url = [("OUTBOX_STORE_URL", "sqlite:x.db"), ("OUTBOX_PUBLISHER_URL", "kafka://k:9092")];
    let with = |name: &'static str| load("", &[url[0], url[1], (name, secret.path())]);
    let config = with("OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD_FILE").unwrap();
    let shown = format!("{:?}", config.publisher.unwrap());
    assert!(shown.contains("sasl.password") && !shown.contains("hush"), "{shown}");
    // A property that is itself the name of a file is not read.
    let config = with("OUTBOX_PUBLISHER_KAFKA_SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE");
    let shown =
        config.map_or_else(|findings| lines(&findings).concat(), |config| format!("{:?}", config.publisher));
    assert!(shown.contains("sasl.oauthbearer.assertion.private.key.file"), "{shown}");
}

#[test]
fn what_an_adapter_refuses_is_named_by_key() {
    let file =
        "[store]\nurl = \"sqlite::memory:\"\nprefix = \"a-b\"\nbusy_timeout = \"1h\"\nschema = \"s\"\n";
    let lines = refused(file, &[("OUTBOX_PUBLISHER_URL", "stdout:")]);
    assert_one(&lines, &["store.schema (outbox.toml line 5)", "SQLite", "OUTBOX_STORE_SCHEMA"]);
    assert_one(&lines, &["store.url (outbox.toml line 2)", "share"]);
    assert_one(&lines, &["store.prefix (outbox.toml line 3)", "letters"]);
    assert_one(&lines, &["store.busy_timeout (outbox.toml line 4)", "at most"]);
    assert_eq!(lines.len(), 4, "{lines:#?}");
}

#[cfg(feature = "postgres")]
#[test]
fn what_postgres_refuses_is_named_by_key() {
    let file = "[store]\nurl = \"postgres://me:hush@[bad\"\nprefix = \"a-b\"\nschema = \"s;\"\nconnections = 0\nbusy_timeout = \"1s\"\n";
    let lines = refused(file, &[("OUTBOX_PUBLISHER_URL", "stdout:")]);
    for (key, line) in [("url", 2), ("prefix", 3), ("schema", 4), ("connections", 5), ("busy_timeout", 6)] {
        assert_one(&lines, &[&format!("store.{key} (outbox.toml line {line})")]);
    }
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[cfg(feature = "mysql")]
#[test]
fn what_mysql_refuses_is_named_by_key() {
    let file = "[store]\nurl = \"mysql://me:hush@[bad\"\nprefix = \"a-b\"\nschema = \"s;\"\nconnections = 0\nbusy_timeout = \"1s\"\n";
    let lines = refused(file, &[("OUTBOX_PUBLISHER_URL", "stdout:")]);
    for (key, line) in [("url", 2), ("prefix", 3), ("schema", 4), ("connections", 5), ("busy_timeout", 6)] {
        assert_one(&lines, &[&format!("store.{key} (outbox.toml line {line})")]);
    }
    assert_eq!(lines.len(), 5, "{lines:#?}");
    // The tables are in a schema, or in the database of the url.
    let file = "[store]\nurl = \"mysql://me:hush@h\"\n[publisher]\nurl = \"stdout:\"\n";
    assert_one(&refused(file, &[]), &["store.url (outbox.toml line 2)", "names no database"]);
    load(file, &[("OUTBOX_STORE_SCHEMA", "shop")]).unwrap();
}

#[cfg(feature = "mongo")]
#[test]
fn what_mongo_refuses_is_named_by_key() {
    let file = "[store]\nurl = \"mongodb://me:hush@[bad\"\nprefix = \"a-b\"\nschema = \"s;\"\nconnections = 1\nbusy_timeout = \"1s\"\n";
    let lines = refused(file, &[("OUTBOX_PUBLISHER_URL", "stdout:")]);
    for (key, line) in [("url", 2), ("prefix", 3), ("schema", 4), ("connections", 5), ("busy_timeout", 6)] {
        assert_one(&lines, &[&format!("store.{key} (outbox.toml line {line})")]);
    }
    assert_eq!(lines.len(), 5, "{lines:#?}");
    // The collections are in a database of their own, or in that of the url.
    let file = "[store]\nurl = \"mongodb://me:hush@h\"\n[publisher]\nurl = \"stdout:\"\n";
    assert_one(&refused(file, &[]), &["store.url (outbox.toml line 2)", "database is missing"]);
    load(file, &[("OUTBOX_STORE_SCHEMA", "shop")]).unwrap();
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

const TWO: &str = "[store]\nurl = \"postgres://h/d\"\n[publisher]\nurl = \"stdout:\"\n[relay]\npoll_max = \"1s\"\n\
    [[outbox]]\nname = \"billing\"\nstore.schema = \"billing\"\n\
    [[outbox]]\nname = \"shop\"\n[outbox.store]\nschema = \"shop\"\n[outbox.relay]\nsource = \"/shop\"\n";

#[cfg(feature = "postgres")]
#[test]
fn several_outboxes_have_what_is_said_for_all_and_what_is_their_own() {
    let variables = [
        ("OUTBOX_STORE_URL", "postgres://for-all/d"),
        ("OUTBOX_SHOP_STORE_URL", "postgres://me:hush@own/d"),
        ("OUTBOX_RELAY_SOURCE", "/all"),
        ("OUTBOX_BILLING_RELAY_RETRY_ATTEMPTS_MAX", "3"),
    ];
    let config = load_all(TWO, &variables).map_err(|findings| lines(&findings)).unwrap();
    let [billing, shop] = &config.outboxes[..] else { panic!("{config:?}") };
    assert_eq!((billing.name.as_deref(), shop.name.as_deref()), (Some("billing"), Some("shop")));
    assert_eq!(billing.store.shown(), "postgres://for-all/d");
    assert_eq!(shop.store.shown(), "postgres://me@own/d");
    assert!(format!("{:?}", billing.store).contains("billing"), "{billing:?}");
    assert_eq!((&*billing.relay.source, &*shop.relay.source), ("/all", "/shop"), "what is its own wins");
    assert_eq!((billing.relay.retry.attempts_max, shop.relay.retry.attempts_max), (3, 10));
    assert_eq!(billing.relay.poll_max, shop.relay.poll_max);
    assert_eq!((config.publishers.len(), billing.publisher, shop.publisher), (1, Some(0), Some(0)), "shared");
    assert!(!format!("{config:?}").contains("hush"));

    let own = format!(
        "{TWO}[outbox.publisher]\nurl = \"file:x\"\n[[outbox]]\nname = \"c\"\nstore.prefix = \"c\"\n"
    );
    let config = load_all(&own, &[]).map_err(|findings| lines(&findings)).unwrap();
    let publishers: Vec<_> = config.outboxes.iter().map(|outbox| outbox.publisher).collect();
    assert_eq!(publishers, [Some(0), Some(1), Some(0)]);
    assert!(config.one().is_err());
}

#[cfg(feature = "postgres")]
#[test]
fn problems_of_all_outboxes_are_named_at_once() {
    let file = "[publisher]\nurl = \"stdout:\"\n[relay]\npoll_max = 3\nnonsense = 1\n\
        [[outbox]]\nname = \"a\"\nstore.url = \"postgres://h/d\"\nstore.schema = \"a;b\"\n\
        [[outbox]]\nname = \"A\"\nstore.url = \"sqlite:x\"\nstore.prefix = \"1st\"\n\
        [[outbox]]\nname = \"relay\"\nstore.url = \"sqlite:y\"\n\
        [[outbox]]\nstore.url = \"sqlite:z\"\n\
        [[outbox]]\nname = \"b\"\nrelay.sorce = \"/x\"\n\
        [[outbox]]\nname = \"c\"\nstore.url = \"postgres://h/d\"\nstore.schema = \"a;b\"\n";
    let lines = refused(
        file,
        &[("OUTBOX_B_STORE_SHEMA", "x"), ("OUTBOX_C_RELAY_TOPIC", "{no}"), ("OUTBOX_D_STORE_SCHEMA", "x")],
    );
    let expected: &[&[&str]] = &[
        &["relay.poll_max (outbox.toml line 4) is 3"],
        &["[unknown-key]", "relay.nonsense (outbox.toml line 5)"],
        &["store.schema (outbox.toml line 9)", "a;b"],
        &["name (outbox.toml line 11)", "\"A\"", "of its own"],
        &["store.prefix (outbox.toml line 13)", "1st"],
        &["name (outbox.toml line 15)", "\"relay\""],
        &["[missing-key]", "(outbox.toml line 18) has no name"],
        &["[missing-key]", "store.url of the outbox b is missing", "OUTBOX_B_STORE_URL"],
        &["[unknown-key]", "relay.sorce (outbox.toml line 21)", "relay.source?"],
        &["store.schema (outbox.toml line 25)"],
        &["[unknown-variable]", "OUTBOX_B_STORE_SHEMA", "OUTBOX_B_STORE_SCHEMA?"],
        &["[unknown-variable]", "OUTBOX_D_STORE_SCHEMA is no setting"],
        &["relay.topic (OUTBOX_C_RELAY_TOPIC)"],
        &["[same-tables]", "a and c"],
    ];
    for parts in expected {
        assert_one(&lines, parts);
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

#[test]
fn an_outbox_that_is_no_list_is_named() {
    for file in ["[outbox]\nname = \"a\"\n", "outbox = 3\n", "outbox = [1]\n", "outbox = []\n"] {
        let lines = refused(file, &[]);
        assert_eq!(lines.len(), 1, "{file}: {lines:#?}");
        assert_one(&lines, &["[config-file]", "outbox.toml line 1", "[[outbox]]"]);
    }
}
