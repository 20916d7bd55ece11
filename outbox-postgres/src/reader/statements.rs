//! The statements of the reader, each with one right plan: an index scan in the order of the primary key,
//! stopped by its limit. The sub-selects that filter rows are written so that the planner cannot turn them
//! into joins, which would read and sort a whole backlog before the limit: `OFFSET 0` inside `EXISTS`, and
//! `NOT IN` or `IN … IS TRUE` over arrays, which are hashed once.

use std::sync::Arc;

use super::{
    bound::PREPARED,
    decode::{COLUMNS, NO_COLUMNS},
};
use crate::config::Tables;

/// The kinds of rows of [`Statements::main`].
pub(super) const KIND_FEW_HOLDS: i32 = 0;
pub(super) const KIND_MANY_HOLDS: i32 = 1;
pub(super) const KIND_LATE: i32 = 2;

/// Up to so many holds are hashed by each main statement, in half a millisecond, which makes passing a row
/// three times as fast as looking for its hold: 0.3 µs instead of 0.9.
pub(super) const HOLDS_HASHED_MAX: usize = 1_000;

#[derive(Debug, Clone)]
pub(crate) struct Statements {
    /// F, the server's clock, the open writers if they matter, and whether holds or scheduled events want a
    /// look.
    pub(crate) probe: Arc<str>,
    /// Late and new rows of aggregates without a hold; nothing but a mark where there are many holds.
    pub(crate) main: Arc<str>,
    /// The same for any number of holds.
    pub(crate) main_held: Arc<str>,
    /// A stretch of the rows of some partitions.
    pub(crate) pass_leases: Arc<str>,
    /// A stretch of the rows of some aggregates.
    pub(crate) pass_keys: Arc<str>,
    /// The partitions of some aggregates.
    pub(crate) parts: Arc<str>,
    /// The scheduled events that have become due since a time.
    pub(crate) due: Arc<str>,
    /// Rows of scheduled events that are due, and whether they are held.
    pub(crate) due_rows: Arc<str>,
    /// Holds that are due.
    pub(crate) holds: Arc<str>,
    /// The pending rows that due holds name.
    pub(crate) hold_rows: Arc<str>,
    /// The state of some holds.
    pub(crate) hold_states: Arc<str>,
    /// Aggregates paused since a time.
    pub(crate) paused: Arc<str>,
    /// Payloads that were too large to be read with their rows.
    pub(crate) payloads: Arc<str>,
    /// The floors of partitions under their leases.
    pub(crate) floors: Arc<str>,
    /// Raises floors.
    pub(crate) raise_floors: Arc<str>,
}

/// Pending and due.
const READY: &str = "o.status = 0 AND (o.available_at IS NULL OR o.available_at <= $5)";
const NO_HOLD: &str = "NOT EXISTS (SELECT 1 FROM {holds} h WHERE h.partition = o.partition \
     AND h.aggregate_type = o.aggregate_type AND h.aggregate_id = o.aggregate_id OFFSET 0)";

impl Statements {
    pub(crate) fn new(tables: &Tables) -> Self {
        let text = |template: &str| -> Arc<str> { tables.text(template).into() };
        Self {
            probe: text(&probe()),
            main: text(&main(false)),
            main_held: text(&main(true)),
            pass_leases: text(&pass("NOT IN", "")),
            pass_keys: text(&pass("IN", " IS TRUE")),
            parts: text(
                "SELECT (get_byte(decode(md5(type || '/' || id), 'hex'), 0) & 63)::smallint \
                 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY k (type, id, place) ORDER BY place",
            ),
            // `+ 0` keeps the planner from the primary key, by which it would read the whole table below R.
            due: text(
                "SELECT available_at, sequence FROM {outbox} \
                 WHERE available_at IS NOT NULL AND (available_at, sequence) > ($1, $2) AND available_at <= $3 \
                   AND status = 0 AND partition = ANY ($4::smallint[]) AND sequence + 0 <= $5 \
                 ORDER BY available_at, sequence LIMIT $6",
            ),
            due_rows: text(&format!(
                "SELECT {COLUMNS}, NOT ({NO_HOLD}) AS held FROM {{outbox}} o \
                 WHERE o.sequence = ANY ($1::bigint[]) AND o.status = 0 AND o.partition = ANY ($2::smallint[]) \
                 ORDER BY o.sequence"
            )),
            holds: text(
                "SELECT partition, aggregate_type, aggregate_id, sequence, from_sequence FROM {holds} h \
                 WHERE until <= $1 AND NOT paused AND partition = ANY ($2::smallint[]) \
                   AND (aggregate_type, aggregate_id) NOT IN \
                       (SELECT type, id FROM unnest($3::text[], $4::text[]) k (type, id)) \
                 ORDER BY until LIMIT $5",
            ),
            hold_rows: text(&format!(
                "SELECT {COLUMNS} FROM {{outbox}} o WHERE o.sequence = ANY ($1::bigint[]) AND o.status = 0 \
                   AND (o.available_at IS NULL OR o.available_at <= $2)"
            )),
            hold_states: text(
                "SELECT aggregate_type, aggregate_id, sequence, until <= clock_timestamp() AND NOT paused AS due \
                 FROM {holds} WHERE partition = ANY ($1::smallint[]) AND (aggregate_type, aggregate_id) IN \
                      (SELECT type, id FROM unnest($2::text[], $3::text[]) k (type, id))",
            ),
            paused: text(
                "SELECT aggregate_type, aggregate_id, changed_at FROM {holds} \
                 WHERE paused AND changed_at > $1 AND partition = ANY ($2::smallint[]) ORDER BY changed_at LIMIT $3",
            ),
            payloads: text(
                "SELECT sequence, payload, payload_binary FROM {outbox} WHERE sequence = ANY ($1::bigint[])",
            ),
            floors: text("SELECT partition, epoch, floor FROM {partitions} WHERE owner = $1"),
            raise_floors: text(
                "WITH l AS MATERIALIZED (SELECT p.partition, s.floor FROM {partitions} p \
                   JOIN unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) \
                     s (partition, epoch, seen, floor) ON p.partition = s.partition \
                   WHERE p.owner = $1 AND p.epoch = s.epoch AND p.floor = s.seen \
                   ORDER BY p.partition FOR NO KEY UPDATE OF p) \
                 UPDATE {partitions} p SET floor = l.floor FROM l WHERE p.partition = l.partition",
            ),
        }
    }
}

/// One statement. That F is read before the writers is not left to the planner: the writers' sub-select needs
/// F. Both are functions that look at the present, whatever the snapshot of the statement.
fn probe() -> String {
    format!(
        "WITH p AS MATERIALIZED ( \
            SELECT coalesce(pg_sequence_last_value($1::oid), 0) AS f, clock_timestamp() AS now) \
         SELECT p.f, p.now, \
            CASE WHEN p.f <> $2 OR $3 THEN ARRAY( \
                SELECT CASE WHEN l.pid IS NULL THEN '{PREPARED}' ELSE '' END || l.virtualtransaction \
                FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation = $4::oid AND l.database = $5::oid \
                  AND l.mode = 'RowExclusiveLock' AND l.granted AND (l.pid IS NULL OR l.pid <> $6) \
                  AND p.f IS NOT NULL) END AS writers, \
            EXISTS (SELECT 1 FROM {{holds}} WHERE until <= p.now AND NOT paused \
               AND partition = ANY ($7::smallint[])) AS due, \
            (SELECT (extract(epoch FROM min(until) - p.now) * 1000)::bigint FROM {{holds}} \
               WHERE until > p.now AND until < 'infinity' AND NOT paused AND partition = ANY ($7)) AS next_hold_ms, \
            (SELECT (extract(epoch FROM min(available_at) - p.now) * 1000)::bigint FROM {{outbox}} \
               WHERE available_at IS NOT NULL AND available_at > $8 AND available_at < 'infinity' \
                 AND status = 0 AND partition = ANY ($7)) AS next_scheduled_ms, \
            EXISTS (SELECT 1 FROM {{holds}} WHERE paused AND changed_at > $9 AND partition = ANY ($7)) AS paused \
         FROM p"
    )
}

/// `$1` V, `$2` R, `$3` F, `$4` partitions, `$5` due until, `$6` known, `$7` late at most, `$8` new at most,
/// `$9` and `$10` the aggregates that are read by key. All of it, the look at the holds too, is of one
/// snapshot.
fn main(many_holds: bool) -> String {
    let holds = "FROM {holds} WHERE partition = ANY ($4::smallint[])";
    let keys = "SELECT type, id FROM unnest($9::text[], $10::text[]) k (type, id)";
    let (found, excluded, filter) = match many_holds {
        true => ("false".to_owned(), keys.to_owned(), format!("AND {NO_HOLD}")),
        // The limit has the planner hash them, whatever the statistics say.
        false => (
            format!("EXISTS (SELECT 1 {holds} OFFSET {HOLDS_HASHED_MAX})"),
            format!(
                "(SELECT aggregate_type, aggregate_id {holds} LIMIT {HOLDS_HASHED_MAX}) UNION ALL {keys}"
            ),
            "AND NOT (SELECT found FROM m)".to_owned(),
        ),
    };
    let range = |low: &str, high: &str, kind: i32, known: &str, limit: &str| {
        format!(
            "(SELECT {COLUMNS}, {kind} AS kind FROM {{outbox}} o \
              WHERE o.sequence > {low} AND o.sequence <= {high} AND {READY} AND o.partition = ANY ($4::smallint[]) \
                {known} {filter} AND (o.aggregate_type, o.aggregate_id) NOT IN ({excluded}) \
              ORDER BY o.sequence LIMIT {limit})"
        )
    };
    let known = "AND o.sequence NOT IN (SELECT unnest($6::bigint[]))";
    format!(
        "WITH m AS MATERIALIZED (SELECT {found} AS found) \
         (SELECT {NO_COLUMNS}, CASE WHEN found THEN {KIND_MANY_HOLDS} ELSE {KIND_FEW_HOLDS} END FROM m) \
         UNION ALL {} UNION ALL {}",
        range("$1", "$2", KIND_LATE, known, "$7"),
        range("$2", "$3", KIND_LATE + 1, "", "$8"),
    )
}

/// `$1` from, `$2` to, `$3` the aggregates' types, `$4` their ids, `$5` due until, `$6` known, `$7`
/// partitions, `$8` at most.
fn pass(within: &str, end: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM {{outbox}} o WHERE o.sequence > $1 AND o.sequence <= $2 AND {READY} \
           AND o.partition = ANY ($7::smallint[]) AND o.sequence NOT IN (SELECT unnest($6::bigint[])) \
           AND ((o.aggregate_type, o.aggregate_id) {within} \
                (SELECT type, id FROM unnest($3::text[], $4::text[]) k (type, id))){end} \
           AND {NO_HOLD} ORDER BY o.sequence LIMIT $8"
    )
}
