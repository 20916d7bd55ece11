//! Enqueue and inbox through diesel-async, on real servers.
#![cfg(all(feature = "async-postgres", feature = "async-mysql"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use contract::{Harness, MariadbPlace, MysqlPlace, PostgresPlace, driver_suite};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection as _, AsyncMysqlConnection, AsyncPgConnection,
    TransactionManager as _,
};
use outbox_core::{Enqueue, Inbox};
use outbox_diesel::through;

macro_rules! harness {
    ($name:ident, $place:ty, $connection:ty) => {
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
                AnsiTransactionManager::begin_transaction(&mut connection).await.unwrap();
                connection
            }

            async fn outside(place: &$place) -> $connection {
                <$connection>::establish(place.url()).await.unwrap()
            }

            async fn commit(mut connection: $connection) {
                AnsiTransactionManager::commit_transaction(&mut connection).await.unwrap();
            }

            async fn rollback(mut connection: $connection) {
                AnsiTransactionManager::rollback_transaction(&mut connection).await.unwrap();
            }
        }
    };
}

harness!(Postgres, PostgresPlace, AsyncPgConnection);
harness!(Mysql, MysqlPlace, AsyncMysqlConnection);
harness!(Mariadb, MariadbPlace, AsyncMysqlConnection);

mod postgres {
    super::driver_suite!(super::Postgres);
}

mod mysql {
    super::driver_suite!(super::Mysql);
}

mod mariadb {
    super::driver_suite!(super::Mariadb);
}
