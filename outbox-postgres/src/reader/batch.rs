//! What one fetch has gathered, within its limits.

use std::ops::Range;

use outbox_core::store::{DueHold, FetchRequest, Fetched, Page, Row, Sequence};

use super::decode::Read;

#[derive(Debug)]
pub(super) struct Batch {
    reads: Vec<Read>,
    holds: Vec<(DueHold, Option<Read>)>,
    page: Page,
    /// The bytes that are left when half of them are taken.
    bytes_half: usize,
}

impl Batch {
    pub(super) fn new(request: &FetchRequest) -> Self {
        let page = Page::new(request);
        let bytes_half = page.bytes_left().div_ceil(2);
        Self { reads: Vec::new(), holds: Vec::new(), page, bytes_half }
    }

    /// How many more rows may be added; 0 once the bytes are reached.
    pub(super) fn room(&self) -> usize {
        self.page.events_left()
    }

    /// Nothing is in it yet, or half of the bytes are left.
    pub(super) fn has_half(&self) -> bool {
        self.page.is_empty() || self.page.bytes_left() > self.bytes_half
    }

    /// A limit was hit, here or by one of the reads, if it is true.
    pub(super) fn more_if(&mut self, more: bool) {
        if more {
            self.page.set_more();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.reads.len()
    }

    pub(super) fn push(&mut self, read: Read) {
        self.count(&read);
        self.reads.push(read);
    }

    pub(super) fn push_hold(&mut self, hold: DueHold, read: Option<Read>) {
        read.iter().for_each(|read| self.count(read));
        self.holds.push((hold, read));
    }

    fn count(&mut self, read: &Read) {
        self.page.take(read.bytes());
    }

    /// Takes rows out again, and returns their sequences.
    pub(super) fn take_back(&mut self, range: Range<usize>) -> Vec<Sequence> {
        let taken: Vec<Read> = self.reads.drain(range).collect();
        taken.iter().for_each(|read| self.page.put_back(read.bytes()));
        taken.into_iter().map(|read| read.row.sequence).collect()
    }

    /// The rows whose payloads are still to be read.
    pub(super) fn missing(&mut self) -> impl Iterator<Item = &mut Read> {
        let held = self.holds.iter_mut().filter_map(|(_, read)| read.as_mut());
        self.reads.iter_mut().chain(held).filter(|read| read.missing_bytes > 0)
    }

    /// What the relay gets: rows in ascending order.
    pub(super) fn finish(mut self) -> Fetched {
        self.reads.sort_unstable_by_key(|read| read.row.sequence);
        let row = |read: Read| -> Row { read.row };
        Fetched::default()
            .with_rows(self.reads.into_iter().map(row).collect())
            .with_due_holds(self.holds.into_iter().map(|(hold, read)| hold.with_row(read.map(row))).collect())
            .with_more(self.page.more())
    }
}
