//! The SQLite store of the outbox framework.
//!
//! A service writes its events through [`SqliteOutbox`] in its own `rusqlite` transaction; a relay reads them from the
//! same file through [`SqliteStore`]. Services in other languages insert into the table directly: every column but
//! four has a default.
//!
//! ```sql
//! INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', '4711', 'order.placed', '{}');
//! ```
//!
//! # Tables
//! [`migrate`] makes them, and [`migration_sql`] prints them. Times are integers: microseconds since 1970-01-01 UTC, by
//! SQLite's clock, which has a resolution of a millisecond. Ids are texts; a UUID in any of its spellings, or as a
//! blob of 16 bytes, is read as well. A row that cannot be read as an event fails alone, with the reason.
//!
//! # Order
//! SQLite has one writer at a time, so the order of sequences is the order of commits, over all aggregates. There is one
//! partition, number 0. Several relays may run on one file: one works, the others stand by.
//!
//! # Durability
//! The relay's connections use `synchronous = FULL`; the service's connection is its own affair, and with `NORMAL` in
//! WAL mode a power failure can take the last transactions, change and event together. SQLite's locks do not work on
//! most network file systems: keep the file on a local disk.
//!
//! # The consumer's side
//! [`SqliteInbox`] tells a consumer whose effects are in SQLite which messages it has handled, in the consumer's own
//! transaction. Its tables ([`inbox_migration_sql`]) need no outbox beside them.

mod admin;
mod codec;
mod config;
mod database;
mod enqueue;
mod error;
mod inbox;
mod reader;
mod schema;
mod store;

pub use config::{BUSY_TIMEOUT_DEFAULT, ConfigError, PREFIX_DEFAULT, SqliteConfig, SqliteConfigBuilder};
pub use enqueue::SqliteOutbox;
pub use inbox::{INBOX_SCHEMA_VERSION, SqliteInbox, inbox_migration_sql};
pub use schema::{SCHEMA_VERSION, migrate, migration_sql};
pub use store::SqliteStore;
