#![cfg_attr(feature = "postgres", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "postgres"), doc = "The outbox framework's tables through SeaORM 2.")]

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod bind;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod driver;

use sea_orm::DbBackend;

/// An adapter's outbox or inbox in transactions of SeaORM.
pub type Through<A> = outbox_core::statement::Through<A, SeaOrm>;

/// Puts SeaORM before `adapter`: the outbox or inbox of `outbox_postgres`, `outbox_mysql` or
/// `outbox_sqlite`.
pub fn through<A>(adapter: A) -> Through<A> {
    Through::new(adapter, SeaOrm)
}

/// Statements in a `sea_orm::DatabaseTransaction`, by its own methods: it lends its connection to no other
/// code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeaOrm;

/// A dialect as SeaORM knows it.
pub trait Dialect: Send + Sync {
    /// The kind of database that a transaction must be in.
    const BACKEND: DbBackend;
}

#[cfg(feature = "postgres")]
impl Dialect for outbox_postgres::Postgres {
    const BACKEND: DbBackend = DbBackend::Postgres;
}

#[cfg(feature = "mysql")]
impl Dialect for outbox_mysql::Mysql {
    const BACKEND: DbBackend = DbBackend::MySql;
}

#[cfg(feature = "sqlite")]
impl Dialect for outbox_sqlite::Sqlite {
    const BACKEND: DbBackend = DbBackend::Sqlite;
}
