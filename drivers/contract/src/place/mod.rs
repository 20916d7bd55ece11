//! Migrated places for events and receipts that no other test sees.

#[cfg(feature = "mysql")]
mod mysql;
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{future::Future, sync::Arc};

use outbox_core::OutboxStore;
use uuid::Uuid;

#[cfg(feature = "mysql")]
pub use mysql::{MariadbPlace, MysqlPlace};
pub use postgres::PostgresPlace;
#[cfg(feature = "sqlite")]
pub use sqlite::SqlitePlace;

/// The consumer of all tests.
const CONSUMER: &str = "billing";

/// A place with the tables of an outbox and of inboxes.
pub trait Place: Sized + Send + Sync {
    /// A new one. `None` where the server is not there, after saying so in one line on stderr; with
    /// `OUTBOX_REQUIRE_SERVERS=1` it panics instead.
    fn fresh() -> impl Future<Output = Option<Self>> + Send;

    /// Removes it.
    fn drop(self) -> impl Future<Output = ()> + Send;

    /// What a relay reads.
    fn store(&self) -> Arc<dyn OutboxStore>;

    /// Counts the events that are available at [`suite::AVAILABLE_AT`](crate::suite::AVAILABLE_AT), to the
    /// microsecond.
    const COUNT_SCHEDULED: &'static str;

    /// One number, asked on a connection of the adapter's own driver.
    fn number(&self, sql: &'static str) -> impl Future<Output = i64> + Send;
}

/// The address of a server, or a line that says that it is missing.
fn address(name: &str, service: &str) -> Option<String> {
    let variable = format!("OUTBOX_TEST_{}_URL", service.to_uppercase());
    let url = std::env::var(&variable).ok();
    if url.is_none() {
        let missing = format!("{name} is not there: run scripts/services.sh up {service} and set {variable}");
        assert!(std::env::var("OUTBOX_REQUIRE_SERVERS").as_deref() != Ok("1"), "{missing}");
        eprintln!("{missing}");
    }
    url
}

fn name() -> String {
    format!("outbox_test_{}", Uuid::now_v7().simple())[..40].to_owned()
}
