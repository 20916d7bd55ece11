//! A publisher without a broker: JSON lines to the standard output, a file, or any writer.

mod adapter;
mod publisher;

pub use adapter::{FileAdapter, StdoutAdapter};
pub use publisher::JsonLinesPublisher;
