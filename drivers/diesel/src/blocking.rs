//! Connections of diesel, which block.

use std::future::{Future, ready};

use diesel::{RunQueryDsl as _, connection::SimpleConnection as _};
use outbox_core::statement::{Driver, DriverError, Statement};

use crate::{Diesel, bind::Bind, error, row};

macro_rules! driver {
    ($connection:ty, $backend:ty, $dialect:ty, $codes:expr) => {
        impl Driver<$connection, $dialect> for Diesel {
            fn run(
                &self,
                transaction: &mut $connection,
                sql: &'static str,
            ) -> impl Future<Output = Result<(), DriverError>> + Send {
                ready(transaction.batch_execute(sql).map_err(|error| $codes.refused(error)))
            }

            fn execute(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> impl Future<Output = Result<Option<i64>, DriverError>> + Send {
                let query = <$backend>::query(statement);
                let done = query.and_then(|query| query.execute(transaction).map_err(|e| $codes.failed(e)));
                ready(done.map(|_| None))
            }

            fn numbers(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> impl Future<Output = Result<Vec<i64>, DriverError>> + Send {
                let query = <$backend>::query(statement);
                let rows = query.and_then(|query| query.load(transaction).map_err(|e| $codes.failed(e)));
                ready(rows.map(row::numbers))
            }

            fn named_numbers(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> impl Future<Output = Result<Vec<(String, i64)>, DriverError>> + Send {
                let query = <$backend>::query(statement);
                let rows = query.and_then(|query| query.load(transaction).map_err(|e| $codes.failed(e)));
                ready(rows.map(row::named_numbers))
            }
        }
    };
}

#[cfg(feature = "postgres")]
driver!(diesel::PgConnection, diesel::pg::Pg, outbox_postgres::Postgres, error::POSTGRES);

#[cfg(feature = "sqlite")]
driver!(diesel::SqliteConnection, diesel::sqlite::Sqlite, outbox_sqlite::Sqlite, error::SQLITE);
