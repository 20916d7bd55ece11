//! `[relay]`: every setting of [`RelayConfig`] by its own name.

use std::{sync::Arc, time::Duration};

use outbox_core::{Disposal, Finding, GiveUp, RelayConfig, TopicTemplate, WhenSent};

use super::reader::{DURATION, Reader, parse_integer, variable};

const COUNT: &str = "a whole number from 1";

/// What a setting accepts that is a time after which rows are removed.
const REMOVAL: &str =
    "\"never\", or \"delete after\" or \"archive after\" with a time, such as \"delete after 3d\"";

pub(super) fn read(reader: &mut Reader) -> RelayConfig {
    let mut relay = RelayConfig::default();
    read_routing(reader, &mut relay);
    reader.duration("relay.lease_ttl", &mut relay.lease_ttl);
    reader.duration("relay.beat_interval", &mut relay.beat_interval);
    reader.duration("relay.membership_interval", &mut relay.membership_interval);
    reader.duration("relay.publish_timeout", &mut relay.publish_timeout);
    reader.duration("relay.lease_margin", &mut relay.lease_margin);
    reader.number("relay.in_flight_max", COUNT, &mut relay.in_flight_max);
    reader.number("relay.publish_max", COUNT, &mut relay.publish_max);
    reader.number("relay.buffer_events_max", COUNT, &mut relay.buffer_events_max);
    reader.number("relay.buffer_bytes_max", COUNT, &mut relay.buffer_bytes_max);
    reader.number("relay.fetch_events_max", COUNT, &mut relay.fetch_events_max);
    reader.number("relay.settle_events_max", COUNT, &mut relay.settle_events_max);
    reader.duration("relay.poll_min", &mut relay.poll_min);
    reader.duration("relay.poll_max", &mut relay.poll_max);
    reader.duration("relay.topic_recheck", &mut relay.topic_recheck);
    let range = "two times, such as \"100ms to 5s\"";
    reader.read("relay.unavailable_delay", range, &mut relay.unavailable_delay, parse_range);
    reader.duration("relay.shutdown_timeout", &mut relay.shutdown_timeout);
    let seed = "\"random\" or a whole number from 0";
    reader.read_integer("relay.seed", seed, &mut relay.seed, |text| {
        if text == "random" { Some(None) } else { parse_integer(text).map(Some) }
    });
    read_retry(reader, &mut relay);
    read_retention(reader, &mut relay);
    report_what_does_not_fit(reader, &relay);
    relay
}

fn read_routing(reader: &mut Reader, relay: &mut RelayConfig) {
    if let Some(template) = reader.text("relay.topic") {
        match template.parse::<TopicTemplate>() {
            Ok(template) => relay.topic = template,
            Err(error) => reader.problem(
                "relay.topic",
                &format!("is refused: {error}"),
                "give a topic such as \"{aggregate_type}.events\"",
            ),
        }
    }
    reader.read("relay.source", "a URI reference such as \"/shop\"", &mut relay.source, |text| {
        Some(Arc::from(text))
    });
}

fn read_retry(reader: &mut Reader, relay: &mut RelayConfig) {
    let retry = &mut relay.retry;
    reader.number("relay.retry.attempts_max", COUNT, &mut retry.attempts_max);
    let age = format!("\"none\" or {DURATION}");
    reader.read("relay.retry.age_max", &age, &mut retry.age_max, |text| {
        if text == "none" { Some(None) } else { humantime::parse_duration(text).ok().map(Some) }
    });
    reader.duration("relay.retry.delay_min", &mut retry.delay_min);
    reader.duration("relay.retry.delay_max", &mut retry.delay_max);
    let words = [("store", GiveUp::Store), ("discard", GiveUp::Discard), ("park", GiveUp::Park)];
    reader.word("relay.retry.give_up", &words, &mut retry.give_up);
}

fn read_retention(reader: &mut Reader, relay: &mut RelayConfig) {
    let retention = &mut relay.retention;
    let words = [("keep", WhenSent::Keep), ("delete", WhenSent::Delete), ("archive", WhenSent::Archive)];
    reader.word("relay.retention.when_sent", &words, &mut retention.when_sent);
    reader.read("relay.retention.sent", REMOVAL, &mut retention.sent, parse_removal);
    reader.read("relay.retention.failed", REMOVAL, &mut retention.failed, parse_removal);
    reader.duration("relay.retention.interval", &mut retention.interval);
    reader.number("relay.retention.batch_max", COUNT, &mut retention.batch_max);
}

fn parse_removal(text: &str) -> Option<Option<(Duration, Disposal)>> {
    if text == "never" {
        return Some(None);
    }
    let (disposal, age) = text.split_once(" after ")?;
    let disposal = match disposal {
        "delete" => Disposal::Delete,
        "archive" => Disposal::Archive,
        _ => return None,
    };
    Some(Some((humantime::parse_duration(age).ok()?, disposal)))
}

fn parse_range(text: &str) -> Option<(Duration, Duration)> {
    let (low, high) = text.split_once(" to ")?;
    Some((humantime::parse_duration(low).ok()?, humantime::parse_duration(high).ok()?))
}

/// Each problem that the relay itself finds with its settings, with where those that it names came from.
fn report_what_does_not_fit(reader: &mut Reader, relay: &RelayConfig) {
    let Err(error) = relay.validate() else { return };
    for problem in error.problems().iter().map(ToString::to_string) {
        let keys = keys_named_in(reader, &problem);
        // A default that stands in for a value that was refused is not the user's.
        if keys.iter().any(|key| reader.is_refused(key)) {
            continue;
        }
        let given: Vec<String> = keys.iter().map(|key| format!("{key}{}", reader.origin(key))).collect();
        let variables: Vec<String> = keys.iter().map(|key| variable(key)).collect();
        reader.finding(Finding::error(
            "settings",
            format!("the relay's settings do not work: {problem} [{}]", given.join(", ")),
            format!("change one of them, by the file or by {}", variables.join(" or ")),
        ));
    }
}

/// The keys among those that were given that a problem is about.
fn keys_named_in(reader: &Reader, problem: &str) -> Vec<String> {
    let words = problem.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
    // The bounds of a pair are named by number.
    let words = words.map(|word| word.trim_end_matches(".0").trim_end_matches(".1"));
    let mut keys: Vec<String> = Vec::new();
    for key in words.map(|word| format!("relay.{word}")) {
        if reader.is_given(&key) && !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}
