//! Holds whose time has come, how they end, and what operators have paused.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use outbox_core::{
    AggregateKey,
    store::{DueHold, HoldEnd, Sequence},
};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Batch, Known, PAUSED_OVERLAP, PostgresReader, Probe, decode, keys, limit};
use crate::codec::{Micros, partition_of};

/// The most due holds that one fetch returns.
const HOLDS_MAX: usize = 256;
/// The most paused aggregates that one fetch returns, and how often they are looked for.
const PAUSED_MAX: i64 = 1_000;
const PAUSED_EVERY: Duration = Duration::from_millis(250);

impl PostgresReader {
    /// Takes note of how due holds ended.
    pub(super) async fn end_holds(&mut self, ended: &[HoldEnd]) -> Result<(), sqlx::Error> {
        for end in ended {
            let Some(lease) = self.leases.lease(end.partition) else { continue };
            if !end.removed {
                self.keys.held_again(&end.key);
                continue;
            }
            let from = match self.keys.get(&end.key) {
                Some(state) if keys::is_held(state.phase) => state.from,
                // Removed by an operator: the floor has been lowered to below what waits.
                _ => self.stored_floor(end.partition).await? + 1,
            };
            self.keys.wait(&end.key, lease, from);
        }
        Ok(())
    }

    /// Finds out what became of aggregates that the previous reader had returned.
    pub(super) async fn check_inherited(&mut self, known: &Known<'_>) -> Result<(), sqlx::Error> {
        let inherited = self.keys.in_phase(keys::Phase::Inherited);
        if inherited.is_empty() {
            return Ok(());
        }
        let (types, ids) = self.keys.arrays(|phase| phase == keys::Phase::Inherited);
        let rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.hold_states)))
            .bind(self.leases.all())
            .bind(types)
            .bind(ids)
            .fetch_all(&mut self.session.connection)
            .await?;
        let mut holds = HashMap::new();
        for row in rows {
            let state: (Option<Sequence>, bool) = (row.try_get(2)?, row.try_get(3)?);
            holds.insert(AggregateKey::new(row.try_get(0)?, row.try_get(1)?), state);
        }
        for (key, state) in inherited {
            match holds.get(&key) {
                None => self.keys.wait(&key, state.lease, state.from),
                Some((_, false)) => self.keys.held_again(&key),
                // The relay has the event and will tell.
                Some((Some(sequence), true)) if known.contains(*sequence) => {
                    self.keys.outstanding(key, state.lease, state.from);
                }
                // Returned again, with the other due holds.
                Some((_, true)) => {}
            }
        }
        Ok(())
    }

    pub(super) async fn read_due_holds(
        &mut self,
        probe: &Probe,
        batch: &mut Batch,
    ) -> Result<(), sqlx::Error> {
        // Half of the room at most, or every other turn: a failing topic must not keep back the others.
        let max = match batch.room() {
            1 => usize::from(self.turn),
            room => room.div_ceil(2).min(HOLDS_MAX),
        };
        if max == 0 {
            batch.more_if(true);
            return Ok(());
        }
        // An aggregate that is full, or is being read, may have been held anew: then it waits for that hold
        // first.
        let (types, ids) = self.keys.arrays(|phase| phase == keys::Phase::Outstanding);
        let rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.holds)))
            .bind(probe.now)
            .bind(self.leases.all())
            .bind(types)
            .bind(ids)
            .bind(limit(max))
            .fetch_all(&mut self.session.connection)
            .await?;
        batch.more_if(rows.len() == max);
        let mut holds: Vec<(DueHold, Sequence)> = Vec::with_capacity(rows.len());
        for row in &rows {
            let hold = DueHold::new(
                AggregateKey::new(row.try_get(1)?, row.try_get(2)?),
                partition_of(row.try_get(0)?),
                row.try_get(3)?,
                None,
            );
            holds.push((hold, row.try_get(4)?));
        }
        let sequences: Vec<Sequence> = holds.iter().filter_map(|(hold, _)| hold.sequence).collect();
        let mut reads = HashMap::new();
        if !sequences.is_empty() {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.hold_rows))).bind(sequences);
            let mut rows = query.bind(probe.now).fetch(&mut self.session.connection);
            while let Some(row) = rows.try_next().await? {
                let read = decode(&row, probe.now)?;
                reads.insert(read.row.sequence, read);
            }
        }
        for (hold, from) in holds {
            if !batch.has_half() {
                batch.more_if(true);
                break;
            }
            let read = hold.sequence.and_then(|sequence| reads.remove(&sequence));
            let Some(lease) = self.leases.lease(hold.partition) else { continue };
            self.keys.outstanding(hold.key.clone(), lease, from);
            batch.push_hold(hold, read);
        }
        Ok(())
    }

    pub(super) async fn paused(&mut self, probe: &Probe) -> Result<Vec<AggregateKey>, sqlx::Error> {
        if !probe.paused || self.paused_looked.is_some_and(|looked| looked.elapsed() < PAUSED_EVERY) {
            return Ok(Vec::new());
        }
        self.paused_looked = Some(Instant::now());
        let rows: Vec<(String, String, Micros)> = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.sql.paused)))
            .bind(self.paused_until)
            .bind(self.leases.all())
            .bind(PAUSED_MAX)
            .fetch_all(&mut self.session.connection)
            .await?;
        // Looked at again until it is old enough that nothing older can still commit.
        let settled = probe.now.minus(PAUSED_OVERLAP);
        self.paused_until = match rows.last() {
            Some((.., last)) if rows.len() == limit_len(PAUSED_MAX) => *last,
            _ => self.paused_until.max(settled),
        };
        Ok(rows.into_iter().map(|(kind, id, _)| AggregateKey::new(&kind, &id)).collect())
    }
}

fn limit_len(rows: i64) -> usize {
    usize::try_from(rows).unwrap_or_default()
}
