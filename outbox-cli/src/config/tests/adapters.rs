//! What the adapters find wrong, and what belongs to the adapters that were not chosen.

use super::*;

#[test]
fn what_the_url_does_not_choose_is_refused_by_name_for_every_adapter() {
    let mut refusals = 0;
    for side in [Side::store(), Side::publisher()] {
        for (adapter, chosen) in
            side.adapters.iter().flat_map(|one| side.adapters.iter().map(move |other| (one, other)))
        {
            for setting in adapter.settings.iter().filter(|setting| setting.key != "*") {
                let key = format!("{}{}", side.table(adapter), setting.key);
                let has_it = side.table(chosen) == side.table(adapter)
                    && chosen.settings.iter().any(|it| it.key == setting.key);
                if has_it {
                    continue;
                }
                let url = url_for(chosen);
                let file =
                    if side.name == "store" { minimal(&url, "stdout:") } else { minimal("sqlite:x", &url) };
                let lines = refused(&file, &[(&reader::variable(&key), setting.default.unwrap_or("x"))]);
                assert_one(&lines, &[&key, "is a setting of", adapter.title, chosen.title, "or unset"]);
                assert_eq!(lines.len(), 1, "{key} beside {url}: {lines:#?}");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 0);
}

#[cfg(feature = "kafka")]
#[test]
fn a_client_s_own_property_beside_another_publisher_is_refused_as_well() {
    let file = format!("{MINIMAL}[publisher.kafka]\ncompression.type = \"lz4\"\n");
    let lines = refused(&file, &[("OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD", "hush")]);
    let names = "is a setting of Kafka, and publisher.url names the standard output";
    assert_one(&lines, &["publisher.kafka.compression.type (outbox.toml line 6)", names]);
    assert_one(&lines, &["publisher.kafka.sasl.password (OUTBOX_PUBLISHER_KAFKA_SASL_PASSWORD)", names]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(!lines.concat().contains("hush"), "{lines:#?}");
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
    assert_one(&lines, &["[wrong-value]", "publisher.kafka.acks (outbox.toml line 8)", "always `all`"]);
    assert_one(&lines, &["publisher.kafka.delivery_timeout (outbox.toml line 9)", "relay.publish_timeout"]);
    assert_one(&lines, &["[wrong-value]", "publisher.kafka.no.such (outbox.toml line 10)", "No such"]);
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
    assert_one(&lines, &["publisher.rabbitmq.payload_bytes_max (outbox.toml line 8)", "from 1"]);
    assert_one(&lines, &["publisher.rabbitmq.ca_file (outbox.toml line 9)", "/no/such"]);
    assert_one(
        &lines,
        &["publisher.rabbitmq.client_key (outbox.toml line 10)", "without client_certificate"],
    );
    assert_eq!(lines.len(), 4, "{lines:#?}");

    let table = "[publisher.nats]\nstream = \"a b\"\ncredentials_file = \"c\"\n";
    let lines = refused(&with("nats://me:hush@h", table), &[]);
    assert_one(&lines, &["publisher.nats.stream (outbox.toml line 6)", "stream_subjects"]);
    assert_one(&lines, &["publisher.url (outbox.toml line 4)", "give 2 logins"]);
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

// store.schema is a setting of PostgreSQL.
#[cfg(feature = "postgres")]
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
    assert_one(&refused(file, &[]), &["store.url (outbox.toml line 2)", "names no database"]);
    load(file, &[("OUTBOX_STORE_SCHEMA", "shop")]).unwrap();
}
