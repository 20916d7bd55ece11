//! What is wrong with settings: [`Problem`] and [`ConfigError`], and the checks that several adapters need.

use std::{borrow::Cow, fmt, fs, path::Path};

use crate::{StoreError, StoreErrorKind};

/// The longest table prefix, schema or database that [`check_identifier`] accepts, in bytes. With the longest
/// suffix it stays below PostgreSQL's 63 and MySQL's 64.
pub const IDENTIFIER_BYTES_MAX: usize = 40;

/// One mistake in the settings. Its text never holds a value that may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The setting, by its key in its adapter's table, or as the builder calls it.
    pub setting: Cow<'static, str>,
    /// What is wrong with it, as a sentence that goes on from the setting's name: `is 0`.
    pub what: String,
    /// What to do about it: `give a whole number from 1`.
    pub remedy: String,
    /// Other settings that take part in the problem, and could be changed instead.
    pub related: Vec<Cow<'static, str>>,
}

impl Problem {
    /// A problem of one setting.
    pub fn new(
        setting: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { setting: setting.into(), what: what.into(), remedy: remedy.into(), related: Vec::new() }
    }

    /// Names other settings that take part in it.
    #[must_use]
    pub fn with_related(mut self, settings: impl IntoIterator<Item = &'static str>) -> Self {
        self.related.extend(settings.into_iter().map(Cow::Borrowed));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.setting, self.what, self.remedy)
    }
}

/// Everything that is wrong with the settings of a relay, a replay, a store or a publisher, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// An error of these problems.
    pub fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// An error if there are problems.
    ///
    /// # Errors
    /// All of them.
    pub fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// What was built, unless there are problems.
    ///
    /// # Errors
    /// These problems and those of the build, at once.
    pub fn join<T>(mut problems: Vec<Problem>, built: Result<T, Self>) -> Result<T, Self> {
        match built {
            Ok(built) => Self::check(problems).map(|()| built),
            Err(error) => {
                problems.extend(error.problems);
                Err(Self { problems })
            }
        }
    }

    /// Each problem, in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The problems.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The same with other names, for an adapter whose builder calls a setting otherwise than its table:
    /// pairs of the builder's name and the key.
    #[must_use]
    pub fn renamed(mut self, names: &[(&str, &'static str)]) -> Self {
        let renamed = |setting: &mut Cow<'static, str>| {
            if let Some((_, key)) = names.iter().find(|(name, _)| name == setting) {
                *setting = Cow::Borrowed(*key);
            }
        };
        for problem in &mut self.problems {
            renamed(&mut problem.setting);
            problem.related.iter_mut().for_each(renamed);
        }
        self
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings do not work: ")?;
        if let [problem] = &self.problems[..] {
            return write!(f, "{problem}");
        }
        for (number, problem) in (1..).zip(&self.problems) {
            let separator = if number == 1 { "" } else { ", " };
            write!(f, "{separator}[{number}] {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for StoreError {
    fn from(error: ConfigError) -> Self {
        Self::new(StoreErrorKind::Misuse, error.to_string())
    }
}

/// Names a problem of a schema, database or table prefix that is not an identifier. Such a name goes into
/// statements as it is, so only letters, digits and underscores may pass.
pub fn check_identifier(setting: &'static str, name: &str, problems: &mut Vec<Problem>) {
    let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let tail = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !head || !tail || name.len() > IDENTIFIER_BYTES_MAX {
        problems.push(Problem::new(
            setting,
            format!("is {name:?}"),
            format!(
                "give letters, digits and _, not a digit first, at most {IDENTIFIER_BYTES_MAX} characters"
            ),
        ));
    }
}

/// Names a problem of a file that cannot be read, such as a certificate.
pub fn check_file(setting: &'static str, path: Option<&Path>, problems: &mut Vec<Problem>) {
    if let Some(path) = path
        && let Err(error) = fs::File::open(path)
    {
        let what = format!("names {}, which cannot be read: {error}", path.display());
        problems.push(Problem::new(setting, what, "give the path of a file that this user may read"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_is_a_sentence_and_several_are_numbered() {
        let problem = |setting: &'static str| Problem::new(setting, "is 0", "give 1");
        assert!(ConfigError::check(Vec::new()).is_ok());
        let error = ConfigError::check(vec![problem("a")]).unwrap_err();
        assert_eq!(error.to_string(), "the settings do not work: a is 0; give 1");
        let error = ConfigError::check(vec![problem("a"), problem("b")]).unwrap_err();
        assert_eq!(error.to_string(), "the settings do not work: [1] a is 0; give 1, [2] b is 0; give 1");
        assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Misuse);
    }

    #[test]
    fn what_was_built_is_given_only_without_problems() {
        let problem = || vec![Problem::new("a", "is 0", "give 1")];
        assert_eq!(ConfigError::join(Vec::new(), Ok(7)), Ok(7));
        assert_eq!(ConfigError::join(problem(), Ok(7)).unwrap_err().problems(), problem());
        let built: Result<(), _> = ConfigError::check(problem());
        assert_eq!(ConfigError::join(problem(), built).unwrap_err().problems().len(), 2);
    }

    #[test]
    fn a_builders_names_become_keys() {
        let problem = Problem::new("table", "is 0", "give 1").with_related(["database", "other"]);
        let error = ConfigError::from(problem).renamed(&[("table", "prefix"), ("database", "schema")]);
        let [problem] = error.problems() else { panic!("{error}") };
        assert_eq!(
            (&*problem.setting, &problem.related[..]),
            ("prefix", &["schema".into(), "other".into()][..])
        );
    }

    #[test]
    fn only_identifiers_pass() {
        let refused = |name: &str| {
            let mut problems = Vec::new();
            check_identifier("prefix", name, &mut problems);
            !problems.is_empty()
        };
        for good in ["outbox", "_o", "Tenant_7", &"x".repeat(40)] {
            assert!(!refused(good), "{good}");
        }
        for bad in ["", "7x", "a-b", "a b", "a\"b", "a.b", "ä", &"x".repeat(41)] {
            assert!(refused(bad), "{bad}");
        }
    }
}
