//! `outbox status`: what an operator asks first.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use outbox_core::{HoldRecord, StoreStats};
use serde::Serialize;

use crate::{
    config::Config,
    output::{self, Failure},
    parts::Store,
};

/// Holds that are looked at. The count of all of them is exact in any case.
const HOLDS_READ_MAX: u32 = 1_000;

/// Holds that the table names, the soonest due first.
const HOLDS_SHOWN_MAX: usize = 10;

/// Everything that is shown. Its field names are those of the JSON, and stay.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    pending: u64,
    /// Null when nothing is pending.
    oldest_pending_age_seconds: Option<f64>,
    sent: u64,
    failed: u64,
    relays_live: u32,
    partitions: u16,
    partitions_owned: u32,
    holds: Holds,
    paused_topics: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Holds {
    total: u64,
    /// By reason, of those that are listed.
    by_reason: BTreeMap<&'static str, u64>,
    /// The soonest due first, at most 1,000.
    listed: Vec<Hold>,
}

#[derive(Debug, Serialize)]
struct Hold {
    aggregate_type: String,
    aggregate_id: String,
    reason: &'static str,
    paused: bool,
    /// The event it waits behind.
    sequence: Option<i64>,
    /// Null without end.
    due_in_seconds: Option<f64>,
}

/// Reads the numbers and prints them.
pub(crate) async fn run(config: Config, json: bool) -> Result<(), Failure> {
    let shown = config.store.shown();
    let (store, admin) = Store::open(config.store).await?.sides();
    let stats = store.stats().await?;
    let holds = admin.holds(HOLDS_READ_MAX).await?;
    let paused_topics = admin.paused_topics().await?;
    let report = Report::new(shown, store.capabilities().partitions, &stats, &holds, paused_topics);
    let text = if json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|error| Failure::Runtime(error.to_string()))?;
        format!("{text}\n")
    } else {
        report.table()
    };
    output::print(&text)
}

impl Report {
    fn new(
        store: String,
        partitions: u16,
        stats: &StoreStats,
        holds: &[HoldRecord],
        paused_topics: Vec<String>,
    ) -> Self {
        let mut by_reason = BTreeMap::new();
        for hold in holds {
            *by_reason.entry(reason(hold)).or_default() += 1;
        }
        Self {
            store,
            pending: stats.pending,
            oldest_pending_age_seconds: stats.oldest_pending_age.map(|age| age.as_secs_f64()),
            sent: stats.sent,
            failed: stats.failed,
            relays_live: stats.relays_live,
            partitions,
            partitions_owned: stats.partitions_owned,
            holds: Holds { total: stats.holds, by_reason, listed: holds.iter().map(Hold::new).collect() },
            paused_topics,
        }
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String does not fail.
            let _ = writeln!(out, "{name:<14} {value}");
        };
        let oldest = match self.oldest_pending_age_seconds {
            Some(age) => format!(", the oldest since {}", whole_seconds(age)),
            None => String::new(),
        };
        line("store", self.store.clone());
        line("pending", format!("{}{oldest}", self.pending));
        line("sent", self.sent.to_string());
        line("failed", self.failed.to_string());
        line("relays", self.relays_live.to_string());
        line("partitions", format!("{} of {} owned", self.partitions_owned, self.partitions));
        let reasons: Vec<String> =
            self.holds.by_reason.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
        line("held", format!("{}{reasons}", self.holds.total));
        for hold in self.holds.listed.iter().take(HOLDS_SHOWN_MAX) {
            line("", hold.line());
        }
        let more = self.holds.total.saturating_sub(HOLDS_SHOWN_MAX as u64);
        if more > 0 {
            line("", format!("and {more} more; --json lists up to {HOLDS_READ_MAX}"));
        }
        let topics =
            if self.paused_topics.is_empty() { "none".to_owned() } else { self.paused_topics.join(", ") };
        line("paused topics", topics);
        out
    }
}

impl Hold {
    fn new(record: &HoldRecord) -> Self {
        Self {
            aggregate_type: record.key.aggregate_type().to_owned(),
            aggregate_id: record.key.aggregate_id().to_owned(),
            reason: reason(record),
            paused: record.paused,
            sequence: record.sequence,
            due_in_seconds: record.due_in.map(|due| due.as_secs_f64()),
        }
    }

    fn line(&self) -> String {
        let behind = self.sequence.map(|sequence| format!(" behind event {sequence}")).unwrap_or_default();
        let due = match self.due_in_seconds {
            None => "until an operator acts".to_owned(),
            Some(seconds) if seconds <= 0.0 => "due now".to_owned(),
            Some(seconds) => format!("due in {}", whole_seconds(seconds)),
        };
        format!("{}/{} {}{behind}, {due}", self.aggregate_type, self.aggregate_id, self.reason)
    }
}

/// A pause lies over whatever else the aggregate is held for.
fn reason(hold: &HoldRecord) -> &'static str {
    if hold.paused { outbox_core::HoldReason::Paused.as_str() } else { hold.reason.as_str() }
}

fn whole_seconds(seconds: f64) -> humantime::FormattedDuration {
    // Rounded up, so that something that is due soon is not shown as due in nothing.
    humantime::format_duration(Duration::from_secs(seconds.max(0.0).ceil() as u64))
}
