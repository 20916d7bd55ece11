//! Holds whose time has come, and what operators have paused.

use std::{collections::HashMap, sync::Arc};

use outbox_core::{
    AggregateKey,
    store::{DueHold, Partition, Sequence},
};
use sqlx::{AssertSqlSafe, Row as _, mysql::MySqlRow};

use super::{Batch, MysqlReader, PAUSED_OVERLAP, Probe, decode, is_known};
use crate::codec::{json, micros};

/// The most due holds that one fetch returns.
const HOLDS_MAX: usize = 256;
/// The most paused aggregates that one fetch returns.
const PAUSED_MAX: usize = 1_000;

impl MysqlReader {
    pub(super) async fn read_due_holds(
        &mut self,
        known: &[Sequence],
        batch: &mut Batch,
    ) -> Result<(), sqlx::Error> {
        // Half of the room at most: a topic that comes back must not keep back the others.
        let max = batch.page.events_left().div_ceil(2).min(HOLDS_MAX);
        let found = self.due_holds(max, known).await?;
        if found.len() > max {
            batch.page.set_more();
        }
        let found = &found[..found.len().min(max)];
        let places = found.iter().enumerate().filter_map(|(n, hold)| Some((n, hold.sequence?)));
        let places: Vec<(usize, Sequence)> = places.collect();
        let bytes_max = batch.page.bytes_left().div_ceil(2);
        let mut rows = HashMap::new();
        if !places.is_empty() {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.hold_rows))).bind(json(places));
            let query = query.bind(i64::try_from(bytes_max).unwrap_or(i64::MAX));
            for row in query.fetch_all(&mut self.connection).await? {
                let row = decode(&row)?;
                rows.insert(row.sequence, row);
            }
        }
        let mut bytes = 0;
        for hold in found {
            // Beyond these bytes a row that was not read may still be there.
            if bytes >= bytes_max {
                batch.page.set_more();
                break;
            }
            let row = hold.sequence.and_then(|sequence| rows.remove(&sequence));
            bytes += row.as_ref().map_or(0, outbox_core::store::Row::bytes);
            self.holds_out.insert(hold.key.clone(), hold.partition);
            batch.push_hold(hold.clone().with_row(row));
        }
        Ok(())
    }

    /// Due holds that are not out, one more than asked for if there are more.
    async fn due_holds(&mut self, max: usize, known: &[Sequence]) -> Result<Vec<DueHold>, sqlx::Error> {
        // Those that are out are due as well.
        let limit = max + self.holds_out.len() + 1;
        let rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.holds)))
            .bind(self.parts())
            .bind(u64::try_from(limit).unwrap_or(u64::MAX))
            .fetch_all(&mut self.connection)
            .await?;
        let mut found = Vec::new();
        for row in &rows {
            let key = key(row, 1)?;
            let sequence: Option<Sequence> = row.try_get(3)?;
            // A relay that still holds the event would not know this one for another attempt, and never
            // answer.
            let is_out = self.holds_out.contains_key(&key) || sequence.is_some_and(|s| is_known(known, s));
            if !is_out && found.len() <= max {
                let partition = Partition::from(row.try_get::<u8, _>(0)?);
                found.push(DueHold::new(key, partition, sequence, None));
            }
        }
        Ok(found)
    }

    /// Aggregates that were paused since the last look, and shortly before it.
    pub(super) async fn paused(&mut self, probe: &Probe) -> Result<Vec<AggregateKey>, sqlx::Error> {
        if !probe.paused {
            self.paused_looked = probe.now;
            return Ok(Vec::new());
        }
        let overlap = micros(PAUSED_OVERLAP);
        let rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.paused)))
            .bind(self.paused_looked.saturating_sub(overlap))
            .bind(self.parts())
            .bind(u64::try_from(PAUSED_MAX).unwrap_or(u64::MAX))
            .fetch_all(&mut self.connection)
            .await?;
        self.paused_looked = match rows.last() {
            Some(last) if rows.len() == PAUSED_MAX => last.try_get::<i64, _>(2)?.saturating_add(overlap),
            _ => probe.now,
        };
        rows.iter().map(|row| key(row, 0)).collect()
    }
}

/// The aggregate whose names stand at a column and the next.
fn key(row: &MySqlRow, index: usize) -> Result<AggregateKey, sqlx::Error> {
    let text = |index| row.try_get::<&[u8], _>(index).map(String::from_utf8_lossy);
    Ok(AggregateKey::new(&text(index)?, &text(index + 1)?))
}
