//! What one fetch has gathered, within its limits.

use outbox_core::{DueHold, Fetched, Row};

#[derive(Debug)]
pub(super) struct Batch {
    rows: Vec<Row>,
    holds: Vec<DueHold>,
    events_left: usize,
    bytes_left: usize,
    /// A limit was hit, here or by one of the reads.
    pub(super) more: bool,
}

impl Batch {
    pub(super) fn new(events_max: usize, bytes_max: usize) -> Self {
        Self {
            rows: Vec::new(),
            holds: Vec::new(),
            events_left: events_max.max(1),
            bytes_left: bytes_max.max(1),
            more: false,
        }
    }

    /// How many more rows may be added; 0 once the bytes are reached.
    pub(super) fn room(&self) -> usize {
        if self.bytes_left > 0 { self.events_left } else { 0 }
    }

    pub(super) fn bytes_left(&self) -> usize {
        self.bytes_left
    }

    pub(super) fn push(&mut self, row: Row) {
        self.count(&row);
        self.rows.push(row);
    }

    pub(super) fn push_hold(&mut self, hold: DueHold) {
        hold.row.iter().for_each(|row| self.count(row));
        self.holds.push(hold);
    }

    fn count(&mut self, row: &Row) {
        self.events_left = self.events_left.saturating_sub(1);
        self.bytes_left = self.bytes_left.saturating_sub(row.bytes());
    }

    pub(super) fn finish(self) -> Fetched {
        Fetched { rows: self.rows, due_holds: self.holds, more: self.more, ..Fetched::default() }
    }
}
