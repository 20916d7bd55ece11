//! The MongoDB store of the outbox framework: enqueue in your own transaction, relay, operate.
