//! The persisted floors: below the floor of a partition nothing waits, unless it has a hold or is scheduled.
//!
//! It is where the next owner begins to read, and where the pass begins that reads what waited behind a hold.
//! It need not be exact, only never too high, so it is written every two seconds: often enough for passes to
//! be short, and seldom enough that the versions of these rows stay few while some other transaction keeps
//! them from being removed. Who removes a hold lowers it (see the settle), and the reader, which has returned
//! that hold, does not raise it again before everything behind the hold has been returned.

//!
//! An aggregate with a long backlog holds back the floor of its own partition, and no other.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use outbox_core::{
    StoreErrorKind,
    store::{Fetched, Partition, Sequence},
};
use sqlx::AssertSqlSafe;

use super::{Bound, PostgresReader, leases::Phase};
use crate::{codec::partition_code, error::classify};

const EVERY: Duration = Duration::from_secs(2);

impl PostgresReader {
    /// Raises the floors that have moved. `known` is what the relay holds, of all that was ever returned to
    /// it.
    pub(super) async fn raise_floors(
        &mut self,
        bound: &Bound,
        known: &[Sequence],
    ) -> Result<(), sqlx::Error> {
        if self.floors_raised.elapsed() < EVERY {
            return Ok(());
        }
        self.floors_raised = Instant::now();
        let (firsts, rest) = self.first_known(known);
        let read = bound.read.min(bound.visible).min(rest - 1);
        let (mut parts, mut epochs, mut seen, mut floors) = (vec![], vec![], vec![], vec![]);
        for (lease, stored) in self.stored_floors().await? {
            let ready = |state: &&super::leases::LeaseState| {
                state.epoch == lease.epoch && state.phase == Phase::Ready
            };
            if self.leases.get(lease.partition).filter(ready).is_none() {
                continue;
            }
            let first = firsts.get(&lease.partition).map_or(read, |first| read.min(first - 1));
            let floor = self.keys.floor(lease.partition).map_or(first, |keys| first.min(keys));
            if floor > stored {
                parts.push(partition_code(lease.partition));
                epochs.push(lease.epoch);
                seen.push(stored);
                floors.push(floor);
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        // Compared with the floor that was seen: one that was lowered meanwhile stays.
        let raised = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.raise_floors)))
            .bind(self.relay.0)
            .bind(parts)
            .bind(epochs)
            .bind(seen)
            .bind(floors)
            .execute(&mut self.session.connection)
            .await;
        match raised {
            // A settle that is stuck has the rows; the floors may wait for the next time.
            Err(error) if classify(&error) == StoreErrorKind::Conflict => Ok(()),
            raised => raised.map(drop),
        }
    }
    /// Takes note of the partitions of what is returned.
    pub(super) fn remember(&mut self, fetched: &Fetched) {
        let held = fetched.due_holds.iter().filter_map(|hold| hold.row.as_ref());
        let rows = fetched.rows.iter().chain(held);
        self.returned.extend(rows.map(|row| (row.sequence, row.partition)));
    }

    /// The first sequence that the relay holds of each partition, and of those that an earlier reader has
    /// returned, whose partitions are not known here.
    fn first_known(&mut self, known: &[Sequence]) -> (BTreeMap<Partition, Sequence>, Sequence) {
        self.returned.retain(|sequence, _| known.binary_search(sequence).is_ok());
        let (mut firsts, mut rest) = (BTreeMap::new(), Sequence::MAX);
        for sequence in known {
            match self.returned.get(sequence) {
                Some(partition) => _ = firsts.entry(*partition).or_insert(*sequence),
                None => rest = rest.min(*sequence),
            }
        }
        (firsts, rest)
    }
}
