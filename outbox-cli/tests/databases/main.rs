//! The program on the databases that are servers: an operator's commands, several outboxes in one process,
//! and migrations at once.
#![cfg(any(feature = "postgres", feature = "mysql", feature = "mongo"))]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

#[path = "../common/mod.rs"]
mod common;

/// Makes the tests of one kind of databases.
macro_rules! tell_stories {
    ($databases:ty) => {
        #[test]
        fn an_operator() {
            $crate::stories::an_operator::<$databases>();
        }

        #[test]
        fn several_outboxes_in_one_process() {
            $crate::stories::several_outboxes_in_one_process::<$databases>();
        }

        #[test]
        fn processes_may_migrate_at_once() {
            $crate::stories::processes_may_migrate_at_once::<$databases>();
        }

        #[test]
        fn printed_migrations_name_their_place() {
            $crate::stories::printed_migrations_name_their_place::<$databases>();
        }
    };
}
#[cfg(feature = "mongo")]
mod mongo;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod stories;

use uuid::Uuid;

/// Databases, or schemas, that no other test sees. They are removed with it.
trait Databases: Sized {
    /// That many of them, not migrated. `None` where the server is not there, after saying so.
    fn new(count: usize) -> Option<Self>;

    /// Where the server is.
    fn url(&self) -> &str;

    /// What to give as `store.schema`.
    fn names(&self) -> &[String];

    /// Writes events with the numbers `from..to`, of three orders, without any help of the project.
    fn insert(&self, index: usize, from: u64, to: u64);

    /// Writes an event of `order/1` that cannot be decoded.
    fn insert_nonsense(&self, index: usize);

    /// Takes something away that a relay needs, or brings it back.
    fn break_it(&self, index: usize);
    fn mend_it(&self, index: usize);

    /// Lets the outbox say that it has version 9.
    fn make_newer(&self, index: usize);
}

/// The address of a server, or a line that says which is missing.
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

/// Names that no other test has taken.
fn new_names(count: usize) -> Vec<String> {
    let unique = Uuid::now_v7().simple().to_string();
    (0..count).map(|index| format!("cli_{}_{index}", &unique[..30])).collect()
}
