//! The dialect's mark, and the adapter's own driver: sqlx.

use std::sync::Arc;

use outbox_core::{
    StoreErrorKind,
    statement::{Driver, DriverError, Parameter, Statement},
};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgArguments, query::Query};

use crate::error::classify;

/// The mark of PostgreSQL's statements, for [`outbox_core::statement::Driver`]: `impl
/// Driver<YourTransaction, Postgres>`.
///
/// The codes of its errors are SQLSTATEs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Postgres;

/// Statements on a connection of sqlx.
#[derive(Debug, Clone)]
pub(crate) struct Sqlx {
    /// Whether statements stay prepared on the caller's connection.
    pub(crate) prepare: bool,
}

impl Sqlx {
    fn query<'q>(
        &self,
        statement: Statement<'q>,
    ) -> Result<Query<'q, sqlx::Postgres, PgArguments>, DriverError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&statement.sql))).persistent(self.prepare);
        statement.parameters.into_iter().try_fold(query, bind)
    }
}

impl Driver<PgConnection, Postgres> for Sqlx {
    async fn run(&self, transaction: &mut PgConnection, sql: &'static str) -> Result<(), DriverError> {
        sqlx::raw_sql(sql).execute(transaction).await.map(drop).map_err(failed)
    }

    async fn execute(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Option<i64>, DriverError> {
        self.query(statement)?.execute(transaction).await.map(|_| None).map_err(failed)
    }

    async fn numbers(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<i64>, DriverError> {
        let rows = self.query(statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    async fn named_numbers(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<(String, i64)>, DriverError> {
        let rows = self.query(statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?)))
            .collect()
    }
}

fn bind<'q>(
    query: Query<'q, sqlx::Postgres, PgArguments>,
    parameter: Parameter<'q>,
) -> Result<Query<'q, sqlx::Postgres, PgArguments>, DriverError> {
    Ok(match parameter {
        Parameter::Uuid(value) => query.bind(value),
        Parameter::Integer(value) => query.bind(value),
        Parameter::BigInteger(value) => query.bind(value),
        Parameter::Text(value) => query.bind(value),
        Parameter::Bytes(value) => query.bind(value),
        Parameter::Time(value) => query.bind(value),
        Parameter::Uuids(values) => query.bind(values),
        Parameter::Integers(values) => query.bind(values),
        Parameter::Texts(values) => query.bind(values),
        Parameter::ByteStrings(values) => query.bind(values),
        Parameter::Times(values) => query.bind(values),
        other => return Err(DriverError::new(format!("a parameter that is unknown here: {other:?}"))),
    })
}

fn failed(error: sqlx::Error) -> DriverError {
    let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    let kind = classify(&error);
    let error = DriverError::new(error).with_code(code);
    if kind == StoreErrorKind::Unexpected { error } else { error.with_kind(kind) }
}
