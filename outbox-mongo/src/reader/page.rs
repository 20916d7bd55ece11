//! The rows of one answer, and the room that is left.

use outbox_core::store::{Page, Row};

/// The rows of one answer, counted by the core's [`Page`].
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) page: Page,
}

impl Rows {
    pub(super) fn add(&mut self, row: Row) {
        self.page.take(row.bytes());
        self.rows.push(row);
    }
}
