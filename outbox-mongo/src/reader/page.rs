//! What one answer holds and still has room for.

use outbox_core::Row;

pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    pub(super) events_left: usize,
    pub(super) bytes_left: usize,
    pub(super) more: bool,
}

impl Page {
    /// No further row fits. The first one always does.
    pub(super) fn is_full(&self) -> bool {
        self.events_left == 0 || self.bytes_left == 0
    }

    pub(super) fn count(&mut self, row: &Row) {
        self.events_left = self.events_left.saturating_sub(1);
        self.bytes_left = self.bytes_left.saturating_sub(row.bytes());
    }

    pub(super) fn add(&mut self, row: Row) {
        self.count(&row);
        self.rows.push(row);
    }
}
