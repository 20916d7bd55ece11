//! The limits of one fetch: [`Page`].

use super::FetchRequest;

/// How much one fetch may still return: the meaning of [`FetchRequest::events_max`] and
/// [`FetchRequest::bytes_max`], counted once for every store. Held events count like all others.
///
/// The first row always fits, however large it is, so that a large one cannot keep a relay from ever reading
/// it. A page is full once its events or its bytes are reached; the row that reaches the bytes is the last of
/// it.
#[derive(Debug, Clone)]
pub struct Page {
    events_max: usize,
    bytes_max: usize,
    events: usize,
    bytes: usize,
    more: bool,
}

impl Page {
    /// An empty page with the limits of a request, each at least 1.
    pub fn new(request: &FetchRequest) -> Self {
        Self {
            events_max: request.events_max.max(1),
            bytes_max: request.bytes_max.max(1),
            events: 0,
            bytes: 0,
            more: false,
        }
    }

    /// Nothing has been counted yet.
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// No further row fits.
    pub fn is_full(&self) -> bool {
        self.events_left() == 0
    }

    /// How many more rows fit; 0 once the bytes are reached.
    pub fn events_left(&self) -> usize {
        if self.bytes < self.bytes_max { self.events_max - self.events } else { 0 }
    }

    /// How many bytes are left until the page is full.
    pub fn bytes_left(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    /// Counts a row of so many [`Row::bytes`](super::Row::bytes).
    pub fn take(&mut self, bytes: usize) {
        self.events = (self.events + 1).min(self.events_max);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Takes a row that was counted out again.
    pub fn put_back(&mut self, bytes: usize) {
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// There is more than fits: [`Fetched::more`](super::Fetched::more).
    pub fn set_more(&mut self) {
        self.more = true;
    }

    /// Something was left out because it did not fit.
    pub fn more(&self) -> bool {
        self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(events_max: usize, bytes_max: usize) -> Page {
        Page::new(&FetchRequest { events_max, bytes_max, ..FetchRequest::default() })
    }

    #[test]
    fn a_page_is_full_at_its_events_or_at_its_bytes() {
        let mut page = page(2, 100);
        assert!(page.is_empty() && !page.is_full());
        page.take(99);
        assert_eq!((page.events_left(), page.bytes_left()), (1, 1));
        page.take(1);
        assert!(page.is_full());
        page.put_back(1);
        assert_eq!((page.events_left(), page.bytes_left()), (1, 1));
        page.take(500);
        assert_eq!((page.events_left(), page.bytes_left()), (0, 0));
    }

    #[test]
    fn the_first_row_fits_whatever_its_size_and_whatever_the_limits() {
        let mut page = page(0, 0);
        assert!(!page.is_full());
        page.take(1 << 30);
        assert!(page.is_full());
    }

    #[test]
    fn that_there_is_more_is_told() {
        let mut page = page(1, 1);
        assert!(!page.more());
        page.set_more();
        assert!(page.more());
    }
}
