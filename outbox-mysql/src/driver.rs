//! The dialect's mark, and the adapter's own driver: sqlx.

use std::sync::Arc;

use outbox_core::{
    StoreErrorKind,
    statement::{Driver, DriverError, Parameter, Statement},
};
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _, mysql::MySqlArguments, query::Query};

use crate::error::{classify, number};

/// The mark of MySQL's and MariaDB's statements, for [`outbox_core::statement::Driver`]: `impl
/// Driver<YourTransaction, Mysql>`.
///
/// The codes of its errors are the server's numbers. A time is bound as a `DATETIME(6)` in UTC, a UUID as
/// its 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mysql;

/// Statements on a connection of sqlx.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sqlx;

impl Driver<MySqlConnection, Mysql> for Sqlx {
    async fn run(&self, transaction: &mut MySqlConnection, sql: &'static str) -> Result<(), DriverError> {
        sqlx::raw_sql(sql).execute(transaction).await.map(drop).map_err(failed)
    }

    async fn execute(
        &self,
        transaction: &mut MySqlConnection,
        statement: Statement<'_>,
    ) -> Result<Option<i64>, DriverError> {
        let done = query(statement)?.execute(transaction).await.map_err(failed)?;
        i64::try_from(done.last_insert_id()).map(Some).map_err(DriverError::new)
    }

    async fn numbers(
        &self,
        transaction: &mut MySqlConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<i64>, DriverError> {
        let rows = query(statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    async fn named_numbers(
        &self,
        transaction: &mut MySqlConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<(String, i64)>, DriverError> {
        let rows = query(statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?)))
            .collect()
    }
}

fn query(statement: Statement<'_>) -> Result<Query<'_, sqlx::MySql, MySqlArguments>, DriverError> {
    let query = sqlx::query(AssertSqlSafe(Arc::clone(&statement.sql)));
    statement.parameters.into_iter().try_fold(query, bind)
}

fn bind<'q>(
    query: Query<'q, sqlx::MySql, MySqlArguments>,
    parameter: Parameter<'q>,
) -> Result<Query<'q, sqlx::MySql, MySqlArguments>, DriverError> {
    Ok(match parameter {
        Parameter::Uuid(value) => query.bind(value),
        Parameter::Integer(value) => query.bind(value),
        Parameter::BigInteger(value) => query.bind(value),
        Parameter::Text(value) => query.bind(value),
        Parameter::Bytes(value) => query.bind(value),
        Parameter::Time(value) => query.bind(value.map(|time| time.naive_utc())),
        other => return Err(DriverError::new(format!("a parameter that is unknown here: {other:?}"))),
    })
}

fn failed(error: sqlx::Error) -> DriverError {
    let (code, kind) = (number(&error), classify(&error));
    let error = DriverError::new(error).with_code(code.map(|code| code.to_string()));
    if kind == StoreErrorKind::Unexpected { error } else { error.with_kind(kind) }
}
