//! What was given for the settings of an adapter: [`Values`].

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Problem;

/// A value, read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A text, a path, a choice, or a word in the place of a number or a time.
    Text(String),
    /// A whole number.
    Integer(u64),
    /// A boolean.
    Bool(bool),
    /// A time.
    Duration(Duration),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The values of an adapter's settings that were given, by key. What was not given has its default by the
/// adapter.
#[derive(Clone, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Value>,
    rest: BTreeMap<String, String>,
}

impl Values {
    /// Sets a value.
    pub fn insert(&mut self, key: &'static str, value: Value) {
        self.given.insert(key, value);
    }

    /// Sets a value of [`Kind::Rest`](super::Kind::Rest).
    pub fn insert_rest(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.rest.insert(name.into(), value.into());
    }

    /// The text of a key, or the word in the place of its number or time.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.given.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of a key. The range of its [`Kind::Integer`](super::Kind::Integer) must fit into the type.
    pub fn integer<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        match self.given.get(key)? {
            Value::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The boolean of a key.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        match self.given.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The time of a key.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        match self.given.get(key)? {
            Value::Duration(time) => Some(*time),
            _ => None,
        }
    }

    /// What was given beside the named settings, by name.
    pub fn rest(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rest.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Two texts that belong together, such as a certificate and its key. One without the other is a problem.
    pub fn pair(
        &self,
        first: &'static str,
        second: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<(&str, &str)> {
        match (self.text(first), self.text(second)) {
            (Some(one), Some(other)) => return Some((one, other)),
            (None, None) => {}
            (one, _) => {
                let (given, lacking) = if one.is_some() { (first, second) } else { (second, first) };
                let problem = Problem::new(
                    given,
                    format!("is given without {lacking}"),
                    format!("give {lacking} as well, or neither"),
                );
                problems.push(problem);
            }
        }
        None
    }
}

/// Without the values, some of which may be secret.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).entries(self.rest.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_pair_is_a_problem_that_names_what_lacks() {
        let mut values = Values::default();
        let mut problems = Vec::new();
        assert_eq!(values.pair("certificate", "key", &mut problems), None);
        assert!(problems.is_empty());
        values.insert("key", Value::from("k"));
        assert_eq!(values.pair("certificate", "key", &mut problems), None);
        assert_eq!(
            problems[0].to_string(),
            "key is given without certificate; give certificate as well, or neither"
        );
        values.insert("certificate", Value::from("c"));
        assert_eq!(values.pair("certificate", "key", &mut problems), Some(("c", "k")));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn values_are_not_shown() {
        let mut values = Values::default();
        values.insert("password", Value::from("hush"));
        values.insert_rest("sasl.password", "hush");
        assert_eq!(format!("{values:?}"), r#"{"password", "sasl.password"}"#);
    }
}
