//! The dialect's mark, and the adapter's own driver: rusqlite.

use std::future::{Future, ready};

use futures::FutureExt as _;
use outbox_core::{
    StoreError, StoreErrorKind,
    statement::{Driver, DriverError, Parameter, Statement},
};
use rusqlite::{Connection, Error, Row, ToSql, params_from_iter, types::ToSqlOutput};

use crate::error::classify;

/// The mark of SQLite's statements, for [`outbox_core::statement::Driver`]: `impl Driver<YourTransaction,
/// Sqlite>`.
///
/// The codes of its errors are extended result codes, as numbers. An adapter reads SQLite's message in an
/// error's text, which says of a duplicate in which column it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sqlite;

/// Statements on a connection of rusqlite. They run in the call: a future that is not ready at once could
/// not be `Send`, since a connection is not `Sync`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rusqlite;

impl Driver<&Connection, Sqlite> for Rusqlite {
    fn run(
        &self,
        transaction: &mut &Connection,
        sql: &'static str,
    ) -> impl Future<Output = Result<(), DriverError>> + Send {
        ready(transaction.execute_batch(sql).map_err(failed))
    }

    fn execute(
        &self,
        transaction: &mut &Connection,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Option<i64>, DriverError>> + Send {
        ready(rows(transaction, &statement, |_| Ok(())).map(|_| None))
    }

    fn numbers(
        &self,
        transaction: &mut &Connection,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Vec<i64>, DriverError>> + Send {
        ready(rows(transaction, &statement, |row| row.get(0)))
    }

    fn named_numbers(
        &self,
        transaction: &mut &Connection,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<Vec<(String, i64)>, DriverError>> + Send {
        ready(rows(transaction, &statement, |row| Ok((row.get(0)?, row.get(1)?))))
    }

    fn is_inside(&self, transaction: &&Connection) -> Option<bool> {
        Some(!transaction.is_autocommit())
    }
}

/// What a future of a driver that does not wait has to say.
pub(crate) fn at_once<R, E: From<StoreError>>(future: impl Future<Output = Result<R, E>>) -> Result<R, E> {
    let waits =
        || StoreError::new(StoreErrorKind::Unexpected, "a statement of rusqlite is waited for").into();
    future.now_or_never().unwrap_or_else(|| Err(waits()))
}

fn rows<R>(
    connection: &Connection,
    statement: &Statement<'_>,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<R>,
) -> Result<Vec<R>, DriverError> {
    let mut prepared = connection.prepare_cached(&statement.sql).map_err(failed)?;
    let rows = prepared.query_map(params_from_iter(statement.parameters.iter().map(Bound)), read);
    rows.and_then(Iterator::collect).map_err(failed)
}

struct Bound<'a>(&'a Parameter<'a>);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self.0 {
            Parameter::Integer(value) => value.to_sql(),
            Parameter::BigInteger(value) => value.to_sql(),
            Parameter::Text(value) => value.to_sql(),
            Parameter::Bytes(value) => value.to_sql(),
            other => Err(Error::ToSqlConversionFailure(
                format!("a parameter that is unknown here: {other:?}").into(),
            )),
        }
    }
}

fn failed(error: Error) -> DriverError {
    let code = match &error {
        Error::SqliteFailure(code, _) => Some(code.extended_code.to_string()),
        _ => None,
    };
    let kind = classify(&error);
    let error = DriverError::new(error).with_code(code);
    if kind == StoreErrorKind::Unexpected { error } else { error.with_kind(kind) }
}
