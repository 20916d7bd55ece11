//! A statement as SeaORM's.

use std::fmt::{Display, Write as _};

use outbox_core::statement::{DriverError, Parameter, Statement};
#[cfg(feature = "postgres")]
use sea_orm::sea_query::ArrayType;
use sea_orm::{DbBackend, Value};

pub(crate) fn raw(backend: DbBackend, statement: Statement<'_>) -> Result<sea_orm::Statement, DriverError> {
    let literal = |parameter: &Parameter<'_>| {
        matches!(parameter, Parameter::Texts(_) | Parameter::ByteStrings(_) | Parameter::Times(_))
    };
    // An array that is bound as a text is another type for the same place. The connection keeps prepared
    // statements by their text, and may be used through sqlx as well, so the text must be another one too.
    let mark = if statement.parameters.iter().any(literal) { " /* array literals */" } else { "" };
    let sql = format!("{}{mark}", statement.sql);
    let values = statement.parameters.into_iter().map(value).collect::<Result<Vec<_>, _>>()?;
    Ok(sea_orm::Statement::from_sql_and_values(backend, sql, values))
}

fn value(parameter: Parameter<'_>) -> Result<Value, DriverError> {
    Ok(match parameter {
        Parameter::Uuid(value) => value.into(),
        Parameter::Integer(value) => value.into(),
        Parameter::BigInteger(value) => value.into(),
        Parameter::Text(value) => value.map(String::from).into(),
        Parameter::Bytes(value) => value.map(<[u8]>::to_vec).into(),
        Parameter::Time(value) => value.into(),
        #[cfg(feature = "postgres")]
        Parameter::Uuids(values) => array(ArrayType::Uuid, values),
        #[cfg(feature = "postgres")]
        Parameter::Integers(values) => array(ArrayType::Int, values),
        // SeaORM panics at a null in an array. The statements cast their arrays, also from a literal.
        Parameter::Texts(values) => array_literal(values).into(),
        Parameter::ByteStrings(values) => {
            array_literal(values.into_iter().map(|bytes| bytes.map(Hexadecimal))).into()
        }
        Parameter::Times(values) => {
            array_literal(values.into_iter().map(|time| time.map(|time| time.to_rfc3339()))).into()
        }
        other => return Err(DriverError::new(format!("a parameter that is unknown here: {other:?}"))),
    })
}

#[cfg(feature = "postgres")]
fn array<V: Into<Value>>(kind: ArrayType, values: impl IntoIterator<Item = V>) -> Value {
    Value::Array(kind, Some(Box::new(values.into_iter().map(Into::into).collect())))
}

/// PostgreSQL's text form of an array (its manual, 8.15.6).
fn array_literal(values: impl IntoIterator<Item = Option<impl Display>>) -> String {
    let mut literal = String::from("{");
    for (place, value) in values.into_iter().enumerate() {
        if place > 0 {
            literal.push(',');
        }
        let Some(value) = value else {
            literal.push_str("NULL");
            continue;
        };
        literal.push('"');
        // Writing to a string cannot fail.
        let _ = write!(Escaped(&mut literal), "{value}");
        literal.push('"');
    }
    literal.push('}');
    literal
}

/// PostgreSQL's text form of bytes (its manual, 8.4.1).
struct Hexadecimal<'a>(&'a [u8]);

impl Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(r"\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

struct Escaped<'a>(&'a mut String);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                self.0.push('\\');
            }
            self.0.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_literal_holds_any_text_and_null() {
        let texts = [Some("plain"), None, Some(""), Some("NULL"), Some(r#"a "b" \c, {d}"#)];
        assert_eq!(array_literal(texts), r#"{"plain",NULL,"","NULL","a \"b\" \\c, {d}"}"#);
        assert_eq!(array_literal([None::<&str>; 0]), "{}");
        let bytes = [Some(Hexadecimal(b"\0\xff{")), None, Some(Hexadecimal(b""))];
        assert_eq!(array_literal(bytes), r#"{"\\x00ff7b",NULL,"\\x"}"#);
    }
}
