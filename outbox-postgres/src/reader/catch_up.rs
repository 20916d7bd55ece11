//! What lies behind the read position: claimed partitions, aggregates whose hold is gone, scheduled events.

use std::{ops::Range, sync::Arc};

use futures::TryStreamExt as _;
use outbox_core::{
    AggregateKey,
    store::{Lease, Partition, Sequence},
};
use sqlx::{AssertSqlSafe, Row as _};

use super::{
    Batch, Bound, COLUMN_COUNT, Known, PostgresReader, Probe, Progress, decode, keys, leases::Phase, limit,
    schedule::COLLECTED_MAX,
};
use crate::codec::{Micros, partition_code, partition_of};

/// The most numbers that one step of a pass goes over, sent and foreign rows included: about 10 ms.
const STEP: Sequence = 20_000;

/// When a scheduled event that has become due has its turn.
enum Timing {
    /// Everything earlier of its aggregate has been returned.
    Now,
    /// The scan that it belongs to will come to it.
    Ahead,
    /// Its aggregate cannot be read now.
    Later,
}

impl PostgresReader {
    /// Takes up leases that were not read before, and drops what belongs to those that are gone.
    pub(super) async fn adopt(&mut self, asked: &[Lease]) -> Result<(), sqlx::Error> {
        let new = self.leases.adopt(asked);
        if self.bound.is_none() {
            let inherited = self.database.inherited().remove(&self.relay);
            self.keys.inherit(inherited.unwrap_or_default());
        }
        let leases = &self.leases;
        self.schedule.retain(|partition| leases.get(partition).is_some());
        self.keys.adopt(|partition| {
            asked.iter().find(|lease| lease.partition == partition).map(|lease| lease.epoch)
        });
        if new.is_empty() {
            return Ok(());
        }
        let floors = self.stored_floors().await?;
        let found: Vec<(Lease, Sequence)> = floors.into_iter().filter(|(l, _)| new.contains(l)).collect();
        // A lease that is not found is lost, and its partition contributes nothing.
        let Some(lowest) = found.iter().map(|(_, floor)| *floor).min() else { return Ok(()) };
        let phase = if self.bound.is_some() { Phase::Waiting } else { Phase::Ready };
        self.bound.get_or_insert_with(|| Bound::new(lowest));
        found.into_iter().for_each(|(lease, floor)| self.leases.add(lease, floor, phase));
        // Scheduled events of theirs may have become due, anywhere below their floors.
        self.schedule.again = true;
        Ok(())
    }

    /// The floors of the partitions that this relay owns.
    pub(super) async fn stored_floors(&mut self) -> Result<Vec<(Lease, Sequence)>, sqlx::Error> {
        let rows: Vec<(i16, i64, Sequence)> = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.sql.floors)))
            .bind(self.relay.0)
            .fetch_all(&mut self.session.connection)
            .await?;
        let lease = |partition, epoch| Lease { partition: partition_of(partition), epoch };
        Ok(rows.into_iter().map(|(partition, epoch, floor)| (lease(partition, epoch), floor)).collect())
    }

    pub(super) async fn stored_floor(&mut self, partition: Partition) -> Result<Sequence, sqlx::Error> {
        let floors = self.stored_floors().await?;
        let floor = floors.into_iter().find(|(lease, _)| lease.partition == partition);
        Ok(floor.map_or(0, |(_, floor)| floor))
    }

    /// Collects the scheduled events behind the read position that have become due.
    pub(super) async fn look_at_schedule(&mut self, bound: &Bound, probe: &Probe) -> Result<(), sqlx::Error> {
        if self.schedule.queue.len() >= COLLECTED_MAX {
            return Ok(());
        }
        if !self.schedule.must_look() && probe.next_scheduled_ms.is_none_or(|ms| ms > 0) {
            self.schedule.pass(probe.now);
            return Ok(());
        }
        let (time, sequence) = self.schedule.from();
        let found: Vec<(Micros, Sequence)> = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.sql.due)))
            .bind(time)
            .bind(sequence)
            .bind(probe.now)
            .bind(self.leases.all())
            .bind(bound.read)
            .bind(limit(COLLECTED_MAX))
            .fetch_all(&mut self.session.connection)
            .await?;
        self.schedule.collect(&found, probe.now, found.len() == COLLECTED_MAX);
        Ok(())
    }

    /// Reads scheduled events that have become due, in ascending order; returns their places in the batch.
    pub(super) async fn read_scheduled(
        &mut self,
        bound: &Bound,
        probe: &Probe,
        known: &mut Known<'_>,
        batch: &mut Batch,
    ) -> Result<Range<usize>, sqlx::Error> {
        let start = batch.len();
        self.schedule.queue.retain(|sequence| !known.contains(*sequence));
        let chunk: Vec<Sequence> = self.schedule.queue.iter().copied().take(batch.room()).collect();
        if chunk.is_empty() {
            return Ok(start..start);
        }
        let mut rows = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.due_rows)))
            .bind(&chunk)
            .bind(self.leases.all())
            .fetch(&mut self.session.connection);
        // The rows come in the order of the chunk; one that does not come is not pending any more.
        let mut end = chunk.last().copied();
        while let Some(row) = rows.try_next().await? {
            let read = decode(&row, probe.now)?;
            let held: bool = row.try_get(COLUMN_COUNT)?;
            if batch.room() == 0 {
                end = Some(read.row.sequence - 1);
                break;
            }
            let timing = timing(&self.leases, &self.keys, &read.row, bound.read, held);
            match timing {
                Timing::Now => {
                    known.read.push(read.row.sequence);
                    batch.push(read);
                }
                Timing::Ahead => {}
                Timing::Later => {
                    self.schedule.defer(read.row.key, read.row.partition, read.row.sequence);
                }
            }
        }
        if let Some(end) = end {
            self.schedule.queue = self.schedule.queue.split_off(&(end + 1));
        }
        Ok(start..batch.len())
    }

    /// Takes note of the aggregates of which the relay wants no more at present.
    pub(super) async fn note_full(
        &mut self,
        bound: &Bound,
        full: &[AggregateKey],
    ) -> Result<(), sqlx::Error> {
        let relieved = self.keys.set_full(full);
        if !relieved.is_empty() {
            self.schedule.release(|key, _| relieved.contains(key));
        }
        let new: Vec<&AggregateKey> = full.iter().filter(|key| self.keys.get(key).is_none()).collect();
        if new.is_empty() {
            return Ok(());
        }
        let types: Vec<&str> = new.iter().map(|key| key.aggregate_type()).collect();
        let ids: Vec<&str> = new.iter().map(|key| key.aggregate_id()).collect();
        let parts: Vec<i16> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.parts)))
            .bind(types)
            .bind(ids)
            .fetch_all(&mut self.session.connection)
            .await?;
        for (key, partition) in new.into_iter().zip(parts) {
            let partition = partition_of(partition);
            let progress = self.leases.progress(partition, bound);
            if let (Some(lease), Some(progress)) = (self.leases.lease(partition), progress) {
                self.keys.put_full(key.clone(), lease, progress);
            }
        }
        Ok(())
    }

    /// Reads on what was full, from where it was left.
    pub(super) async fn pass_hot(
        &mut self,
        bound: &Bound,
        probe: &Probe,
        known: &mut Known<'_>,
        batch: &mut Batch,
    ) -> Result<(), sqlx::Error> {
        for near in [true, false] {
            let Some(position) = self.keys.hot(near, bound.read) else { continue };
            if batch.room() == 0 || !self.schedule.queue.is_empty() {
                continue;
            }
            let chosen =
                |phase| matches!(phase, keys::Phase::Hot(at) if keys::is_near(at, bound.read) == near);
            let aggregates = self.keys.arrays(chosen);
            let sql = Arc::clone(&self.sql.pass_keys);
            let parts = self.leases.all();
            let position = self.pass(sql, (bound, probe), position, aggregates, parts, known, batch).await?;
            let done = self.keys.advance_hot(near, bound.read, position);
            if !done.is_empty() {
                self.schedule.release(|key, _| done.contains(key));
            }
        }
        Ok(())
    }

    /// Reads what waited behind holds that are gone.
    pub(super) async fn pass_keys(
        &mut self,
        bound: &Bound,
        probe: &Probe,
        known: &mut Known<'_>,
        batch: &mut Batch,
    ) -> Result<(), sqlx::Error> {
        let started = self.keys.start(bound.read);
        if !started.is_empty() {
            self.schedule.release(|key, _| started.contains(key));
        }
        for lane in 0..keys::LANES {
            let Some(position) = self.keys.lane(lane) else { continue };
            // Scheduled events from before the holds come first; they are read at the next fetch.
            if batch.room() == 0 || !self.schedule.queue.is_empty() {
                continue;
            }
            let aggregates = self.keys.arrays(|phase| phase == keys::Phase::Passing(lane));
            let sql = Arc::clone(&self.sql.pass_keys);
            let parts = self.leases.all();
            let position = self.pass(sql, (bound, probe), position, aggregates, parts, known, batch).await?;
            self.keys.advance(lane, position);
            if position.read >= bound.read {
                let done = self.keys.complete(lane);
                self.schedule.release(|key, _| done.contains(key));
            }
        }
        Ok(())
    }

    /// Reads partitions that were claimed since the reader began, from their floors.
    pub(super) async fn pass_leases(
        &mut self,
        bound: &Bound,
        probe: &Probe,
        known: &mut Known<'_>,
        batch: &mut Batch,
    ) -> Result<(), sqlx::Error> {
        if self.leases.start() {
            let leases = &self.leases;
            self.schedule.release(|_, partition| {
                leases.get(partition).is_some_and(|lease| lease.phase == Phase::Passing)
            });
        }
        let Some(position) = self.leases.pass else { return Ok(()) };
        if batch.room() == 0 || !self.schedule.queue.is_empty() {
            return Ok(());
        }
        let parts = self.leases.parts(Phase::Passing);
        let aggregates = self.keys.arrays(|_| true);
        let sql = Arc::clone(&self.sql.pass_leases);
        let position =
            self.pass(sql, (bound, probe), position, aggregates, parts.clone(), known, batch).await?;
        self.leases.pass = Some(position);
        if position.read >= bound.read {
            self.leases.complete();
            self.schedule.release(|_, partition| parts.contains(&partition_code(partition)));
        }
        Ok(())
    }

    /// One step of a pass: what is late behind its position, and the next stretch. Returns the new position.
    #[expect(clippy::too_many_arguments, reason = "they are the parameters of one statement")]
    async fn pass(
        &mut self,
        sql: Arc<str>,
        (bound, probe): (&Bound, &Probe),
        position: Progress,
        (types, ids): (Vec<String>, Vec<String>),
        parts: Vec<i16>,
        known: &mut Known<'_>,
        batch: &mut Batch,
    ) -> Result<Progress, sqlx::Error> {
        let low = position.visible;
        let high = position.read.saturating_add(STEP).min(bound.read);
        if low >= high {
            return Ok(position);
        }
        // Half of the room, so that the main scan has a share.
        let max = batch.room().div_ceil(2);
        let mut rows = sqlx::query(AssertSqlSafe(sql))
            .bind(low)
            .bind(high)
            .bind(types)
            .bind(ids)
            .bind(self.schedule.due_until())
            .bind(known.between(low, high))
            .bind(parts)
            .bind(limit(max))
            .fetch(&mut self.session.connection);
        let (mut count, mut last) = (0, low);
        while let Some(row) = rows.try_next().await? {
            if batch.room() == 0 {
                count = max;
                break;
            }
            let read = decode(&row, probe.now)?;
            (count, last) = (count + 1, read.row.sequence);
            known.read.push(read.row.sequence);
            batch.push(read);
        }
        let limited = count >= max;
        batch.more_if(limited);
        // If not even all that is late is returned, the pass stays where it is.
        Ok(match limited {
            true if last < position.read => position,
            true => Progress::to(last, bound),
            false => Progress::to(high, bound),
        })
    }
}

fn timing(
    leases: &super::Leases,
    keys: &super::Keys,
    row: &outbox_core::store::Row,
    read: Sequence,
    held: bool,
) -> Timing {
    let Some(lease) = leases.get(row.partition) else { return Timing::Later };
    if held {
        return Timing::Later;
    }
    if let Some(key) = keys.get(&row.key) {
        return match key.phase {
            keys::Phase::Passing(_) if row.sequence < key.from => Timing::Now,
            keys::Phase::Passing(lane) if keys.lane(lane).is_some_and(|at| row.sequence > at.read) => {
                Timing::Ahead
            }
            keys::Phase::Hot(_) if row.sequence < key.from => Timing::Now,
            keys::Phase::Hot(at) if row.sequence > at.read => Timing::Ahead,
            _ => Timing::Later,
        };
    }
    match lease.phase {
        Phase::Ready if row.sequence <= read => Timing::Now,
        Phase::Ready => Timing::Ahead,
        Phase::Passing if row.sequence <= lease.floor => Timing::Now,
        Phase::Passing if leases.pass.is_some_and(|at| row.sequence > at.read) => Timing::Ahead,
        Phase::Passing | Phase::Waiting => Timing::Later,
    }
}
