//! Several outboxes in one process.

use super::*;

#[cfg(feature = "kafka")]
#[test]
fn a_setting_for_all_outboxes_must_mean_something_to_one_of_them() {
    let file = "[store]\nurl = \"sqlite:x\"\n[publisher.kafka]\nlinger = \"1ms\"\n[[outbox]]\nname = \"a\"\n\
        publisher.url = \"stdout:\"\n[[outbox]]\nname = \"b\"\nstore.prefix = \"b\"\npublisher.url = ";
    let config =
        load_all(&format!("{file}\"kafka://h:1\"\n"), &[]).map_err(|findings| lines(&findings)).unwrap();
    assert!(format!("{:?}", config.publishers).contains("linger: 1ms"), "{config:?}");
    let lines = refused(&format!("{file}\"file:x\"\n"), &[]);
    assert_one(&lines, &["publisher.kafka.linger (outbox.toml line 4)", "names the standard output"]);
    assert_one(&lines, &["publisher.kafka.linger (outbox.toml line 4)", "names a file"]);
    // What an outbox says itself is meant for no other.
    let own = file.replace("name = \"a\"", "name = \"a\"\npublisher.kafka.linger = \"2ms\"");
    let lines = refused(&format!("{own}\"kafka://h:1\"\n"), &[]);
    assert_one(&lines, &["publisher.kafka.linger (outbox.toml line 7)", "names the standard output"]);
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn publishers_that_differ_in_a_boolean_are_not_shared() {
    let file = "[publisher]\nurl = \"file:x\"\n[[outbox]]\nname = \"a\"\nstore.url = \"sqlite:a\"\n\
        publisher.file.sync = false\n[[outbox]]\nname = \"b\"\nstore.url = \"sqlite:b\"\n";
    let config = load_all(file, &[]).map_err(|findings| lines(&findings)).unwrap();
    assert_eq!(config.publishers.len(), 2, "{config:?}");
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
        &["[unknown-variable]", "unknown variable OUTBOX_D_STORE_SCHEMA"],
        &["relay.topic (OUTBOX_C_RELAY_TOPIC)"],
        &["[same-tables]", "a and c"],
    ];
    for parts in expected {
        assert_one(&lines, parts);
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

#[test]
fn an_outbox_that_is_not_an_array_is_named() {
    for file in ["[outbox]\nname = \"a\"\n", "outbox = 3\n", "outbox = [1]\n", "outbox = []\n"] {
        let lines = refused(file, &[]);
        assert_eq!(lines.len(), 1, "{file}: {lines:#?}");
        assert_one(&lines, &["[config-file]", "outbox.toml line 1", "[[outbox]]"]);
    }
}
