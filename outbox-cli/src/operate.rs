//! What an operator does to events, aggregates and topics: `outbox holds`, `requeue`, `discard`, `pause` and
//! `resume`.

use std::time::Duration;

use clap::Args;
use outbox_core::{AggregateKey, Finding, OutboxAdmin, store::HoldRecord};
use serde::Serialize;

use crate::{
    filter::Conditions,
    output::{self, Failure},
    table::Table,
};

/// Holds that are looked at where one of them is wanted.
pub(crate) const HOLDS_READ_MAX: u32 = 1_000;

/// An aggregate or a topic.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The aggregate, by its type and its id
    #[arg(num_args = 2, value_names = ["TYPE", "ID"], required_unless_present = "topic", conflicts_with = "topic")]
    aggregate: Vec<String>,

    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

impl Target {
    fn key(&self) -> AggregateKey {
        let name = |index: usize| self.aggregate.get(index).map_or("", String::as_str);
        AggregateKey::new(name(0), name(1))
    }
}

pub(crate) async fn holds(admin: &dyn OutboxAdmin, limit: u32, json: bool) -> Result<(), Failure> {
    let records = admin.holds(limit).await?;
    let holds: Vec<Hold> = records.iter().map(Hold::new).collect();
    if json {
        return output::print_json(&holds);
    }
    if holds.is_empty() {
        return output::print("nothing is held\n");
    }
    let mut table = Table::new(&["AGGREGATE", "REASON", "EVENT", "UNTIL"]);
    for (hold, record) in holds.iter().zip(&records) {
        let event = hold.sequence.map(|sequence| sequence.to_string()).unwrap_or_default();
        table.row(&[record.key.to_string(), hold.reason.to_owned(), event, hold.due()]);
    }
    output::print(&table.render())
}

pub(crate) async fn requeue(admin: &dyn OutboxAdmin, conditions: &Conditions) -> Result<(), Failure> {
    refuse_all(conditions, "requeue")?;
    let count = admin.requeue(&conditions.filter()).await?;
    output::print(&format!("{} requeued\n", events(count)))
}

pub(crate) async fn discard(admin: &dyn OutboxAdmin, conditions: &Conditions) -> Result<(), Failure> {
    refuse_all(conditions, "discard")?;
    let count = admin.discard(&conditions.filter()).await?;
    output::print(&format!("{} discarded\n", events(count)))
}

/// A condition that was forgotten must not mean everything.
fn refuse_all(conditions: &Conditions, what: &str) -> Result<(), Failure> {
    if !conditions.is_empty() {
        return Ok(());
    }
    let problem = format!("{what} without a condition would mean every event");
    let remedy = format!("name events by id or by conditions; all of them are {what} --before 0s");
    Err(vec![Finding::error("no-condition", problem, remedy)].into())
}

pub(crate) async fn pause(admin: &dyn OutboxAdmin, target: &Target) -> Result<(), Failure> {
    match &target.topic {
        Some(topic) => {
            admin.pause_topic(topic).await?;
            output::print(&format!("topic {topic} is paused\n"))
        }
        None => {
            admin.pause(&target.key()).await?;
            output::print(&format!("{} is paused\n", target.key()))
        }
    }
}

/// Relays look for paused topics once every `look_around`.
pub(crate) async fn resume(
    admin: &dyn OutboxAdmin,
    target: &Target,
    look_around: Duration,
) -> Result<(), Failure> {
    let (name, was_held) = match &target.topic {
        Some(topic) => {
            let was_paused = admin.resume_topic(topic).await?;
            if was_paused {
                // A relay that has not looked since then reads an event whose hold is due and holds it again,
                // for as long as a pause is not asked after. Once all have looked, the second call ends those
                // holds.
                tokio::time::sleep(look_around * 3).await;
                admin.resume_topic(topic).await?;
            }
            (format!("topic {topic}"), was_paused)
        }
        None => (target.key().to_string(), admin.resume(&target.key()).await?),
    };
    let text = if was_held { "goes on" } else { "was not held" };
    output::print(&format!("{name} {text}\n"))
}

/// `1 event`, `2 events`.
pub(crate) fn events(count: u64) -> String {
    if count == 1 { "1 event".to_owned() } else { format!("{count} events") }
}

/// A hold. Its field names are those of the JSON, and stay.
#[derive(Debug, Serialize)]
pub(crate) struct Hold {
    aggregate_type: String,
    aggregate_id: String,
    reason: &'static str,
    paused: bool,
    /// The event it waits behind.
    sequence: Option<i64>,
    /// Null without end.
    due_in_seconds: Option<f64>,
}

impl Hold {
    pub(crate) fn new(record: &HoldRecord) -> Self {
        Self {
            aggregate_type: record.key.aggregate_type().to_owned(),
            aggregate_id: record.key.aggregate_id().to_owned(),
            reason: reason(record),
            paused: record.paused,
            sequence: record.sequence,
            due_in_seconds: record.due_in.map(|due| due.as_secs_f64()),
        }
    }

    /// Of which aggregate it is, why, and until when.
    pub(crate) fn line(&self) -> String {
        let behind = self.sequence.map(|sequence| format!(" behind event {sequence}")).unwrap_or_default();
        format!("{}/{} {}{behind}, {}", self.aggregate_type, self.aggregate_id, self.reason, self.due())
    }

    fn due(&self) -> String {
        match self.due_in_seconds {
            None => "until an operator acts".to_owned(),
            Some(seconds) if seconds <= 0.0 => "due now".to_owned(),
            Some(seconds) => format!("due in {}", whole_seconds(seconds)),
        }
    }
}

/// A pause lies over whatever else the aggregate is held for.
pub(crate) fn reason(hold: &HoldRecord) -> &'static str {
    if hold.paused { outbox_core::store::HoldReason::Paused.as_str() } else { hold.reason.as_str() }
}

pub(crate) fn whole_seconds(seconds: f64) -> humantime::FormattedDuration {
    // Rounded up, so that something that is due soon is not shown as due in nothing.
    humantime::format_duration(Duration::from_secs(seconds.max(0.0).ceil() as u64))
}
