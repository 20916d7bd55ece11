//! Enqueue and inbox through SeaORM, on real servers and on a file.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

use contract::{Harness, MariadbPlace, MysqlPlace, Place as _, PostgresPlace, SqlitePlace, driver_suite};
use outbox_core::{Enqueue, EnqueueError, Event, Inbox, StoreErrorKind};
use outbox_sea_orm::through;
use sea_orm::{ConnectionTrait as _, Database, DatabaseTransaction, TransactionTrait as _};

macro_rules! harness {
    ($name:ident, $place:ty, $url:expr) => {
        struct $name;

        impl Harness for $name {
            type Place = $place;
            type Session = DatabaseTransaction;

            fn outbox(place: &$place) -> impl Enqueue<DatabaseTransaction> + Send + Sync {
                through(place.outbox())
            }

            fn inbox(place: &$place) -> impl Inbox<DatabaseTransaction> + Send + Sync {
                through(place.inbox())
            }

            async fn begin(place: &$place) -> DatabaseTransaction {
                let url: fn(&$place) -> String = $url;
                Database::connect(url(place)).await.unwrap().begin().await.unwrap()
            }

            /// SeaORM has a type for a transaction, so what is outside was ended by hand.
            async fn outside(place: &$place) -> DatabaseTransaction {
                let transaction = Self::begin(place).await;
                transaction.execute_unprepared("COMMIT").await.unwrap();
                transaction
            }

            async fn commit(transaction: DatabaseTransaction) {
                transaction.commit().await.unwrap();
            }

            async fn rollback(transaction: DatabaseTransaction) {
                transaction.rollback().await.unwrap();
            }
        }
    };
}

harness!(Postgres, PostgresPlace, |place| place.url().to_owned());
harness!(Mysql, MysqlPlace, |place| place.url().to_owned());
harness!(Mariadb, MariadbPlace, |place| place.url().to_owned());
harness!(Sqlite, SqlitePlace, |place| format!("sqlite://{}", place.path()));

mod postgres {
    super::driver_suite!(super::Postgres);
}

mod mysql {
    super::driver_suite!(super::Mysql);
}

mod mariadb {
    super::driver_suite!(super::Mariadb);
}

mod sqlite {
    super::driver_suite!(super::Sqlite);
}

/// The type of a transaction does not say which database it is in.
#[tokio::test]
async fn a_transaction_in_another_kind_of_database_is_refused() {
    let Some(place) = SqlitePlace::fresh().await else { return };
    let mut transaction = Sqlite::begin(&place).await;
    let outbox = through(outbox_postgres::PostgresOutbox::new(&outbox_postgres::PostgresConfig::default()));
    let event = Event::builder("order", "1", "order.placed").build().unwrap();
    let refused = outbox.enqueue(&mut transaction, &event).await.unwrap_err();
    assert!(
        matches!(&refused, EnqueueError::Store(error) if error.kind() == StoreErrorKind::Misuse),
        "{refused:?}"
    );
    transaction.rollback().await.unwrap();
    place.drop().await;
}
