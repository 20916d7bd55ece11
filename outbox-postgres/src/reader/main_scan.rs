//! The main scan: late rows and new ones, in one statement.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use outbox_core::store::Sequence;
use sqlx::{AssertSqlSafe, Row as _};

use super::{
    Batch, Bound, COLUMN_COUNT, Known, PostgresReader, Probe, decode, leases, limit,
    statements::{KIND_FEW_HOLDS, KIND_LATE, KIND_MANY_HOLDS},
};

/// The most numbers that the main scan passes in one fetch, rows of others and sent ones included: 100 to 200
/// ms.
const SPAN_MAX: Sequence = 500_000;
/// A scan that goes over more numbers for late rows than this, and takes longer than that, is followed by a
/// rest.
const LATE_LONG: Sequence = 50_000;
const SCAN_LONG: Duration = Duration::from_millis(20);
const REST_MAX: Duration = Duration::from_secs(1);
/// How long many holds are expected to stay many.
const MANY_HOLDS: Duration = Duration::from_secs(1);

/// How far the main statement came.
struct Scan {
    late_max: usize,
    new_max: usize,
    end: Sequence,
    late: usize,
    new: usize,
    last_new: Sequence,
    cut: bool,
}

impl PostgresReader {
    /// Reads what has become visible late and what is new, and moves R and V. `due` are the places in the
    /// batch of scheduled events, which must not be returned unless all late rows are.
    pub(super) async fn read_main(
        &mut self,
        bound: &mut Bound,
        probe: &Probe,
        known: &Known<'_>,
        batch: &mut Batch,
        due: Range<usize>,
    ) -> Result<(), sqlx::Error> {
        let room = batch.room();
        if !bound.behind() || (room == 0 && due.is_empty()) {
            return Ok(());
        }
        // While scheduled events wait to be returned, nothing newer is.
        let new_max = if self.schedule.queue.is_empty() { room } else { 0 };
        let mut scan = Scan {
            late_max: room.max(1),
            new_max,
            end: bound.drawn.min(bound.read.saturating_add(SPAN_MAX)),
            late: 0,
            new: 0,
            last_new: bound.read,
            cut: false,
        };
        if self.rests() && due.is_empty() {
            return Ok(());
        }
        let (begun, long) = (Instant::now(), bound.read - bound.visible > LATE_LONG);
        let mut many = self.many_holds_at.is_some_and(|at| at.elapsed() < MANY_HOLDS);
        while self.scan(bound, probe, known, batch, &mut scan, many).await? {
            (many, self.many_holds_at) = (true, Some(Instant::now()));
        }
        if scan.late >= scan.late_max {
            // Not all late rows are returned, so nothing that may stand behind one of them is.
            self.schedule.queue.extend(batch.take_back(due));
            batch.more_if(true);
            return Ok(());
        }
        bound.visible = probe.next_visible;
        if new_max == 0 {
            return Ok(());
        }
        let limited = scan.cut || scan.new >= new_max;
        let took = begun.elapsed();
        if long && !limited && took > SCAN_LONG {
            self.rest_until = Some(Instant::now() + (3 * took).min(REST_MAX));
        }
        batch.more_if(limited);
        bound.read = if limited { scan.last_new } else { scan.end };
        Ok(())
    }

    /// Runs the main statement; true if it found many holds where few were expected, and returned nothing.
    async fn scan(
        &mut self,
        bound: &Bound,
        probe: &Probe,
        known: &Known<'_>,
        batch: &mut Batch,
        scan: &mut Scan,
        many_holds: bool,
    ) -> Result<bool, sqlx::Error> {
        let sql = if many_holds { &self.sql.main_held } else { &self.sql.main };
        let (types, ids) = self.keys.arrays(|_| true);
        let mut rows = sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(bound.visible)
            .bind(bound.read)
            .bind(scan.end)
            .bind(self.leases.parts(leases::Phase::Ready))
            .bind(self.schedule.due_until())
            .bind(known.between(bound.visible, bound.read))
            .bind(limit(scan.late_max))
            .bind(limit(scan.new_max))
            .bind(types)
            .bind(ids)
            .fetch(&mut self.session.connection);
        while let Some(row) = rows.try_next().await? {
            match row.try_get::<i32, _>(COLUMN_COUNT)? {
                KIND_FEW_HOLDS => {}
                KIND_MANY_HOLDS => return Ok(true),
                KIND_LATE => {
                    let read = decode(&row, probe.now)?;
                    scan.late += 1;
                    if batch.room() == 0 && scan.late > 1 {
                        // The bytes are reached: as if the limit were.
                        scan.late = scan.late_max;
                        break;
                    }
                    batch.push(read);
                }
                _ => {
                    if scan.late >= scan.late_max || batch.room() == 0 {
                        scan.cut = true;
                        break;
                    }
                    scan.new += 1;
                    let read = decode(&row, probe.now)?;
                    scan.last_new = read.row.sequence;
                    if !known.contains(read.row.sequence) {
                        batch.push(read);
                    }
                }
            }
        }
        Ok(false)
    }

    pub(super) fn rests(&self) -> bool {
        self.rest_until.is_some_and(|until| Instant::now() < until)
    }
}
