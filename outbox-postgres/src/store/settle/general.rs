//! A settle that touches holds: one transaction.
//!
//! # The floor
//! Below the floor of a partition nothing waits that has no hold. So when a hold goes, the floor falls to
//! where the hold began, in the same transaction: the next reader of the partition finds what waited behind
//! it. When a hold comes, it keeps the floor of that moment as its beginning, for the same reason. Both need
//! the newest floor, and the lock on the lease row gives it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outbox_core::{
    AggregateKey, StoreError, WhenSent,
    store::{
        HoldReason, Outcome, Partition, Sequence, SettleRequest, Settlement, Successors, storable_error,
    },
};
use sqlx::PgConnection;

use crate::{
    codec::{attempts_code, lease_arrays, millis, partition_code, partition_of},
    database::{Database, begin},
    error::store_error,
    schema::{ARCHIVED, ARCHIVED_TWICE},
};

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
    let held = settling.floors.keys().map(|partition| partition_of(*partition)).collect();
    transaction.commit().await.map_err(fail)?;
    Ok(held)
}

struct Settling<'a> {
    database: &'a Database,
    connection: &'a mut PgConnection,
    /// The floors of the partitions whose lease is held.
    floors: BTreeMap<i16, Sequence>,
}

impl Settling<'_> {
    async fn run(&mut self, request: &SettleRequest) -> Result<(), sqlx::Error> {
        self.lock(request).await?;
        let fenced = request.fenced(|lease| self.floors.contains_key(&partition_code(lease.partition)));
        let mine = request.settlements_in_order(&fenced);
        let mut applied = self.sent(&mine, request.when_sent).await?;
        applied.extend(self.others(&mine).await?);
        let mine = mine.into_iter().filter(|settlement| applied.contains(&settlement.sequence));
        for round in rounds(mine) {
            // Holds go before holds come: the floor that a hold keeps is the one that the others left.
            let removed = self.remove_holds(&round).await?;
            self.lower_floors(&removed).await?;
            self.put_holds(&round).await?;
        }
        let removed = self.unhold(request, &fenced).await?;
        self.lower_floors(&removed).await
    }

    async fn lock(&mut self, request: &SettleRequest) -> Result<(), sqlx::Error> {
        let sql = "SELECT p.partition, p.floor FROM {partitions} p \
                   JOIN unnest($1::smallint[], $2::bigint[]) s (partition, epoch) ON p.partition = s.partition \
                   WHERE p.owner = $3 AND p.epoch = s.epoch ORDER BY p.partition FOR NO KEY UPDATE OF p";
        let (parts, epochs) = lease_arrays(&request.leases);
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
                    WHERE o.sequence = s.sequence AND o.partition = ANY ($3) AND o.status = 0";
        let sql = match when {
            WhenSent::Keep => format!(
                "UPDATE {{outbox}} o SET status = 1, attempts = s.attempts, sent_at = clock_timestamp() \
                 FROM {from} RETURNING o.sequence"
            ),
            WhenSent::Delete => format!("DELETE FROM {{outbox}} o USING {from} RETURNING o.sequence"),
            WhenSent::Archive => format!(
                "WITH d AS (DELETE FROM {{outbox}} o USING {from} RETURNING o.*, s.attempts AS made), \
                 a AS (INSERT INTO {{archive}} ({ARCHIVED}, status, attempts, sent_at, archived_at) \
                   SELECT {ARCHIVED}, 1, made, clock_timestamp(), clock_timestamp() FROM d {ARCHIVED_TWICE}) \
                 SELECT sequence FROM d"
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
            // NUL is refused by the server, and a relay is not the only one to build an outcome.
            errors.push(storable_error(error));
            causes.push(cause);
        }
        if sequences.is_empty() {
            return Ok(BTreeSet::new());
        }
        let sql = "WITH u AS (UPDATE {outbox} o SET status = CASE WHEN s.cause IS NULL THEN 0 ELSE 2 END, \
                        attempts = s.attempts, last_error = s.error, cause = s.cause \
                     FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[]) \
                          s (sequence, attempts, error, cause) \
                     WHERE o.sequence = s.sequence AND o.partition = ANY ($5) AND o.status = 0 \
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
        let sql = "WITH s AS MATERIALIZED ( \
                     SELECT * FROM unnest($1::bigint[], $2::smallint[]) s (sequence, partition)), \
                   p AS (UPDATE {holds} h SET sequence = NULL, reason = 'paused' FROM s \
                     WHERE h.sequence = s.sequence AND h.partition = s.partition AND h.paused) \
                   DELETE FROM {holds} h USING s \
                     WHERE h.sequence = s.sequence AND h.partition = s.partition AND NOT h.paused \
                   RETURNING h.partition, h.from_sequence";
        let sequences: Vec<Sequence> = done.iter().map(|s| s.sequence).collect();
        let parts: Vec<i16> = done.iter().map(|s| partition_code(s.partition)).collect();
        let query = sqlx::query_as(self.database.tables().sql(sql)).bind(sequences).bind(parts);
        query.fetch_all(&mut *self.connection).await
    }

    /// Removes holds that hold nothing any more, unless they have changed since they were read.
    async fn unhold(
        &mut self,
        request: &SettleRequest,
        fenced: &[Partition],
    ) -> Result<Vec<(i16, Sequence)>, sqlx::Error> {
        let (mut parts, mut types, mut ids, mut sequences) = (vec![], vec![], vec![], vec![]);
        for unhold in request.unholds_of(fenced) {
            parts.push(partition_code(unhold.partition));
            types.push(unhold.key.aggregate_type());
            ids.push(unhold.key.aggregate_id());
            sequences.push(unhold.sequence);
        }
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "DELETE FROM {holds} h \
                   USING unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[]) s (partition, type, id, sequence) \
                   WHERE h.partition = s.partition AND h.aggregate_type = s.type AND h.aggregate_id = s.id \
                     AND h.sequence IS NOT DISTINCT FROM s.sequence \
                     AND h.until <= clock_timestamp() AND NOT h.paused \
                     AND NOT EXISTS (SELECT 1 FROM {outbox} o WHERE o.sequence = h.sequence AND o.status = 0 \
                           AND (o.available_at IS NULL OR o.available_at <= clock_timestamp())) \
                   RETURNING h.partition, h.from_sequence";
        let query = sqlx::query_as(self.database.tables().sql(sql)).bind(parts).bind(types).bind(ids);
        query.bind(sequences).fetch_all(&mut *self.connection).await
    }

    async fn lower_floors(&mut self, removed: &[(i16, Sequence)]) -> Result<(), sqlx::Error> {
        let mut lowered = BTreeMap::new();
        for (partition, from) in removed {
            if let Some(floor) = self.floors.get_mut(partition)
                && *floor >= *from
            {
                *floor = *from - 1;
                lowered.insert(*partition, *floor);
            }
        }
        if lowered.is_empty() {
            return Ok(());
        }
        let sql = "UPDATE {partitions} p SET floor = s.floor \
                   FROM unnest($1::smallint[], $2::bigint[]) s (partition, floor) WHERE p.partition = s.partition";
        let (parts, floors): (Vec<i16>, Vec<Sequence>) = lowered.into_iter().unzip();
        let query = sqlx::query(self.database.tables().sql(sql)).bind(parts).bind(floors);
        query.execute(&mut *self.connection).await.map(drop)
    }

    /// Makes and changes the holds of retried and parked events, one of each aggregate.
    async fn put_holds(&mut self, round: &[&Settlement]) -> Result<(), sqlx::Error> {
        let (mut parts, mut types, mut ids) = (vec![], vec![], vec![]);
        let (mut sequences, mut froms, mut afters, mut reasons) = (vec![], vec![], vec![], vec![]);
        for settlement in round {
            let (after_ms, reason) = match &settlement.outcome {
                Outcome::Retry { after, reason, .. } => (Some(millis(*after)), *reason),
                Outcome::Failed { successors: Successors::Park, .. } => (None, HoldReason::Parked),
                Outcome::Sent | Outcome::Failed { successors: Successors::Release, .. } => continue,
            };
            let partition = partition_code(settlement.partition);
            let floor = self.floors.get(&partition).copied().unwrap_or_default();
            parts.push(partition);
            types.push(settlement.key.aggregate_type());
            ids.push(settlement.key.aggregate_id());
            sequences.push(settlement.sequence);
            froms.push(settlement.sequence.min(floor + 1));
            afters.push(after_ms);
            reasons.push(reason.as_str());
        }
        if parts.is_empty() {
            return Ok(());
        }
        // The rule of `Hold::retried` and `Hold::parked`. `least` passes over a null, which is the sequence
        // of a plain pause. The time is that of the transaction, so that of two events that wait equally long
        // none is the later.
        let sql = "INSERT INTO {holds} AS h \
                     (partition, aggregate_type, aggregate_id, sequence, from_sequence, until, reason) \
                   SELECT partition, type, id, sequence, from_sequence, \
                          coalesce(now() + after * interval '1 ms', 'infinity'), reason \
                   FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], \
                               $7::text[]) s (partition, type, id, sequence, from_sequence, after, reason) \
                   ON CONFLICT (partition, aggregate_type, aggregate_id) DO UPDATE SET \
                     sequence = least(h.sequence, excluded.sequence), \
                     from_sequence = least(h.from_sequence, excluded.from_sequence), \
                     until = CASE WHEN h.paused THEN 'infinity' \
                                  WHEN h.sequence IS NULL OR h.sequence = excluded.sequence THEN excluded.until \
                                  ELSE greatest(h.until, excluded.until) END, \
                     reason = CASE WHEN h.sequence IS NULL OR h.sequence = excluded.sequence \
                                     OR (excluded.until > h.until AND NOT h.paused) THEN excluded.reason \
                                   ELSE h.reason END, \
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

/// The settlements, which ascend, in as few rounds as leave each aggregate at most one in each: a statement
/// changes a hold once, and each change begins from the one before.
fn rounds<'a>(mine: impl Iterator<Item = &'a Settlement>) -> Vec<Vec<&'a Settlement>> {
    let mut rounds: Vec<Vec<&Settlement>> = Vec::new();
    let mut next: HashMap<&AggregateKey, usize> = HashMap::new();
    for settlement in mine {
        let round = next.entry(&settlement.key).or_default();
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].push(settlement);
        *round += 1;
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregate_changes_its_hold_once_a_round_and_in_the_order_of_its_events() {
        let settlement =
            |sequence, id| Settlement::new(sequence, 0, AggregateKey::new("order", id), 1, Outcome::Sent);
        let all = [
            settlement(1, "a"),
            settlement(2, "b"),
            settlement(3, "a"),
            settlement(4, "c"),
            settlement(5, "a"),
        ];
        let sequences = |round: &Vec<&Settlement>| round.iter().map(|s| s.sequence).collect::<Vec<_>>();
        let rounds: Vec<Vec<Sequence>> = rounds(all.iter()).iter().map(sequences).collect();
        assert_eq!(rounds, [vec![1, 2, 4], vec![3], vec![5]]);
    }
}
