//! What one fetch has gathered, within its limits.

use outbox_core::store::{DueHold, FetchRequest, Fetched, Page, Row};

#[derive(Debug)]
pub(super) struct Batch {
    rows: Vec<Row>,
    holds: Vec<DueHold>,
    pub(super) page: Page,
}

impl Batch {
    pub(super) fn new(request: &FetchRequest) -> Self {
        Self { rows: Vec::new(), holds: Vec::new(), page: Page::new(request) }
    }

    pub(super) fn push(&mut self, row: Row) {
        self.page.take(row.bytes());
        self.rows.push(row);
    }

    pub(super) fn push_hold(&mut self, hold: DueHold) {
        hold.row.iter().for_each(|row| self.page.take(row.bytes()));
        self.holds.push(hold);
    }

    pub(super) fn finish(self) -> Fetched {
        Fetched::default().with_rows(self.rows).with_due_holds(self.holds).with_more(self.page.more())
    }
}
