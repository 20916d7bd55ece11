//! What the benchmarks share: a backlog, a gate before a store, publishers that acknowledge at once or note
//! the time, and the kernel's books of the processor's time.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends here")]
#![allow(missing_docs, reason = "the benchmarks alone see it, where the names say enough")]

pub mod backlog;
pub mod gate;
pub mod machine;
pub mod publishers;
