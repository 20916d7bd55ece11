//! The relay's settings as data, for programs that read them from somewhere.

use std::{sync::Arc, time::Duration};

use super::config::{InvalidJson, RelayConfig};
use crate::{
    ConfigError, Disposal, Publisher, WhenSent,
    retry::GiveUp,
    settings::{Kind, Problem, Setting, Values, duration},
};

/// What a setting accepts that is a time after which rows are removed.
const REMOVAL: Kind = Kind::Form {
    accepted: "\"never\", or \"delete after\" or \"archive after\" with a time, such as \"delete after 3d\"",
    is_valid: |text| removal(text).is_some(),
};

const RANGE: Kind =
    Kind::Form { accepted: "two times, such as \"100ms to 5s\"", is_valid: |text| range(text).is_some() };

const SIZE: Kind = Kind::Integer { min: 1, max: usize::MAX as u64 };

const EVENTS: &str = "events";

impl RelayConfig {
    /// Every setting of a relay, with its default as a file would have it.
    pub const SETTINGS: &'static [Setting] = &[
        Setting::new(
            "topic",
            Kind::Text,
            "Where a message goes, unless its event names a topic: text with {aggregate_type}, \
                 {aggregate_id}, {event_type}, {version} or {header:NAME}.",
        )
        .default("{aggregate_type}"),
        Setting::new("source", Kind::Text, "The CloudEvents `source` of every message: a URI reference.")
            .default("/outbox"),
        Setting::new("lease_ttl", Kind::TIME, "How long a relay that has died keeps its partitions.")
            .default("15s"),
        Setting::new("beat_interval", Kind::TIME, "How often the lease is renewed.").default("3s"),
        Setting::new(
            "membership_interval",
            Kind::TIME,
            "How often the other relays are looked at: how soon another one takes over after a \
                 clean stop.",
        )
        .default("250ms"),
        Setting::new(
            "publish_timeout",
            Kind::TIME,
            "How long a publish may take before its outcome counts as unknown, and the message \
                 is sent again.",
        )
        .default("5s"),
        Setting::new(
            "lease_margin",
            Kind::TIME_OR_ZERO,
            "How much of the lease must remain beyond publish_timeout when a publish starts.",
        )
        .default("1s"),
        Setting::new(
            "in_flight_max",
            SIZE,
            "Events that are published and not yet recorded as sent: the most that a crash can \
                 duplicate.",
        )
        .default("4096")
        .unit(EVENTS),
        Setting::new("publish_max", SIZE, "Events that are with the broker and not yet acknowledged.")
            .default("2000")
            .unit(EVENTS),
        Setting::new("buffer_events_max", SIZE, "Events in memory, in flight or waiting.")
            .default("8192")
            .unit(EVENTS),
        Setting::new("buffer_bytes_max", SIZE, "Bytes of events in memory.")
            .default("16777216")
            .unit("bytes"),
        Setting::new("fetch_events_max", SIZE, "Events read at once.").default("2000").unit(EVENTS),
        Setting::new("settle_events_max", SIZE, "Outcomes recorded at once.").default("2000").unit(EVENTS),
        Setting::new(
            "poll_min",
            Kind::TIME,
            "The pause between two reads of a table that had something new within the last half \
                 second.",
        )
        .default("3ms"),
        Setting::new("poll_max", Kind::TIME, "The pause between two reads of a table that is idle.")
            .default("100ms"),
        Setting::new(
            "topic_recheck",
            Kind::TIME,
            "How long events of a paused topic are held before the relay looks again. Resuming \
                 the topic ends the wait at once.",
        )
        .default("30s"),
        Setting::new(
            "unavailable_delay",
            RANGE,
            "The bounds of the pauses after which an unavailable store or broker is tried \
                 again.",
        )
        .default("100ms to 5s"),
        Setting::new(
            "shutdown_timeout",
            Kind::TIME_OR_ZERO,
            "How long a shutdown waits for what is in flight.",
        )
        .default("10s"),
        Setting::new(
            "invalid_json",
            Kind::Choice(&["send", "refuse"]),
            "What becomes of an event whose content type is JSON and whose payload is not: \"send\" sends it \
                 as it is, \"refuse\" keeps it as failed, with the cause undecodable.",
        )
        .default("send"),
        Setting::new("seed", Kind::IntegerOr("random"), "The seed of the relay's random numbers.")
            .default("random"),
        Setting::new("retry.attempts_max", Kind::COUNT, "Attempts in all, the first included.")
            .default("10")
            .unit("attempts"),
        Setting::new(
            "retry.age_max",
            Kind::DurationOr("none"),
            "An event older than this is not tried again.",
        )
        .default("none"),
        Setting::new(
            "retry.delay_min",
            Kind::TIME,
            "The bound of the first delay, which doubles with each attempt; each delay is drawn \
                 between nothing and its bound.",
        )
        .default("500ms"),
        Setting::new("retry.delay_max", Kind::TIME, "The bound that no delay exceeds.").default("1m"),
        Setting::new(
            "retry.give_up",
            Kind::Choice(&["store", "discard", "park"]),
            "What happens after the last attempt: \"store\" keeps the event as failed; \
                 \"discard\" keeps it as failed with the cause discarded; \"park\" keeps it as failed \
                 and lets the aggregate's later events wait for an operator.",
        )
        .default("store"),
        Setting::new(
            "retention.when_sent",
            Kind::Choice(&["keep", "delete", "archive"]),
            "What becomes of a row at once when it is sent.",
        )
        .default("keep"),
        Setting::new("retention.sent", REMOVAL, "When sent rows that were kept are removed.")
            .default("delete after 3days"),
        Setting::new("retention.failed", REMOVAL, "When failed rows are removed.").default("never"),
        Setting::new("retention.interval", Kind::TIME, "How often to look for rows to remove.")
            .default("10s"),
        Setting::new("retention.batch_max", Kind::COUNT, "Rows removed in one transaction.")
            .default("1000")
            .unit("rows"),
    ];

    /// Takes over what was given, and validates the whole. What cannot be taken stays as it was.
    ///
    /// # Errors
    /// Every problem at once, by the keys of [`SETTINGS`](Self::SETTINGS).
    pub fn apply(&mut self, values: &Values) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        match values.text("topic").map(str::parse) {
            None => {}
            Some(Ok(topic)) => self.topic = topic,
            Some(Err(error)) => problems.push(Problem::new(
                "topic",
                format!("is refused: {error}"),
                "give a topic such as \"{aggregate_type}.events\"",
            )),
        }
        if let Some(source) = values.text("source") {
            self.source = Arc::from(source);
        }
        self.apply_times(values);
        self.apply_sizes(values);
        self.apply_ends(values);
        problems.extend(self.validate().err().map(ConfigError::into_problems).unwrap_or_default());
        ConfigError::check(problems)
    }

    fn apply_times(&mut self, values: &Values) {
        let times = [
            ("lease_ttl", &mut self.lease_ttl),
            ("beat_interval", &mut self.beat_interval),
            ("membership_interval", &mut self.membership_interval),
            ("publish_timeout", &mut self.publish_timeout),
            ("lease_margin", &mut self.lease_margin),
            ("poll_min", &mut self.poll_min),
            ("poll_max", &mut self.poll_max),
            ("topic_recheck", &mut self.topic_recheck),
            ("shutdown_timeout", &mut self.shutdown_timeout),
            ("retry.delay_min", &mut self.retry.delay_min),
            ("retry.delay_max", &mut self.retry.delay_max),
            ("retention.interval", &mut self.retention.interval),
        ];
        for (key, time) in times {
            set(time, values.duration(key));
        }
        set(&mut self.unavailable_delay, values.text("unavailable_delay").and_then(range));
    }

    fn apply_sizes(&mut self, values: &Values) {
        let sizes = [
            ("in_flight_max", &mut self.in_flight_max),
            ("publish_max", &mut self.publish_max),
            ("buffer_events_max", &mut self.buffer_events_max),
            ("buffer_bytes_max", &mut self.buffer_bytes_max),
            ("fetch_events_max", &mut self.fetch_events_max),
            ("settle_events_max", &mut self.settle_events_max),
        ];
        for (key, size) in sizes {
            set(size, values.integer(key));
        }
        set(&mut self.retry.attempts_max, values.integer("retry.attempts_max"));
        set(&mut self.retention.batch_max, values.integer("retention.batch_max"));
        // The word, "random", is the absence of a seed.
        match values.text("seed") {
            Some(_) => self.seed = None,
            None => self.seed = values.integer("seed").or(self.seed),
        }
    }

    /// What becomes of events in the end.
    fn apply_ends(&mut self, values: &Values) {
        match values.text("retry.age_max") {
            Some(_) => self.retry.age_max = None,
            None => self.retry.age_max = values.duration("retry.age_max").or(self.retry.age_max),
        }
        let give_up = |word| match word {
            "discard" => GiveUp::Discard,
            "park" => GiveUp::Park,
            _ => GiveUp::Store,
        };
        let when_sent = |word| match word {
            "delete" => WhenSent::Delete,
            "archive" => WhenSent::Archive,
            _ => WhenSent::Keep,
        };
        let invalid_json = |word| match word {
            "refuse" => InvalidJson::Refuse,
            _ => InvalidJson::Send,
        };
        set(&mut self.invalid_json, values.text("invalid_json").map(invalid_json));
        set(&mut self.retry.give_up, values.text("retry.give_up").map(give_up));
        set(&mut self.retention.when_sent, values.text("retention.when_sent").map(when_sent));
        set(&mut self.retention.sent, values.text("retention.sent").and_then(removal));
        set(&mut self.retention.failed, values.text("retention.failed").and_then(removal));
    }
}

fn set<T>(into: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *into = value;
    }
}

fn removal(text: &str) -> Option<Option<(Duration, Disposal)>> {
    if text == "never" {
        return Some(None);
    }
    let (disposal, age) = text.split_once(" after ")?;
    let disposal = match disposal {
        "delete" => Disposal::Delete,
        "archive" => Disposal::Archive,
        _ => return None,
    };
    Some(Some((duration(age)?, disposal)))
}

fn range(text: &str) -> Option<(Duration, Duration)> {
    let (low, high) = text.split_once(" to ")?;
    Some((duration(low)?, duration(high)?))
}

/// A publisher that gives a message up later than the caller has unknown outcomes where it need have none.
pub(crate) fn above_delivery(publish_timeout: Duration, publisher: &dyn Publisher) -> Option<Problem> {
    let delivery = publisher.capabilities().delivery_timeout?;
    (publish_timeout <= delivery).then(|| {
        let what = format!("is {publish_timeout:?}, and the publisher gives a message up after {delivery:?}");
        Problem::new("publish_timeout", what, "raise it, or lower the publisher's own time-out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Given, Value};

    fn defaults() -> Values {
        let mut values = Values::default();
        for setting in RelayConfig::SETTINGS {
            let value = setting.read(Given::Untyped(setting.default.unwrap())).unwrap();
            values.insert(setting.key, value.unwrap());
        }
        values
    }

    #[test]
    fn the_defaults_of_the_table_are_those_of_the_type() {
        // Every field differs from its default, so that each must be taken over.
        let mut config = RelayConfig { seed: Some(1), ..RelayConfig::default() };
        let second = Duration::from_secs(77);
        for key in RelayConfig::SETTINGS.iter().map(|setting| setting.key) {
            let mut other = Values::default();
            let value = match key {
                "topic" | "source" => Value::from("other"),
                "unavailable_delay" => Value::from("77s to 78s"),
                "retry.age_max" => Value::Duration(second),
                "invalid_json" => Value::from("refuse"),
                "retry.give_up" => Value::from("park"),
                "retention.when_sent" => Value::from("archive"),
                "retention.sent" => Value::from("never"),
                "retention.failed" => Value::from("delete after 1d"),
                _ if key.ends_with("_max") && !matches!(key, "poll_max" | "retry.delay_max") => {
                    Value::Integer(7)
                }
                "seed" => Value::Integer(7),
                _ => Value::Duration(second),
            };
            let before = format!("{config:?}");
            other.insert(key, value);
            // What does not fit together is another test's concern.
            let _ = config.apply(&other);
            assert_ne!(format!("{config:?}"), before, "{key} is not taken over");
        }
        config.apply(&defaults()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", RelayConfig::default()));
    }

    #[test]
    fn the_table_has_every_field() {
        let mut path = Vec::new();
        let mut fields = Vec::new();
        for line in format!("{:#?}", RelayConfig::default()).lines().skip(1) {
            let indent = (line.len() - line.trim_start().len()) / 4;
            let Some((name, value)) = line.trim().split_once(": ") else { continue };
            path.truncate(indent - 1);
            path.push(name.to_owned());
            if !value.ends_with("RetryPolicy {") && !value.ends_with("Retention {") {
                fields.push(path.join("."));
            }
        }
        fields.sort_unstable();
        let mut keys: Vec<_> = RelayConfig::SETTINGS.iter().map(|setting| setting.key).collect();
        keys.sort_unstable();
        assert_eq!(fields, keys);
    }

    #[test]
    fn what_cannot_be_taken_is_named_with_what_does_not_fit() {
        let mut values = Values::default();
        values.insert("topic", Value::from("{tenant}"));
        values.insert("publish_timeout", Value::Duration(Duration::from_secs(20)));
        let error = RelayConfig::default().apply(&values).unwrap_err();
        let [topic, lease] = error.problems() else { panic!("{error}") };
        assert_eq!((&*topic.setting, &*lease.setting), ("topic", "lease_ttl"));
        assert!(lease.related.contains(&"publish_timeout".into()), "{lease:?}");
    }
}
