//! Enqueue and inbox through diesel, on a real server and on a file.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use contract::{Harness, PostgresPlace, SqlitePlace, driver_suite};
use diesel::{
    Connection as _, PgConnection, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _},
};
use outbox_core::{Enqueue, Inbox};
use outbox_diesel::through;

macro_rules! harness {
    ($name:ident, $place:ty, $connection:ty, $connect:expr) => {
        struct $name;

        impl Harness for $name {
            type Place = $place;
            type Session = $connection;

            fn outbox(place: &$place) -> impl Enqueue<$connection> + Send + Sync {
                through(place.outbox())
            }

            fn inbox(place: &$place) -> impl Inbox<$connection> + Send + Sync {
                through(place.inbox())
            }

            async fn begin(place: &$place) -> $connection {
                let mut connection = Self::outside(place).await;
                AnsiTransactionManager::begin_transaction(&mut connection).unwrap();
                connection
            }

            async fn outside(place: &$place) -> $connection {
                let connect: fn(&$place) -> $connection = $connect;
                connect(place)
            }

            async fn commit(mut connection: $connection) {
                AnsiTransactionManager::commit_transaction(&mut connection).unwrap();
            }

            async fn rollback(mut connection: $connection) {
                AnsiTransactionManager::rollback_transaction(&mut connection).unwrap();
            }
        }
    };
}

harness!(Postgres, PostgresPlace, PgConnection, |place| PgConnection::establish(place.url()).unwrap());
harness!(Sqlite, SqlitePlace, SqliteConnection, |place| {
    let mut connection = SqliteConnection::establish(&place.path()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection
});

mod postgres {
    super::driver_suite!(super::Postgres);
}

mod sqlite {
    super::driver_suite!(super::Sqlite);
}
