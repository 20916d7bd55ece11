//! Statements by the methods of SeaORM's transaction.

use outbox_core::{
    StoreErrorKind,
    statement::{Driver, DriverError, Statement},
};
use sea_orm::{
    ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr, SqlxError,
    sqlx::error::DatabaseError,
};

use crate::{Dialect, SeaOrm, bind};

impl<L: Dialect> Driver<DatabaseTransaction, L> for SeaOrm {
    async fn run(&self, transaction: &mut DatabaseTransaction, sql: &'static str) -> Result<(), DriverError> {
        let found = transaction.get_database_backend();
        if found != L::BACKEND {
            let what =
                format!("the transaction is in {found:?}, and the outbox or inbox is for {:?}", L::BACKEND);
            return Err(DriverError::new(what).with_kind(StoreErrorKind::Misuse));
        }
        transaction.execute_unprepared(sql).await.map(drop).map_err(failed)
    }

    async fn execute(
        &self,
        transaction: &mut DatabaseTransaction,
        statement: Statement<'_>,
    ) -> Result<Option<i64>, DriverError> {
        let done = transaction.execute_raw(bind::raw(L::BACKEND, statement)?).await.map_err(failed)?;
        // What it is on PostgreSQL panics, since that has none.
        let last = (L::BACKEND == DbBackend::MySql).then(|| i64::try_from(done.last_insert_id()));
        last.transpose().map_err(DriverError::new)
    }

    async fn numbers(
        &self,
        transaction: &mut DatabaseTransaction,
        statement: Statement<'_>,
    ) -> Result<Vec<i64>, DriverError> {
        let rows = rows::<L>(transaction, statement).await?;
        rows.iter().map(|row| row.try_get_by_index(0).map_err(failed)).collect()
    }

    async fn named_numbers(
        &self,
        transaction: &mut DatabaseTransaction,
        statement: Statement<'_>,
    ) -> Result<Vec<(String, i64)>, DriverError> {
        let rows = rows::<L>(transaction, statement).await?;
        let pair = |row: &QueryResult| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?));
        rows.iter().map(|row| pair(row).map_err(failed)).collect()
    }
}

async fn rows<L: Dialect>(
    transaction: &DatabaseTransaction,
    statement: Statement<'_>,
) -> Result<Vec<QueryResult>, DriverError> {
    transaction.query_all_raw(bind::raw(L::BACKEND, statement)?).await.map_err(failed)
}

fn failed(error: DbErr) -> DriverError {
    let sqlx = match &error {
        DbErr::Conn(RuntimeErr::SqlxError(sqlx))
        | DbErr::Exec(RuntimeErr::SqlxError(sqlx))
        | DbErr::Query(RuntimeErr::SqlxError(sqlx)) => Some(&**sqlx),
        _ => None,
    };
    let code = sqlx.and_then(SqlxError::as_database_error).and_then(code_of);
    let lost = matches!(
        sqlx,
        Some(
            SqlxError::Io(_)
                | SqlxError::Tls(_)
                | SqlxError::PoolTimedOut
                | SqlxError::PoolClosed
                | SqlxError::WorkerCrashed
        )
    );
    let error = DriverError::new(error).with_code(code);
    if lost { error.with_kind(StoreErrorKind::Unavailable) } else { error }
}

/// PostgreSQL's SQLSTATE, SQLite's extended result code, MySQL's number.
fn code_of(error: &(dyn DatabaseError + 'static)) -> Option<String> {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sea_orm::SqlxMySqlError>() {
        return Some(error.number().to_string());
    }
    error.code().map(String::from)
}
