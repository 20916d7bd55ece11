//! The visibility bound: below which sequence no writer can still commit.
//!
//! A sequence is drawn before its row commits, so a row with a low number may become visible after rows with
//! higher ones. Every writer of the table holds a lock on it from before it draws its first number until
//! after its commit is visible. So: read the last number drawn (F), *then* the writers that are open (C). A
//! writer that C shows for the first time has drawn nothing up to the F of the probe before; one that has
//! gone has committed, visibly to every later snapshot, or never will. The bound (V) is the least of the
//! floors of the open writers, or F without any.
//!
//! Rows are read up to a position (R). Each fetch reads what is new above R and whatever has become visible
//! between V and R, in one statement, and only then moves V.

use std::collections::HashMap;

use outbox_core::store::Sequence;

#[derive(Debug)]
pub(super) struct Bound {
    /// V: everything visible at or below has been read, and nothing more can become visible there.
    pub(super) visible: Sequence,
    /// R: everything visible at or below, at the time of the last fetch, has been read.
    pub(super) read: Sequence,
    /// F of the last probe.
    pub(super) drawn: Sequence,
    /// The open writers of the last probe, each with a number that it has drawn nothing below or at.
    writers: HashMap<String, Sequence>,
}

impl Bound {
    /// Starts from a position that was persisted as read and visible.
    pub(super) fn new(floor: Sequence) -> Self {
        Self { visible: floor, read: floor, drawn: floor, writers: HashMap::new() }
    }

    /// Something may be new: numbers were drawn and not read, or a writer was open.
    pub(super) fn behind(&self) -> bool {
        self.visible < self.drawn || self.read < self.drawn
    }

    /// Takes a probe and returns the next V, to be set once the fetch after it has succeeded. `None` for the
    /// writers: they were not looked at, since nothing was drawn and no writer was open.
    pub(super) fn observe(&mut self, drawn: Sequence, writers: Option<Vec<String>>) -> Sequence {
        let Some(writers) = writers else { return self.visible };
        let floor = |writer: &String| match self.writers.get(writer) {
            Some(floor) => *floor,
            // PREPARE TRANSACTION passes the locks on to another owner, which may be any of the writers known
            // so far.
            None if is_prepared(writer) => self.visible,
            None => self.drawn,
        };
        self.writers = writers
            .into_iter()
            .map(|writer| {
                let floor = floor(&writer);
                (writer, floor)
            })
            .collect();
        self.drawn = drawn;
        self.writers.values().copied().min().unwrap_or(drawn)
    }
}

/// The mark that the probe puts before a prepared transaction, which has no process.
pub(super) const PREPARED: &str = "prepared ";

fn is_prepared(writer: &str) -> bool {
    writer.starts_with(PREPARED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_new_writer_is_bounded_by_the_number_drawn_before_it_was_seen() {
        let mut bound = Bound::new(0);
        assert_eq!(bound.observe(10, writers(&[])), 10);
        assert_eq!(bound.observe(20, writers(&["a"])), 10);
        assert_eq!(bound.observe(30, writers(&["a", "b"])), 10);
        assert_eq!(bound.observe(40, writers(&["b"])), 20);
        assert_eq!(bound.observe(50, writers(&[])), 50);
    }

    #[test]
    fn a_writer_that_was_open_at_the_start_may_have_drawn_anything_above_the_floor() {
        let mut bound = Bound::new(7);
        assert_eq!(bound.observe(100, writers(&["a"])), 7);
        assert_eq!(bound.observe(120, writers(&["b"])), 100);
    }

    #[test]
    fn a_prepared_transaction_inherits_the_least_of_what_any_writer_may_have_drawn() {
        let mut bound = Bound::new(0);
        bound.visible = bound.observe(10, writers(&["a"]));
        assert_eq!(bound.observe(90, writers(&["prepared -1/7"])), 0);
        assert_eq!(bound.observe(95, writers(&["prepared -1/7"])), 0);
        assert_eq!(bound.observe(99, writers(&[])), 99);
    }

    #[test]
    fn an_idle_table_is_not_behind() {
        let mut bound = Bound::new(0);
        bound.visible = bound.observe(5, writers(&[]));
        assert!(bound.behind(), "R is still below F");
        bound.read = 5;
        assert!(!bound.behind());
        assert_eq!(bound.observe(5, None), 5);
        assert!(!bound.behind());
    }
}
