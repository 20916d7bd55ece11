//! What one fetch has gathered, within its limits.

use std::ops::Range;

use outbox_core::{DueHold, Fetched, Row, Sequence};

use super::decode::Read;

#[derive(Debug)]
pub(super) struct Batch {
    reads: Vec<Read>,
    holds: Vec<(DueHold, Option<Read>)>,
    events: usize,
    bytes: usize,
    events_max: usize,
    bytes_max: usize,
    /// A limit was hit, here or by one of the reads.
    pub(super) more: bool,
}

impl Batch {
    pub(super) fn new(events_max: usize, bytes_max: usize) -> Self {
        Self {
            reads: Vec::new(),
            holds: Vec::new(),
            events: 0,
            bytes: 0,
            events_max: events_max.max(1),
            bytes_max: bytes_max.max(1),
            more: false,
        }
    }

    /// How many more rows may be added; 0 once the bytes are reached.
    pub(super) fn room(&self) -> usize {
        if self.bytes < self.bytes_max { self.events_max - self.events } else { 0 }
    }

    /// Nothing is in it yet, or half of the bytes are left.
    pub(super) fn has_half(&self) -> bool {
        self.events == 0 || self.bytes < self.bytes_max / 2
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
        self.events += 1;
        self.bytes += read.bytes();
    }

    /// Takes rows out again, and returns their sequences.
    pub(super) fn take_back(&mut self, range: Range<usize>) -> Vec<Sequence> {
        let taken: Vec<Read> = self.reads.drain(range).collect();
        self.events -= taken.len();
        self.bytes -= taken.iter().map(Read::bytes).sum::<usize>();
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
        Fetched {
            rows: self.reads.into_iter().map(row).collect(),
            due_holds: self
                .holds
                .into_iter()
                .map(|(hold, read)| DueHold { row: read.map(row), ..hold })
                .collect(),
            more: self.more,
            ..Fetched::default()
        }
    }
}
