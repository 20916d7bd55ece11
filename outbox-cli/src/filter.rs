//! Which events a command means.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use clap::Args;
use outbox_core::{
    EventFilter,
    store::{FailureCause, Status},
};
use uuid::Uuid;

/// Conditions that are joined by *and*.
#[derive(Debug, Clone, Args)]
pub(crate) struct Conditions {
    /// Only the events with these ids
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,

    /// Only failures of this cause: exhausted, permanent, undecodable, discarded or expired
    #[arg(long, value_name = "CAUSE", value_parser = parse_cause)]
    cause: Option<FailureCause>,

    /// Only events of aggregates of this type
    #[arg(long, value_name = "TYPE")]
    aggregate_type: Option<String>,

    /// Only events of aggregates with this id
    #[arg(long, value_name = "ID")]
    aggregate_id: Option<String>,

    /// Only events of this type
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,

    /// Only events written at this time or later: 2026-11-21T10:00:00Z, 2026-11-21, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<DateTime<Utc>>,

    /// Only events written before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<DateTime<Utc>>,
}

/// Which events are looked at, sent or failed, here or in the archive.
#[derive(Debug, Clone, Args)]
pub(crate) struct Chosen {
    /// Events of the archive instead of those of the table
    #[arg(long)]
    archived: bool,

    /// Only events of this status: pending, sent or failed
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Option<Status>,
}

impl Conditions {
    pub(crate) fn filter(&self) -> EventFilter {
        EventFilter {
            ids: self.ids.clone(),
            cause: self.cause,
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            event_type: self.event_type.clone(),
            created_from: self.from,
            created_before: self.before,
            ..EventFilter::default()
        }
    }

    /// Nothing was named, so that all events are meant.
    pub(crate) fn is_empty(&self) -> bool {
        self.filter() == EventFilter::default()
    }
}

impl Chosen {
    pub(crate) fn apply(&self, filter: EventFilter) -> EventFilter {
        EventFilter { archived: self.archived, status: self.status, ..filter }
    }
}

fn parse_cause(word: &str) -> Result<FailureCause, String> {
    let accepted = "give exhausted, permanent, undecodable, discarded or expired";
    FailureCause::parse(word).ok_or_else(|| accepted.to_owned())
}

fn parse_status(word: &str) -> Result<Status, String> {
    match word {
        "pending" => Ok(Status::Pending),
        "sent" => Ok(Status::Sent),
        "failed" => Ok(Status::Failed),
        _ => Err("give pending, sent or failed".to_owned()),
    }
}

/// The word of a status.
pub(crate) fn status_word(status: Status) -> &'static str {
    match status {
        Status::Pending => "pending",
        Status::Sent => "sent",
        Status::Failed => "failed",
    }
}

/// A time, a day, which begins at midnight UTC, or how long ago.
fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    let age = humantime::parse_duration(text).ok().and_then(|age| chrono::TimeDelta::from_std(age).ok());
    age.and_then(|age| Utc::now().checked_sub_signed(age)).ok_or_else(|| {
        "give a time such as 2026-11-21T10:00:00Z, a day such as 2026-11-21, or an age such as 2h".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_instant_a_day_or_an_age() {
        let time = |text: &str| parse_time(text).map(|time| time.to_rfc3339());
        assert_eq!(time("2026-11-21T10:00:00+02:00").as_deref(), Ok("2026-11-21T08:00:00+00:00"));
        assert_eq!(time("2026-11-21").as_deref(), Ok("2026-11-21T00:00:00+00:00"));
        let ago = Utc::now() - parse_time("2h 30m").unwrap();
        assert!((8_999..9_060).contains(&ago.num_seconds()), "{ago}");
        assert!(time("yesterday").is_err() && time("2026-13-01").is_err() && time("900000000y").is_err());
    }
}
