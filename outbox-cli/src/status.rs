//! `outbox status`: what an operator asks first.

use std::{collections::BTreeMap, fmt::Write};

use outbox_core::{
    StoreError, chain,
    settings::OpenedStore,
    store::{HoldRecord, StoreStats},
};
use serde::Serialize;

use crate::{
    config::{Config, OutboxConfig},
    operate::{HOLDS_READ_MAX, Hold, reason, whole_seconds},
    output::{self, Failure},
};

/// Holds that the table names, the soonest due first.
const HOLDS_SHOWN_MAX: usize = 10;

/// Everything that is shown. Its field names are those of the JSON, and stay.
#[derive(Debug, Serialize)]
struct Report {
    /// Absent where the configuration names no outboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    outbox: Option<String>,
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

/// Reads the numbers and prints them: those of one outbox as they are, those of several as an array.
pub(crate) async fn run(config: Config, json: bool) -> Result<(), Failure> {
    let several = config.outboxes.len() > 1;
    let (mut reports, mut problems) = (Vec::new(), Vec::new());
    for outbox in config.outboxes {
        let name = outbox.name.clone();
        match report(outbox).await {
            Ok(report) => reports.push(report),
            Err(error) => problems.push(match name {
                Some(name) => format!("outbox {name}: {}", chain(&error)),
                None => chain(&error).to_string(),
            }),
        }
    }
    if json && several {
        output::print_json(&reports)?;
    } else if json {
        reports.iter().try_for_each(output::print_json)?;
    } else {
        let tables: Vec<String> = reports.iter().map(Report::table).collect();
        output::print(&tables.join("\n"))?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Runtime(problems.join("; "))) }
}

async fn report(outbox: OutboxConfig) -> Result<Report, StoreError> {
    let shown = outbox.store.shown();
    let OpenedStore { store, admin, .. } = outbox.store.open().await?;
    let stats = store.stats().await?;
    let holds = admin.holds(HOLDS_READ_MAX).await?;
    let paused_topics = admin.paused_topics().await?;
    let partitions = store.capabilities().partitions;
    Ok(Report { outbox: outbox.name, ..Report::new(shown, partitions, &stats, &holds, paused_topics) })
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
            outbox: None,
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
        self.outbox.iter().for_each(|name| line("outbox", name.clone()));
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
