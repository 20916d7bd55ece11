//! A statement as a query of diesel, for each of its backends.

use diesel::{
    backend::Backend,
    query_builder::{BoxedSqlQuery, SqlQuery},
    sql_query,
    sql_types::{BigInt, Binary, Integer, Nullable, Text},
};
use outbox_core::statement::{DriverError, Parameter, Statement};

type Query<'f, DB> = BoxedSqlQuery<'f, DB, SqlQuery>;

/// A statement as a query of the backend `DB`.
pub(crate) trait Bind: Backend + Sized {
    fn bind<'f>(query: Query<'f, Self>, parameter: Parameter<'f>) -> Result<Query<'f, Self>, DriverError>;

    fn query(statement: Statement<'_>) -> Result<Query<'_, Self>, DriverError> {
        let query = sql_query(&*statement.sql).into_boxed();
        statement.parameters.into_iter().try_fold(query, Self::bind)
    }
}

fn unknown<Q>(parameter: &Parameter<'_>) -> Result<Q, DriverError> {
    Err(DriverError::new(format!("a parameter that is unknown here: {parameter:?}")))
}

#[cfg(any(feature = "postgres", feature = "async-postgres"))]
impl Bind for diesel::pg::Pg {
    fn bind<'f>(query: Query<'f, Self>, parameter: Parameter<'f>) -> Result<Query<'f, Self>, DriverError> {
        use diesel::sql_types::{Array, Timestamptz, Uuid};
        Ok(match parameter {
            Parameter::Uuid(value) => query.bind::<Uuid, _>(value),
            Parameter::Integer(value) => query.bind::<Integer, _>(value),
            Parameter::BigInteger(value) => query.bind::<Nullable<BigInt>, _>(value),
            Parameter::Text(value) => query.bind::<Nullable<Text>, _>(value),
            Parameter::Bytes(value) => query.bind::<Nullable<Binary>, _>(value),
            Parameter::Time(value) => query.bind::<Nullable<Timestamptz>, _>(value),
            Parameter::Uuids(values) => query.bind::<Array<Uuid>, _>(values),
            Parameter::Integers(values) => query.bind::<Array<Integer>, _>(values),
            Parameter::Texts(values) => query.bind::<Array<Nullable<Text>>, _>(values),
            Parameter::ByteStrings(values) => query.bind::<Array<Nullable<Binary>>, _>(values),
            Parameter::Times(values) => query.bind::<Array<Nullable<Timestamptz>>, _>(values),
            other => return unknown(&other),
        })
    }
}

#[cfg(feature = "async-mysql")]
impl Bind for diesel::mysql::Mysql {
    fn bind<'f>(query: Query<'f, Self>, parameter: Parameter<'f>) -> Result<Query<'f, Self>, DriverError> {
        use diesel::sql_types::Datetime;
        Ok(match parameter {
            Parameter::Uuid(value) => query.bind::<Binary, _>(value.into_bytes().to_vec()),
            Parameter::Integer(value) => query.bind::<Integer, _>(value),
            Parameter::BigInteger(value) => query.bind::<Nullable<BigInt>, _>(value),
            Parameter::Text(value) => query.bind::<Nullable<Text>, _>(value),
            Parameter::Bytes(value) => query.bind::<Nullable<Binary>, _>(value),
            Parameter::Time(value) => query.bind::<Nullable<Datetime>, _>(value.map(|time| time.naive_utc())),
            other => return unknown(&other),
        })
    }
}

#[cfg(feature = "sqlite")]
impl Bind for diesel::sqlite::Sqlite {
    fn bind<'f>(query: Query<'f, Self>, parameter: Parameter<'f>) -> Result<Query<'f, Self>, DriverError> {
        Ok(match parameter {
            Parameter::Integer(value) => query.bind::<Integer, _>(value),
            Parameter::BigInteger(value) => query.bind::<Nullable<BigInt>, _>(value),
            Parameter::Text(value) => query.bind::<Nullable<Text>, _>(value),
            Parameter::Bytes(value) => query.bind::<Nullable<Binary>, _>(value),
            other => return unknown(&other),
        })
    }
}
