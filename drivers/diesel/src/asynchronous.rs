//! Connections of diesel-async.

use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use outbox_core::statement::{Driver, DriverError, Statement};

use crate::{Diesel, bind::Bind, error, row};

macro_rules! driver {
    ($connection:ty, $backend:ty, $dialect:ty, $codes:expr) => {
        impl Driver<$connection, $dialect> for Diesel {
            async fn run(&self, transaction: &mut $connection, sql: &'static str) -> Result<(), DriverError> {
                transaction.batch_execute(sql).await.map_err(|error| $codes.refused(error))
            }

            async fn execute(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> Result<Option<i64>, DriverError> {
                let query = <$backend>::query(statement)?;
                query.execute(transaction).await.map(|_| None).map_err(|error| $codes.failed(error))
            }

            async fn numbers(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> Result<Vec<i64>, DriverError> {
                let query = <$backend>::query(statement)?;
                query.load(transaction).await.map(row::numbers).map_err(|error| $codes.failed(error))
            }

            async fn named_numbers(
                &self,
                transaction: &mut $connection,
                statement: Statement<'_>,
            ) -> Result<Vec<(String, i64)>, DriverError> {
                let query = <$backend>::query(statement)?;
                query.load(transaction).await.map(row::named_numbers).map_err(|error| $codes.failed(error))
            }
        }
    };
}

#[cfg(feature = "async-postgres")]
driver!(diesel_async::AsyncPgConnection, diesel::pg::Pg, outbox_postgres::Postgres, error::POSTGRES);

#[cfg(feature = "async-mysql")]
driver!(diesel_async::AsyncMysqlConnection, diesel::mysql::Mysql, outbox_mysql::Mysql, error::MYSQL);
