//! The relay's settings: [`RelayConfig`], validated as a whole before anything starts.

use std::{sync::Arc, time::Duration};

use crate::{ConfigError, Disposal, RetryPolicy, TopicTemplate, WhenSent, settings::Problem, with::with};

/// What happens to rows in a final state, in time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// What the settle itself does with a sent row. Default: it stays.
    pub when_sent: WhenSent,
    /// Sent rows that stayed are removed at this age. Default: deleted after 3 days.
    pub sent: Option<(Duration, Disposal)>,
    /// Failed rows are removed at this age. Default: never, they await investigation.
    pub failed: Option<(Duration, Disposal)>,
    /// How often to look. Default 10 s.
    pub interval: Duration,
    /// Rows removed in one transaction. Default 1,000.
    pub batch_max: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            when_sent: WhenSent::Keep,
            sent: Some((Duration::from_secs(3 * 24 * 3600), Disposal::Delete)),
            failed: None,
            interval: Duration::from_secs(10),
            batch_max: 1_000,
        }
    }
}

with!(Retention {
    with_when_sent when_sent: WhenSent,
    with_sent sent: Option<(Duration, Disposal)>,
    with_failed failed: Option<(Duration, Disposal)>,
    with_interval interval: Duration,
    with_batch_max batch_max: u32,
});

/// What becomes of an event whose content type is JSON (the default one, or one that ends in `+json`) and
/// whose payload is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum InvalidJson {
    /// It is sent as it is: the payload is the writer's, and is not looked at.
    #[default]
    Send,
    /// It fails as undecodable. Every such payload is read once more than it would be, at about a gigabyte a
    /// second and to any depth.
    Refuse,
}

/// The settings of a relay. Every default suits a service of ordinary size; [`validate`](Self::validate)
/// refuses what does not fit together, all of it at once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Where a message goes. Default `{aggregate_type}`.
    pub topic: TopicTemplate,
    /// The CloudEvents `source` of every message. Default `/outbox`.
    pub source: Arc<str>,
    /// How long a relay that has died keeps its partitions. Default 15 s.
    pub lease_ttl: Duration,
    /// How often the lease is renewed. Default 3 s.
    pub beat_interval: Duration,
    /// How often the other relays are looked at: how soon a second relay takes over after a clean stop.
    /// Default 250 ms.
    pub membership_interval: Duration,
    /// How long a publish may take before its outcome counts as unknown. Default 5 s.
    pub publish_timeout: Duration,
    /// How much of the lease must remain beyond the publish time-out when a publish starts. Default 1 s.
    pub lease_margin: Duration,
    /// Events that are published and not yet settled: the most that a crash can duplicate. Default 4,096.
    pub in_flight_max: usize,
    /// Events that are with the broker and not yet acknowledged. Default 2,000.
    pub publish_max: usize,
    /// Events in memory, in flight or waiting. Default 8,192.
    pub buffer_events_max: usize,
    /// Bytes in memory of events that wait or are in flight. Default 16 MiB.
    pub buffer_bytes_max: usize,
    /// Events read at once. Default 2,000.
    pub fetch_events_max: usize,
    /// Outcomes recorded at once: as many as [`publish_max`](Self::publish_max), so that what was in flight
    /// together is recorded together. Default 2,000. A store may ask for fewer
    /// ([`StoreCapabilities::settle_events_max`](crate::store::StoreCapabilities::settle_events_max)), and
    /// then has fewer.
    pub settle_events_max: usize,
    /// The pause between two reads of a table that had something new within the last half second. Default 3
    /// ms.
    pub poll_min: Duration,
    /// The pause between two reads of a table that is idle. Default 100 ms.
    pub poll_max: Duration,
    /// When failed events are tried again, and when they are given up.
    pub retry: RetryPolicy,
    /// What happens to rows in a final state.
    pub retention: Retention,
    /// How long events of a paused topic are held before the relay looks again. Resuming the topic ends the
    /// wait at once. Default 30 s.
    pub topic_recheck: Duration,
    /// The bounds of the pauses after which an unavailable store or broker is tried again. Default 100 ms to
    /// 5 s.
    pub unavailable_delay: (Duration, Duration),
    /// How long a shutdown waits for what is in flight. Default 10 s.
    pub shutdown_timeout: Duration,
    /// What becomes of an event that says it is JSON and is not. Default [`InvalidJson::Send`].
    pub invalid_json: InvalidJson,
    /// The seed of the relay's random numbers (jitter, the order of claims); `None` draws one.
    pub seed: Option<u64>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            topic: TopicTemplate::default(),
            source: Arc::from("/outbox"),
            lease_ttl: Duration::from_secs(15),
            beat_interval: Duration::from_secs(3),
            membership_interval: Duration::from_millis(250),
            publish_timeout: Duration::from_secs(5),
            lease_margin: Duration::from_secs(1),
            in_flight_max: 4_096,
            publish_max: 2_000,
            buffer_events_max: 8_192,
            buffer_bytes_max: 16 * 1024 * 1024,
            fetch_events_max: 2_000,
            settle_events_max: 2_000,
            poll_min: Duration::from_millis(3),
            poll_max: Duration::from_millis(100),
            retry: RetryPolicy::default(),
            retention: Retention::default(),
            topic_recheck: Duration::from_secs(30),
            unavailable_delay: (Duration::from_millis(100), Duration::from_secs(5)),
            shutdown_timeout: Duration::from_secs(10),
            invalid_json: InvalidJson::Send,
            seed: None,
        }
    }
}

with!(RelayConfig {
    with_topic topic: TopicTemplate,
    with_source source: Arc<str>,
    with_lease_ttl lease_ttl: Duration,
    with_beat_interval beat_interval: Duration,
    with_membership_interval membership_interval: Duration,
    with_publish_timeout publish_timeout: Duration,
    with_lease_margin lease_margin: Duration,
    with_in_flight_max in_flight_max: usize,
    with_publish_max publish_max: usize,
    with_buffer_events_max buffer_events_max: usize,
    with_buffer_bytes_max buffer_bytes_max: usize,
    with_fetch_events_max fetch_events_max: usize,
    with_settle_events_max settle_events_max: usize,
    with_poll_min poll_min: Duration,
    with_poll_max poll_max: Duration,
    with_retry retry: RetryPolicy,
    with_retention retention: Retention,
    with_topic_recheck topic_recheck: Duration,
    with_unavailable_delay unavailable_delay: (Duration, Duration),
    with_shutdown_timeout shutdown_timeout: Duration,
    with_invalid_json invalid_json: InvalidJson,
    with_seed seed: Option<u64>,
});

impl RelayConfig {
    /// Checks every setting by itself and against the others.
    ///
    /// # Errors
    /// Every problem at once, by the keys of [`SETTINGS`](Self::SETTINGS).
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        self.check_each(&mut problems);
        self.check_together(&mut problems);
        ConfigError::check(problems)
    }

    fn check_each(&self, problems: &mut Vec<Problem>) {
        let times = [
            ("lease_ttl", self.lease_ttl),
            ("beat_interval", self.beat_interval),
            ("membership_interval", self.membership_interval),
            ("publish_timeout", self.publish_timeout),
            ("lease_margin", self.lease_margin),
            ("poll_min", self.poll_min),
            ("poll_max", self.poll_max),
            ("retention.interval", self.retention.interval),
            ("retry.delay_min", self.retry.delay_min),
            ("topic_recheck", self.topic_recheck),
            ("shutdown_timeout", self.shutdown_timeout),
        ];
        let sizes = [
            ("in_flight_max", self.in_flight_max),
            ("publish_max", self.publish_max),
            ("buffer_events_max", self.buffer_events_max),
            ("buffer_bytes_max", self.buffer_bytes_max),
            ("fetch_events_max", self.fetch_events_max),
            ("settle_events_max", self.settle_events_max),
            ("retention.batch_max", self.retention.batch_max as usize),
            ("retry.attempts_max", self.retry.attempts_max as usize),
        ];
        for setting in Self::SETTINGS {
            let of = |key: &str| key == setting.key;
            times
                .iter()
                .filter(|(key, _)| of(key))
                .for_each(|(_, time)| setting.check_duration(*time, problems));
            sizes
                .iter()
                .filter(|(key, _)| of(key))
                .for_each(|(_, size)| setting.check_integer(*size, problems));
        }
        if self.unavailable_delay.0.is_zero() {
            problems.push(Problem::new("unavailable_delay", "begins at zero", "begin at 1ms or more"));
        }
        if self.source.is_empty() || self.source.chars().any(char::is_whitespace) {
            let what = format!("is {:?}", self.source);
            problems.push(Problem::new("source", what, "give a URI reference, such as \"/shop\""));
        }
    }

    fn check_together(&self, problems: &mut Vec<Problem>) {
        let parts = [self.publish_timeout, self.lease_margin, self.beat_interval];
        let needed = parts.into_iter().fold(Duration::ZERO, Duration::saturating_add);
        if needed >= self.lease_ttl {
            let what = format!(
                "is {:?}, and publish_timeout + lease_margin + beat_interval are {:?} + {:?} + {:?} = {needed:?}, so that \
                 nothing could ever be published",
                self.lease_ttl, self.publish_timeout, self.lease_margin, self.beat_interval
            );
            let problem = Problem::new("lease_ttl", what, "raise it above their sum, or lower one of them");
            problems.push(problem.with_related(["publish_timeout", "lease_margin", "beat_interval"]));
        }
        let ordered = [
            ("poll_min", self.poll_min, "poll_max", self.poll_max),
            ("retry.delay_min", self.retry.delay_min, "retry.delay_max", self.retry.delay_max),
        ];
        for (low_name, low, high_name, high) in ordered {
            if low > high {
                let what = format!("is {low:?}, above {high_name}, which is {high:?}");
                let remedy = format!("lower it, or raise {high_name}");
                problems.push(Problem::new(low_name, what, remedy).with_related([high_name]));
            }
        }
        let (low, high) = self.unavailable_delay;
        if low > high {
            let what = format!("begins at {low:?} and ends at {high:?}");
            problems.push(Problem::new("unavailable_delay", what, "give the shorter time first"));
        }
        if self.in_flight_max > self.buffer_events_max {
            let (low, high) = (self.in_flight_max, self.buffer_events_max);
            let what = format!("is {low}, above buffer_events_max, which is {high}");
            let problem = Problem::new("in_flight_max", what, "lower it, or raise buffer_events_max");
            problems.push(problem.with_related(["buffer_events_max"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        RelayConfig::default().validate().unwrap();
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let config = RelayConfig::default()
            .with_lease_ttl(Duration::from_secs(2))
            .with_poll_min(Duration::from_secs(1))
            .with_in_flight_max(0)
            .with_source(Arc::from(""));
        let error = config.validate().unwrap_err();
        let mut named: Vec<&str> = error.problems().iter().map(|problem| &*problem.setting).collect();
        named.sort_unstable();
        assert_eq!(named, ["in_flight_max", "lease_ttl", "poll_min", "source"], "{error}");
    }
}
