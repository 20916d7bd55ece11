//! A settle that touches holds: one transaction.
//!
//! # The floor
//! Below the floor of a partition nothing waits that has no hold. So when a hold goes, the floor falls to where the
//! hold began, in the same transaction: whoever reads the partition next finds what waited behind it. When a hold
//! comes, it keeps the floor of that moment as its beginning, for the same reason. Both need the newest floor, and
//! the lock on the lease row gives it.

use std::collections::{BTreeMap, BTreeSet};

use outbox_core::{
    AggregateKey, HoldReason, Outcome, Partition, Sequence, SettleRequest, Settlement, StoreError,
    Successors, WhenSent,
};
use sqlx::PgConnection;

use crate::{
    codec::{attempts_code, lease_codes, millis, partition_code, partition_of},
    database::{Database, begin},
    error::store_error,
    schema::ARCHIVED,
};

/// The longest error that is kept with an event, in bytes: enough for a cause and its context, and no dump.
const ERROR_BYTES_MAX: usize = 4096;

/// Settles, and returns the partitions whose lease is held.
pub(super) async fn settle(
    database: &Database,
    connection: &mut PgConnection,
    request: &SettleRequest,
) -> Result<Vec<Partition>, StoreError> {
    let fail = |error| store_error("settle", error);
    let mut transaction = begin(connection, "settle").await?;
    let mut settling = Settling { database, connection: &mut transaction, floors: BTreeMap::new() };
    settling.run(request).await.map_err(fail)?;
    let held = settling.floors.keys().map(|part| partition_of(*part)).collect();
    transaction.commit().await.map_err(fail)?;
    Ok(held)
}

struct Settling<'a> {
    database: &'a Database,
    connection: &'a mut PgConnection,
    /// The floors of the partitions whose lease is held.
    floors: BTreeMap<i16, Sequence>,
}

/// A hold to be made or changed.
struct Hold {
    part: i16,
    sequence: Sequence,
    /// `None` is without end.
    after_ms: Option<i64>,
    reason: HoldReason,
}

impl Settling<'_> {
    async fn run(&mut self, request: &SettleRequest) -> Result<(), sqlx::Error> {
        self.lock(request).await?;
        let mine: Vec<&Settlement> = request
            .settlements
            .iter()
            .filter(|s| self.floors.contains_key(&partition_code(s.partition)))
            .collect();
        let mut applied = self.sent(&mine, request.when_sent).await?;
        applied.extend(self.others(&mine).await?);
        let mine: Vec<&Settlement> = mine.into_iter().filter(|s| applied.contains(&s.sequence)).collect();
        // Holds go before holds come: a hold of the event just sent must not swallow the one of its successor.
        let mut removed = self.remove_holds(&mine).await?;
        removed.extend(self.unhold(request).await?);
        self.lower_floors(&removed).await?;
        self.put_holds(&mine).await
    }

    async fn lock(&mut self, request: &SettleRequest) -> Result<(), sqlx::Error> {
        let sql = "SELECT p.part, p.floor FROM {partitions} p \
                   JOIN unnest($1::smallint[], $2::bigint[]) s (part, epoch) ON p.part = s.part \
                   WHERE p.owner = $3 AND p.epoch = s.epoch ORDER BY p.part FOR NO KEY UPDATE OF p";
        let (parts, epochs) = lease_codes(request);
        let query =
            sqlx::query_as(self.database.tables().sql(sql)).bind(parts).bind(epochs).bind(request.relay.0);
        let rows: Vec<(i16, Sequence)> = query.fetch_all(&mut *self.connection).await?;
        self.floors = rows.into_iter().collect();
        Ok(())
    }

    /// Sent events; returns those that were still pending.
    async fn sent(
        &mut self,
        mine: &[&Settlement],
        when: WhenSent,
    ) -> Result<BTreeSet<Sequence>, sqlx::Error> {
        let sent: Vec<_> = mine.iter().filter(|s| s.outcome == Outcome::Sent).collect();
        if sent.is_empty() {
            return Ok(BTreeSet::new());
        }
        let from = "unnest($1::bigint[], $2::integer[]) s (sequence, attempts) \
                    WHERE o.sequence = s.sequence AND o.part = ANY ($3) AND o.status = 0";
        let sql = match when {
            WhenSent::Keep => format!(
                "UPDATE {{outbox}} o SET status = 1, attempts = s.attempts, sent_at = clock_timestamp() \
                 FROM {from} RETURNING o.sequence"
            ),
            WhenSent::Delete => format!("DELETE FROM {{outbox}} o USING {from} RETURNING o.sequence"),
            WhenSent::Archive => format!(
                "WITH d AS (DELETE FROM {{outbox}} o USING {from} RETURNING o.*, s.attempts AS made) \
                 INSERT INTO {{archive}} ({ARCHIVED}, status, attempts, sent_at) \
                 SELECT {ARCHIVED}, 1, made, clock_timestamp() FROM d RETURNING sequence"
            ),
        };
        let sequences: Vec<Sequence> = sent.iter().map(|s| s.sequence).collect();
        let attempts: Vec<i32> = sent.iter().map(|s| attempts_code(s.attempts)).collect();
        let query = sqlx::query_scalar(self.database.tables().sql(&sql))
            .bind(sequences)
            .bind(attempts)
            .bind(self.parts());
        Ok(query.fetch_all(&mut *self.connection).await?.into_iter().collect())
    }

    /// Retried and failed events; returns those that were still pending.
    async fn others(&mut self, mine: &[&Settlement]) -> Result<BTreeSet<Sequence>, sqlx::Error> {
        let (mut sequences, mut attempts, mut errors, mut causes) = (vec![], vec![], vec![], vec![]);
        for settlement in mine {
            let (error, cause) = match &settlement.outcome {
                Outcome::Sent => continue,
                Outcome::Retry { error, .. } => (error, None),
                Outcome::Failed { error, cause, .. } => (error, Some(cause.as_str())),
            };
            sequences.push(settlement.sequence);
            attempts.push(attempts_code(settlement.attempts));
            errors.push(storable(error));
            causes.push(cause);
        }
        if sequences.is_empty() {
            return Ok(BTreeSet::new());
        }
        let sql = "WITH u AS (UPDATE {outbox} o SET status = CASE WHEN s.cause IS NULL THEN 0 ELSE 2 END, \
                        attempts = s.attempts, last_error = s.error, cause = s.cause \
                     FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[]) \
                          s (sequence, attempts, error, cause) \
                     WHERE o.sequence = s.sequence AND o.part = ANY ($5) AND o.status = 0 \
                     RETURNING o.sequence, o.status), \
                   f AS (INSERT INTO {failed} (sequence) SELECT sequence FROM u WHERE status = 2 \
                     ON CONFLICT (sequence) DO UPDATE SET failed_at = excluded.failed_at) \
                   SELECT sequence FROM u";
        let query = sqlx::query_scalar(self.database.tables().sql(sql))
            .bind(sequences)
            .bind(attempts)
            .bind(errors)
            .bind(causes)
            .bind(self.parts());
        Ok(query.fetch_all(&mut *self.connection).await?.into_iter().collect())
    }

    /// Removes the holds of events that are done with; a paused one stays as a plain pause.
    async fn remove_holds(&mut self, mine: &[&Settlement]) -> Result<Vec<(i16, Sequence)>, sqlx::Error> {
        let done: Vec<_> = mine.iter().filter(|s| !leaves_hold(&s.outcome)).collect();
        if done.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "WITH s AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::smallint[]) s (sequence, part)), \
                   p AS (UPDATE {holds} h SET sequence = NULL, reason = 'paused' FROM s \
                     WHERE h.sequence = s.sequence AND h.part = s.part AND h.paused) \
                   DELETE FROM {holds} h USING s \
                     WHERE h.sequence = s.sequence AND h.part = s.part AND NOT h.paused \
                   RETURNING h.part, h.from_sequence";
        let sequences: Vec<Sequence> = done.iter().map(|s| s.sequence).collect();
        let parts: Vec<i16> = done.iter().map(|s| partition_code(s.partition)).collect();
        let query = sqlx::query_as(self.database.tables().sql(sql)).bind(sequences).bind(parts);
        query.fetch_all(&mut *self.connection).await
    }

    /// Removes holds that hold nothing any more, unless they have changed since they were read.
    async fn unhold(&mut self, request: &SettleRequest) -> Result<Vec<(i16, Sequence)>, sqlx::Error> {
        let (mut parts, mut types, mut ids, mut sequences) = (vec![], vec![], vec![], vec![]);
        for unhold in &request.unholds {
            let part = partition_code(unhold.partition);
            if self.floors.contains_key(&part) {
                parts.push(part);
                types.push(unhold.key.aggregate_type());
                ids.push(unhold.key.aggregate_id());
                sequences.push(unhold.sequence);
            }
        }
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "DELETE FROM {holds} h \
                   USING unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[]) s (part, type, id, sequence) \
                   WHERE h.part = s.part AND h.aggregate_type = s.type AND h.aggregate_id = s.id \
                     AND h.sequence IS NOT DISTINCT FROM s.sequence \
                     AND h.until <= clock_timestamp() AND NOT h.paused \
                     AND NOT EXISTS (SELECT 1 FROM {outbox} o WHERE o.sequence = h.sequence AND o.status = 0 \
                           AND (o.available_at IS NULL OR o.available_at <= clock_timestamp())) \
                   RETURNING h.part, h.from_sequence";
        let query = sqlx::query_as(self.database.tables().sql(sql)).bind(parts).bind(types).bind(ids);
        query.bind(sequences).fetch_all(&mut *self.connection).await
    }

    async fn lower_floors(&mut self, removed: &[(i16, Sequence)]) -> Result<(), sqlx::Error> {
        let mut lowered = BTreeMap::new();
        for (part, from) in removed {
            if let Some(floor) = self.floors.get_mut(part)
                && *floor >= *from
            {
                *floor = *from - 1;
                lowered.insert(*part, *floor);
            }
        }
        if lowered.is_empty() {
            return Ok(());
        }
        let sql = "UPDATE {partitions} p SET floor = s.floor \
                   FROM unnest($1::smallint[], $2::bigint[]) s (part, floor) WHERE p.part = s.part";
        let (parts, floors): (Vec<i16>, Vec<Sequence>) = lowered.into_iter().unzip();
        let query = sqlx::query(self.database.tables().sql(sql)).bind(parts).bind(floors);
        query.execute(&mut *self.connection).await.map(drop)
    }

    /// Makes and changes the holds of retried and parked events.
    async fn put_holds(&mut self, mine: &[&Settlement]) -> Result<(), sqlx::Error> {
        let holds = holds(mine);
        if holds.is_empty() {
            return Ok(());
        }
        let (mut parts, mut types, mut ids) = (vec![], vec![], vec![]);
        let (mut sequences, mut froms, mut afters, mut reasons) = (vec![], vec![], vec![], vec![]);
        for (key, hold) in &holds {
            let floor = self.floors.get(&hold.part).copied().unwrap_or_default();
            parts.push(hold.part);
            types.push(key.aggregate_type());
            ids.push(key.aggregate_id());
            sequences.push(hold.sequence);
            froms.push(hold.sequence.min(floor + 1));
            afters.push(hold.after_ms);
            reasons.push(hold.reason.as_str());
        }
        // `least` passes over a null, which is the sequence of a plain pause.
        let sql = "INSERT INTO {holds} AS h \
                     (part, aggregate_type, aggregate_id, sequence, from_sequence, until, reason) \
                   SELECT part, type, id, sequence, from_sequence, \
                          coalesce(clock_timestamp() + after * interval '1 ms', 'infinity'), reason \
                   FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], \
                               $7::text[]) s (part, type, id, sequence, from_sequence, after, reason) \
                   ON CONFLICT (part, aggregate_type, aggregate_id) DO UPDATE SET \
                     sequence = least(h.sequence, excluded.sequence), \
                     from_sequence = least(h.from_sequence, excluded.from_sequence), \
                     until = CASE WHEN h.paused THEN h.until \
                                  WHEN h.sequence = excluded.sequence THEN excluded.until \
                                  ELSE greatest(h.until, excluded.until) END, \
                     reason = CASE WHEN h.sequence IS NULL OR h.sequence = excluded.sequence \
                                     OR excluded.until > h.until THEN excluded.reason ELSE h.reason END, \
                     changed_at = excluded.changed_at";
        let query = sqlx::query(self.database.tables().sql(sql)).bind(parts).bind(types).bind(ids);
        let query = query.bind(sequences).bind(froms).bind(afters).bind(reasons);
        query.execute(&mut *self.connection).await.map(drop)
    }

    fn parts(&self) -> Vec<i16> {
        self.floors.keys().copied().collect()
    }
}

fn leaves_hold(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Retry { .. } | Outcome::Failed { successors: Successors::Park, .. })
}

/// One hold for each aggregate: several of one aggregate give the lowest sequence and the latest time.
fn holds(mine: &[&Settlement]) -> BTreeMap<AggregateKey, Hold> {
    let mut holds: BTreeMap<AggregateKey, Hold> = BTreeMap::new();
    for settlement in mine {
        let (after_ms, reason) = match &settlement.outcome {
            Outcome::Retry { after, reason, .. } => (Some(millis(*after)), *reason),
            Outcome::Failed { successors: Successors::Park, .. } => (None, HoldReason::Parked),
            _ => continue,
        };
        let part = partition_code(settlement.partition);
        let new = Hold { part, sequence: settlement.sequence, after_ms, reason };
        match holds.get_mut(&settlement.key) {
            None => drop(holds.insert(settlement.key.clone(), new)),
            Some(hold) => {
                let later = hold.after_ms.is_some_and(|old| new.after_ms.is_none_or(|ms| ms > old));
                if later {
                    (hold.after_ms, hold.reason) = (new.after_ms, new.reason);
                }
                hold.sequence = hold.sequence.min(new.sequence);
            }
        }
    }
    holds
}

/// A text that PostgreSQL takes, and no longer than is useful.
fn storable(error: &str) -> String {
    let mut end = error.len().min(ERROR_BYTES_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cut_between_characters_and_without_nul() {
        assert_eq!(storable("a\0b"), "a\u{fffd}b");
        let text = "ä".repeat(ERROR_BYTES_MAX);
        assert_eq!(storable(&format!("x{text}")).len(), ERROR_BYTES_MAX - 1);
    }
}
