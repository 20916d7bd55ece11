//! The MySQL and MariaDB store of the outbox framework: enqueue in your own transaction, relay, operate.
