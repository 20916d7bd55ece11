//! The statements of the reader, each of constant text, and each with one right plan that the statements
//! themselves prescribe, since statistics of an empty or a stale table would mislead the planner.

use std::sync::Arc;

use outbox_core::store::FULL_MAX;

use super::decode::columns;
use crate::{
    codec::{NOW_MICROS, micros_of, rows, time_of},
    config::Tables,
};

#[derive(Debug, Clone)]
pub(crate) struct Statements {
    /// The server's clock, and whether there are holds that want a look.
    pub(crate) probe: Arc<str>,
    /// Pending and due rows of aggregates without a hold.
    pub(crate) scan: Arc<str>,
    /// The same, less some aggregates.
    pub(crate) scan_full: Arc<str>,
    /// When the next scheduled event becomes due.
    pub(crate) next_scheduled: Arc<str>,
    /// Holds that are due.
    pub(crate) holds: Arc<str>,
    /// The pending rows that due holds name.
    pub(crate) hold_rows: Arc<str>,
    /// Aggregates that were paused since a time.
    pub(crate) paused: Arc<str>,
}

/// Whether the row's partition is owned: a bit of a parameter.
fn owned(column: &str) -> String {
    format!("(CAST(? AS UNSIGNED) >> {column}) & 1")
}

/// Pending rows that are due.
const DUE: &str = "(o.available_at IS NULL OR o.available_at <= UTC_TIMESTAMP(6))";

impl Statements {
    pub(crate) fn new(tables: &Tables) -> Self {
        let text = |template: &str| -> Arc<str> { tables.text(template).into() };
        let full = vec!["(?, ?)"; FULL_MAX].join(", ");
        Self {
            probe: text(&format!(
                "SELECT {NOW_MICROS}, \
                    EXISTS (SELECT 1 FROM {{holds}} \
                      WHERE until <= UTC_TIMESTAMP(6) AND paused_at IS NULL AND {owned}), \
                    (SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), until) FROM {{holds}} \
                      WHERE until > UTC_TIMESTAMP(6) AND paused_at IS NULL AND {owned} ORDER BY until LIMIT 1), \
                    EXISTS (SELECT 1 FROM {{holds}} WHERE paused_at > {since} AND {owned})",
                owned = owned("part"),
                since = time_of("?"),
            )),
            scan: text(&scan("")),
            scan_full: text(&scan(&format!("AND (o.aggregate_type, o.aggregate_id) NOT IN ({full})"))),
            next_scheduled: text(&format!(
                "SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), MIN(o.available_at)) \
                 FROM {{outbox}} o FORCE INDEX (pending) \
                 WHERE o.status = 0 AND o.available_at > UTC_TIMESTAMP(6) AND {}",
                owned("o.partition")
            )),
            holds: text(&format!(
                "SELECT part, aggregate_type, aggregate_id, sequence FROM {{holds}} FORCE INDEX (until) \
                 WHERE until <= UTC_TIMESTAMP(6) AND paused_at IS NULL AND {} ORDER BY until LIMIT ?",
                owned("part")
            )),
            hold_rows: text(&format!(
                "SELECT {} FROM (SELECT s.sequence, SUM(o.payload_bytes) OVER (ORDER BY s.place) - o.payload_bytes \
                    AS bytes_before FROM {} STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence \
                    WHERE o.status = 0 AND {DUE}) w \
                 STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = w.sequence WHERE w.bytes_before < ?",
                columns(),
                rows("s", "place INT, sequence BIGINT")
            )),
            paused: text(&format!(
                "SELECT aggregate_type, aggregate_id, {} FROM {{holds}} FORCE INDEX (paused_at) \
                 WHERE paused_at > {} AND {} ORDER BY paused_at LIMIT ?",
                micros_of("paused_at"),
                time_of("?"),
                owned("part")
            )),
        }
    }
}

/// Parameters: the owned partitions; the bitmap of what the relay holds, as its base, its bits, and its base
/// twice; the aggregates that are left out, if any; the most rows; the bytes of payloads once reached.
///
/// The inner statement touches the index alone; the next sums up payloads; only rows that are returned are
/// read.
fn scan(without: &str) -> String {
    format!(
        "SELECT {columns} FROM ( \
           SELECT c.sequence, SUM(c.payload_bytes) OVER (ORDER BY c.sequence) - c.payload_bytes AS bytes_before FROM ( \
             SELECT o.sequence, o.payload_bytes FROM {{outbox}} o FORCE INDEX (pending) \
             LEFT JOIN {{holds}} h FORCE INDEX (PRIMARY) ON h.part = o.partition AND h.aggregate_type = o.aggregate_type \
               AND h.aggregate_id = o.aggregate_id \
             WHERE o.status = 0 AND {owned} AND {DUE} \
               AND (o.sequence < ? OR (ASCII(SUBSTRING(?, 1 + ((o.sequence - ?) DIV 8), 1)) >> ((o.sequence - ?) & 7)) & 1 = 0) \
               {without} AND h.part IS NULL \
             ORDER BY o.sequence LIMIT ?) c) w \
         STRAIGHT_JOIN {{outbox}} o FORCE INDEX (PRIMARY) ON o.sequence = w.sequence WHERE w.bytes_before < ?",
        columns = columns(),
        owned = owned("o.partition"),
    )
}
