#![doc = include_str!("../README.md")]

use outbox_core::{
    StoreErrorKind,
    statement::{Driver, DriverError, Parameter, Statement},
};
use outbox_postgres::Postgres;
use tokio_postgres::{
    Error, GenericClient, Row,
    types::{ToSql, Type},
};

/// PostgreSQL's outbox or inbox in transactions of tokio-postgres.
pub type Through<A> = outbox_core::statement::Through<A, TokioPostgres>;

/// Puts tokio-postgres before `adapter`: an `outbox_postgres::PostgresOutbox` or `PostgresInbox`.
pub fn through<A>(adapter: A) -> Through<A> {
    Through::new(adapter, TokioPostgres)
}

/// Statements in a `tokio_postgres::Transaction`, or on a `Client` that is inside a transaction.
///
/// Each is one round trip, and nothing stays prepared on the connection, so that any pooler will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokioPostgres;

impl<C: GenericClient + Send + Sync> Driver<C, Postgres> for TokioPostgres {
    async fn run(&self, transaction: &mut C, sql: &'static str) -> Result<(), DriverError> {
        transaction.batch_execute(sql).await.map_err(failed)
    }

    async fn execute(
        &self,
        transaction: &mut C,
        statement: Statement<'_>,
    ) -> Result<Option<i64>, DriverError> {
        rows(transaction, statement).await.map(|_| None)
    }

    async fn numbers(&self, transaction: &mut C, statement: Statement<'_>) -> Result<Vec<i64>, DriverError> {
        let rows = rows(transaction, statement).await?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    async fn named_numbers(
        &self,
        transaction: &mut C,
        statement: Statement<'_>,
    ) -> Result<Vec<(String, i64)>, DriverError> {
        let rows = rows(transaction, statement).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?)))
            .collect()
    }
}

async fn rows(
    transaction: &mut (impl GenericClient + Sync),
    statement: Statement<'_>,
) -> Result<Vec<Row>, DriverError> {
    let parameters = statement.parameters.iter().map(typed).collect::<Result<Vec<_>, _>>()?;
    transaction.query_typed(&statement.sql, &parameters).await.map_err(failed)
}

fn typed<'a>(parameter: &'a Parameter<'_>) -> Result<(&'a (dyn ToSql + Sync), Type), DriverError> {
    Ok(match parameter {
        Parameter::Uuid(value) => (value, Type::UUID),
        Parameter::Integer(value) => (value, Type::INT4),
        Parameter::BigInteger(value) => (value, Type::INT8),
        Parameter::Text(value) => (value, Type::TEXT),
        Parameter::Bytes(value) => (value, Type::BYTEA),
        Parameter::Time(value) => (value, Type::TIMESTAMPTZ),
        Parameter::Uuids(values) => (values, Type::UUID_ARRAY),
        Parameter::Integers(values) => (values, Type::INT4_ARRAY),
        Parameter::Texts(values) => (values, Type::TEXT_ARRAY),
        Parameter::ByteStrings(values) => (values, Type::BYTEA_ARRAY),
        Parameter::Times(values) => (values, Type::TIMESTAMPTZ_ARRAY),
        other => return Err(DriverError::new(format!("a parameter that is unknown here: {other:?}"))),
    })
}

fn failed(error: Error) -> DriverError {
    let code = error.code().map(|code| code.code().to_owned());
    // Without a code it is the connection, or an error of this package.
    let lost = error.is_closed()
        || std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
    let error = DriverError::new(error).with_code(code);
    if lost { error.with_kind(StoreErrorKind::Unavailable) } else { error }
}
