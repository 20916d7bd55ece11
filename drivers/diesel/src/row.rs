//! What the statements answer.

use diesel::{
    QueryableByName,
    sql_types::{BigInt, Text},
};

#[derive(QueryableByName)]
pub(crate) struct Number {
    #[diesel(sql_type = BigInt)]
    pub(crate) number: i64,
}

#[derive(QueryableByName)]
pub(crate) struct NamedNumber {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) number: i64,
}

pub(crate) fn numbers(rows: Vec<Number>) -> Vec<i64> {
    rows.into_iter().map(|row| row.number).collect()
}

pub(crate) fn named_numbers(rows: Vec<NamedNumber>) -> Vec<(String, i64)> {
    rows.into_iter().map(|row| (row.name, row.number)).collect()
}
