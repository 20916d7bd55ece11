//! Which lanes are full: an aggregate with a long backlog must not take the room of the others.
//!
//! A lane publishes one event at a time, so a few dozen are enough to keep it busy while more are read. From
//! its share of the buffer on it is full, and its aggregate is named in
//! [`FetchRequest::full`](crate::store::FetchRequest::full) until it has drained to half. As many full lanes
//! as can be named have half of the buffer, and the other half is left to the others.
//!
//! The set changes with the lanes: no fetch looks at all of them.

use std::collections::BTreeSet;

use super::RelayConfig;
use crate::{AggregateKey, store::FULL_MAX};

/// The least share, in events, of a buffer that is large enough for several of them.
const EVENTS_MIN: usize = 16;

/// What waits in a lane.
#[derive(Debug, Default)]
pub(crate) struct Load {
    events: usize,
    bytes: usize,
    full: bool,
}

/// The full lanes.
#[derive(Debug)]
pub(crate) struct Full {
    events_max: usize,
    bytes_max: usize,
    keys: BTreeSet<AggregateKey>,
    crowded: usize,
    relieved: bool,
}

impl Full {
    pub(crate) fn new(config: &RelayConfig) -> Self {
        let share = |buffer: usize| buffer / (2 * FULL_MAX);
        let events_min = EVENTS_MIN.min(config.buffer_events_max / 4).max(1);
        Self {
            events_max: share(config.buffer_events_max).max(events_min),
            bytes_max: share(config.buffer_bytes_max).max(1),
            keys: BTreeSet::new(),
            crowded: 0,
            relieved: false,
        }
    }

    /// From how many events on a lane is full.
    pub(crate) fn events_max(&self) -> usize {
        self.events_max
    }

    /// The same in bytes, if at least two events have them.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// An event was put into the lane.
    pub(crate) fn added(&mut self, key: &AggregateKey, load: &mut Load, bytes: usize) {
        load.events += 1;
        load.bytes += bytes;
        // One event keeps a lane busy, however large it is.
        let full = load.events >= self.events_max || (load.events > 1 && load.bytes >= self.bytes_max);
        if full && !load.full {
            load.full = true;
            self.keys.insert(key.clone());
        }
        self.crowded += usize::from(load.full);
    }

    /// An event was taken out of the lane.
    pub(crate) fn taken(&mut self, key: &AggregateKey, load: &mut Load, bytes: usize) {
        load.events = load.events.saturating_sub(1);
        load.bytes = load.bytes.saturating_sub(bytes);
        let half =
            load.events <= self.events_max / 2 && (load.events <= 1 || load.bytes <= self.bytes_max / 2);
        if load.full && half {
            self.drained(key, load);
        }
    }

    /// The lane is empty, or is to be filled anew.
    pub(crate) fn emptied(&mut self, key: &AggregateKey, load: &mut Load) {
        if load.full {
            self.drained(key, load);
        }
        *load = Load::default();
    }

    fn drained(&mut self, key: &AggregateKey, load: &mut Load) {
        load.full = false;
        self.keys.remove(key);
        self.relieved = true;
    }

    /// The full lanes; if there are more than can be named, the fullest.
    pub(crate) fn named<'a>(&self, load: impl Fn(&AggregateKey) -> Option<&'a Load>) -> Vec<AggregateKey> {
        let mut named: Vec<AggregateKey> = self.keys.iter().cloned().collect();
        if named.len() > FULL_MAX {
            let weight = |key: &AggregateKey| {
                load(key).map_or(0, |load| (load.events * self.bytes_max).max(load.bytes * self.events_max))
            };
            named.sort_by_cached_key(|key| std::cmp::Reverse(weight(key)));
            named.truncate(FULL_MAX);
        }
        named
    }

    /// How many events were put into full lanes since the last call.
    pub(crate) fn take_crowded(&mut self) -> usize {
        std::mem::take(&mut self.crowded)
    }

    /// True if a lane has ceased to be full since the last call: there is more to be read of it.
    pub(crate) fn take_relieved(&mut self) -> bool {
        std::mem::take(&mut self.relieved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(buffer_events_max: usize, buffer_bytes_max: usize) -> Full {
        Full::new(&RelayConfig { buffer_events_max, buffer_bytes_max, ..RelayConfig::default() })
    }

    fn key(number: usize) -> AggregateKey {
        AggregateKey::new("order", &number.to_string())
    }

    fn names(full: &Full) -> Vec<AggregateKey> {
        full.named(|_| None)
    }

    #[test]
    fn as_many_full_lanes_as_can_be_named_have_half_of_the_buffer() {
        let full = full(8_192, 16 << 20);
        assert_eq!((full.events_max() * FULL_MAX, full.bytes_max() * FULL_MAX), (4_096, 8 << 20));
        // A small buffer has fewer and larger shares; the smallest has one of a single event.
        let shares = [(2_048, 16), (100, 16), (48, 12), (4, 1), (1, 1)];
        for (buffer, share) in shares {
            assert_eq!(super::tests::full(buffer, 1).events_max(), share, "of {buffer}");
        }
    }

    #[test]
    fn a_lane_is_full_from_its_share_until_it_has_drained_to_half() {
        let mut full = full(8_192, 16 << 20);
        let (key, mut load) = (key(1), Load::default());
        for events in 1..=70 {
            full.added(&key, &mut load, 10);
            assert_eq!(names(&full).len(), usize::from(events >= 64), "with {events}");
        }
        assert_eq!(full.take_crowded(), 7);
        for events in (32..70).rev() {
            assert!(!full.take_relieved());
            full.taken(&key, &mut load, 10);
            assert_eq!(names(&full).len(), usize::from(events > 32), "with {events}");
        }
        assert!(full.take_relieved());
        assert!(!full.take_relieved(), "told once");
        full.added(&key, &mut load, 10);
        assert!(names(&full).is_empty());
    }

    #[test]
    fn a_lane_is_full_by_its_bytes_but_never_with_one_event() {
        let mut full = full(8_192, 128_000);
        let (key, mut load) = (key(1), Load::default());
        full.added(&key, &mut load, 5_000);
        assert!(names(&full).is_empty());
        full.added(&key, &mut load, 1);
        assert_eq!(names(&full).len(), 1);
        full.taken(&key, &mut load, 1);
        assert!(names(&full).is_empty());
        full.added(&key, &mut load, 1);
        full.emptied(&key, &mut load);
        assert!(names(&full).is_empty());
        assert_eq!((load.events, load.bytes), (0, 0));
    }

    #[test]
    fn of_more_than_can_be_named_the_fullest_are() {
        let mut full = full(1, 1_000_000);
        let mut loads = std::collections::BTreeMap::new();
        for number in 0..FULL_MAX + 10 {
            let mut load = Load::default();
            for _ in 0..=(number % FULL_MAX) {
                full.added(&key(number), &mut load, 0);
            }
            loads.insert(key(number), load);
        }
        let named = full.named(|key| loads.get(key));
        assert_eq!(named.len(), FULL_MAX);
        let least = named.iter().map(|key| loads[key].events).min();
        // Those of 1 to 5 events are two each.
        assert_eq!(least, Some(6));
    }
}
