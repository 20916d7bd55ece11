//! `outbox list` and `outbox inspect`: events as an operator sees them.

use std::{fmt::Write, str::FromStr};

use chrono::{DateTime, SecondsFormat, Utc};
use outbox_core::{
    EventFilter, OutboxAdmin,
    store::{EventRecord, Sequence},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    filter::status_word,
    operate::{self, HOLDS_READ_MAX},
    output::{self, Failure},
    table::{Table, printable, shortened},
};

/// How much of an error fits into a row.
const ERROR_CHARS_MAX: usize = 60;

/// An event by its id or its sequence.
#[derive(Debug, Clone)]
pub(crate) enum EventName {
    Id(Uuid),
    Sequence(Sequence),
}

impl FromStr for EventName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sequence = text.parse().ok().filter(|sequence| *sequence > 0).map(Self::Sequence);
        let id = || Uuid::parse_str(text).ok().map(Self::Id);
        sequence.or_else(id).ok_or("give the UUID of an event, or its sequence")
    }
}

pub(crate) async fn list(
    admin: &dyn OutboxAdmin,
    filter: &EventFilter,
    limit: u32,
    json: bool,
) -> Result<(), Failure> {
    let records = admin.list(filter, limit).await?;
    if json {
        return output::print_json(&records.iter().map(to_json).collect::<Vec<_>>());
    }
    if records.is_empty() {
        return output::print("no events\n");
    }
    let mut table =
        Table::new(&["SEQUENCE", "ID", "STATUS", "AGGREGATE", "EVENT", "ATTEMPTS", "CREATED", "ERROR"]);
    for record in &records {
        let cause = record.cause.map(|cause| format!("{}: ", cause.as_str())).unwrap_or_default();
        let error = record.last_error.as_deref().unwrap_or_default();
        table.row(&[
            record.sequence.to_string(),
            record.id.map(|id| id.to_string()).unwrap_or_default(),
            status_word(record.status).to_owned(),
            record.key.to_string(),
            record.event_type.clone(),
            record.attempts.to_string(),
            time(record.created_at),
            shortened(&format!("{cause}{error}"), ERROR_CHARS_MAX),
        ]);
    }
    let mut text = table.render();
    if let Some(last) = records.last().filter(|_| records.len() >= limit as usize) {
        let _ = writeln!(text, "there may be more: --after {}", last.sequence);
    }
    output::print(&text)
}

pub(crate) async fn inspect(admin: &dyn OutboxAdmin, name: &EventName, json: bool) -> Result<(), Failure> {
    let filter = match name {
        EventName::Id(id) => EventFilter::id(*id),
        EventName::Sequence(sequence) => EventFilter::default().after(sequence - 1),
    };
    let is_it = |record: &EventRecord| match name {
        EventName::Id(_) => true,
        EventName::Sequence(sequence) => record.sequence == *sequence,
    };
    for archived in [false, true] {
        let mut filter = filter.clone();
        filter.archived = archived;
        let Some(record) = admin.list(&filter, 1).await?.pop().filter(is_it) else { continue };
        let holds = if archived { Vec::new() } else { admin.holds(HOLDS_READ_MAX).await? };
        let hold = holds.iter().find(|hold| hold.key == record.key).map(operate::Hold::new);
        if json {
            let mut value = to_json(&record);
            value["archived"] = archived.into();
            value["partition"] = record.partition.into();
            value["hold"] = json!(hold);
            match record.payload.as_deref().map(|payload| std::str::from_utf8(payload).map_err(|_| payload)) {
                None => value["payload"] = Value::Null,
                Some(Ok(text)) => value["payload"] = text.into(),
                Some(Err(bytes)) => value["payload_hex"] = hex(bytes).into(),
            }
            return output::print_json(&value);
        }
        return output::print(&shown(&record, archived, hold.as_ref()));
    }
    Err(Failure::Runtime("there is no such event, neither in the table nor in the archive".to_owned()))
}

fn shown(record: &EventRecord, archived: bool, hold: Option<&operate::Hold>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{name:<13} {}", printable(value));
    };
    line("id", &record.id.map_or_else(|| "cannot be read".to_owned(), |id| id.to_string()));
    line("sequence", &record.sequence.to_string());
    let cause = record.cause.map(|cause| format!(", {}", cause.as_str())).unwrap_or_default();
    let place = if archived { ", archived" } else { "" };
    line("status", &format!("{}{cause}{place}", status_word(record.status)));
    line("aggregate", &record.key.to_string());
    line("partition", &record.partition.to_string());
    line("event type", &record.event_type);
    line("version", &record.version.to_string());
    line("topic", record.topic.as_deref().unwrap_or("as the relay says"));
    line("created", &time(record.created_at));
    record.available_at.iter().for_each(|at| line("available", &time(*at)));
    record.sent_at.iter().for_each(|at| line("sent", &time(*at)));
    record.failed_at.iter().for_each(|at| line("failed", &time(*at)));
    line("attempts", &record.attempts.to_string());
    record.last_error.iter().for_each(|error| line("last error", error));
    hold.iter().for_each(|hold| line("held", &hold.line()));
    line("content type", record.content_type.as_deref().unwrap_or(outbox_core::store::CONTENT_TYPE_DEFAULT));
    for (name, value) in &record.headers {
        line("header", &format!("{name}: {value}"));
    }
    let Some(payload) = record.payload.as_deref() else {
        line("payload", "none: a tombstone");
        return out;
    };
    line("payload", &format!("{} bytes", payload.len()));
    match std::str::from_utf8(payload) {
        // A payload may well have several lines.
        Ok(text) => text.lines().for_each(|text| _ = writeln!(out, "{}", printable(text))),
        Err(_) => _ = writeln!(out, "{}", hex(payload)),
    }
    out
}

fn to_json(record: &EventRecord) -> Value {
    let time = |at: Option<DateTime<Utc>>| at.map(time);
    let headers: Map<String, Value> =
        record.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    json!({
        "sequence": record.sequence,
        "id": record.id.map(|id| id.to_string()),
        "status": status_word(record.status),
        "cause": record.cause.map(|cause| cause.as_str()),
        "aggregate_type": record.key.aggregate_type(),
        "aggregate_id": record.key.aggregate_id(),
        "event_type": record.event_type,
        "version": record.version,
        "topic": record.topic,
        "content_type": record.content_type,
        "headers": headers,
        "created_at": time(Some(record.created_at)),
        "available_at": time(record.available_at),
        "sent_at": time(record.sent_at),
        "failed_at": time(record.failed_at),
        "attempts": record.attempts,
        "last_error": record.last_error,
        "payload_bytes": record.payload.as_ref().map(|payload| payload.len()),
    })
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
