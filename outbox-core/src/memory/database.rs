//! What the clones of a store, its readers and its transactions share: [`Database`].

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};

use super::{state::State, time::after};
use crate::clock::Clock;

/// What the store's clock says when the [`Clock`] behind it says zero: 2026-01-01T00:00:00Z. Fixed, so that a
/// run under a simulated clock is the same every time.
const ORIGIN_SECONDS: i64 = 1_767_225_600;

/// The tables behind their lock, and the clock that they go by.
#[derive(Clone)]
pub(super) struct Database {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

impl Database {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Arc::new(Mutex::new(State::new())) }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        let origin = DateTime::<Utc>::from_timestamp(ORIGIN_SECONDS, 0).unwrap_or_default();
        after(origin, self.clock.now())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Database")
            .field("rows", &state.rows.len())
            .field("pending", &state.pending.len())
            .field("holds", &state.holds)
            .finish_non_exhaustive()
    }
}
