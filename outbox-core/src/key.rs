//! The aggregate of an event: [`AggregateKey`].

use std::{
    cmp::Ordering,
    fmt,
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::{Arc, LazyLock},
};

/// The aggregate an event belongs to, by type and id: the unit of order.
///
/// Cheap to clone, to compare and to hash: both names share one allocation, and their hash is kept.
#[derive(Clone)]
pub struct AggregateKey {
    /// The type, and right behind it the id.
    text: Arc<str>,
    type_bytes: usize,
    /// A relay looks an aggregate up a dozen times for each of its events, and would hash the names, and
    /// fetch them from memory, each time.
    hash: u64,
}

/// The seed of all keys' hashes: random, so that names that collide cannot be chosen.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl AggregateKey {
    /// A key from its two names, which are taken as they are: byte for byte, case and all.
    pub fn new(aggregate_type: &str, aggregate_id: &str) -> Self {
        let mut text = String::with_capacity(aggregate_type.len() + aggregate_id.len());
        text.push_str(aggregate_type);
        text.push_str(aggregate_id);
        let type_bytes = aggregate_type.len();
        let hash = SEED.hash_one((&*text, type_bytes));
        Self { text: text.into(), type_bytes, hash }
    }

    /// The bytes of both names.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The type of the aggregate, such as `order`.
    pub fn aggregate_type(&self) -> &str {
        &self.text[..self.type_bytes]
    }

    /// The id of the aggregate within its type, such as `4711`.
    pub fn aggregate_id(&self) -> &str {
        &self.text[self.type_bytes..]
    }
}

impl PartialEq for AggregateKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.type_bytes == other.type_bytes
            && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for AggregateKey {}

impl Hash for AggregateKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for AggregateKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By the names, never by the hash, which differs from process to process.
impl Ord for AggregateKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.text, self.type_bytes).cmp(&(&other.text, other.type_bytes))
    }
}

impl fmt::Display for AggregateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.aggregate_type(), self.aggregate_id())
    }
}

impl fmt::Debug for AggregateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_two_names_apart() {
        assert_ne!(AggregateKey::new("ab", "c"), AggregateKey::new("a", "bc"));
        assert_eq!(AggregateKey::new("order", "1").to_string(), "order/1");
    }
}
