#![doc = include_str!("../README.md")]

use outbox_core::{
    StoreErrorKind,
    statement::{Driver, DriverError, Parameter, Statement},
};
use outbox_postgres::Postgres;
use sqlx::{Executor as _, PgConnection, Row as _, postgres::PgArguments, query::Query};

/// Statements on a connection of sqlx 0.8.
#[derive(Debug, Clone, Copy)]
pub struct Sqlx08;

impl Driver<PgConnection, Postgres> for Sqlx08 {
    async fn run(&self, transaction: &mut PgConnection, sql: &'static str) -> Result<(), DriverError> {
        // `raw_sql` of this version has a future that no trait can promise to be `Send`.
        transaction.execute(sql).await.map(drop).map_err(failed)
    }

    async fn execute(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Option<i64>, DriverError> {
        bind(&statement)?.execute(transaction).await.map(|_| None).map_err(failed)
    }

    async fn numbers(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<i64>, DriverError> {
        let rows = bind(&statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    async fn named_numbers(
        &self,
        transaction: &mut PgConnection,
        statement: Statement<'_>,
    ) -> Result<Vec<(String, i64)>, DriverError> {
        let rows = bind(&statement)?.fetch_all(transaction).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?)))
            .collect()
    }
}

/// A statement as a query of sqlx 0.8: all that is needed to run `PostgresOutbox::insert` by hand.
///
/// # Errors
/// A parameter of a later release.
pub fn bind<'q>(statement: &'q Statement<'_>) -> Result<Query<'q, sqlx::Postgres, PgArguments>, DriverError> {
    let mut query = sqlx::query(&statement.sql);
    for parameter in &statement.parameters {
        query = match parameter {
            Parameter::Uuid(value) => query.bind(value),
            Parameter::Integer(value) => query.bind(value),
            Parameter::BigInteger(value) => query.bind(value),
            Parameter::Text(value) => query.bind(value.as_deref()),
            Parameter::Bytes(value) => query.bind(*value),
            Parameter::Time(value) => query.bind(value),
            Parameter::Uuids(values) => query.bind(values),
            Parameter::Integers(values) => query.bind(values),
            Parameter::Texts(values) => query.bind(values.iter().map(Option::as_deref).collect::<Vec<_>>()),
            Parameter::ByteStrings(values) => query.bind(values),
            Parameter::Times(values) => query.bind(values),
            other => return Err(DriverError::new(format!("a parameter that is unknown here: {other:?}"))),
        };
    }
    Ok(query)
}

fn failed(error: sqlx::Error) -> DriverError {
    let code = error.as_database_error().and_then(|error| error.code()).map(String::from);
    let lost = matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_));
    let error = DriverError::new(error).with_code(code);
    if lost { error.with_kind(StoreErrorKind::Unavailable) } else { error }
}
