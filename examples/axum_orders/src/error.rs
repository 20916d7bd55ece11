//! What goes wrong: an example only ever shows it.

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
