//! A setting as data: [`Setting`], and how what was given for one is read.

use std::time::Duration;

use super::{Problem, Value};

/// The longest time that a setting accepts: more is a mistake, and could overflow a clock.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// One setting of an adapter or of the relay.
///
/// ```
/// use outbox_core::settings::{Kind, Setting};
///
/// const SETTINGS: &[Setting] = &[
///     Setting::new("connections", Kind::Integer { min: 1, max: 1_000 }, "The size of the connection pool.").default("5"),
///     Setting::new("ca_file", Kind::Path, "The authorities to trust, in PEM.").reloadable(),
/// ];
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Setting {
    /// Its name within the adapter's table. A dot makes a table in it: `retry.delay_min`.
    pub key: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// What holds where it is not given, as a file would have it; `None` where there is nothing to have.
    pub default: Option<&'static str>,
    /// What an integer counts.
    pub unit: Option<&'static str>,
    /// What it does, in full sentences.
    pub text: &'static str,
    /// Its value may be a password, or hold one: it is never shown.
    pub secret: bool,
    /// A running relay takes over a change; of a path, a change of the file.
    pub reloadable: bool,
}

/// What a setting accepts.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kind {
    /// Any text.
    Text,
    /// The path of a file.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A whole number from 0, or this word.
    IntegerOr(&'static str),
    /// A time with its unit.
    Duration {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// A time above zero, or this word.
    DurationOr(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A text of a form of its own.
    Form {
        /// What is accepted, behind `give`.
        accepted: &'static str,
        /// Whether a text has the form.
        is_valid: fn(&str) -> bool,
    },
    /// All other keys of the table, which are names of another program, such as a client library's own
    /// settings. The key of such a setting is `*`.
    Rest {
        /// Names of it that end with `_file` where the environment has them, and are not files with the
        /// value.
        file_names: &'static [&'static str],
        /// Lines of a file that show some.
        examples: &'static [&'static str],
    },
}

/// A value as it was given, with the type that it has there.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Given<'a> {
    /// A text of a file that has types.
    Text(&'a str),
    /// An integer of a file that has types, in decimal.
    Integer(&'a str),
    /// A boolean of a file that has types.
    Bool(bool),
    /// A text from where there are no types, such as the environment.
    Untyped(&'a str),
    /// A value of another type, by that type's name.
    Other(&'a str),
}

impl Setting {
    /// A setting without a default.
    pub const fn new(key: &'static str, kind: Kind, text: &'static str) -> Self {
        Self { key, kind, default: None, unit: None, text, secret: false, reloadable: false }
    }

    /// What holds where it is not given, as a file would have it, without quotes.
    #[must_use]
    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// What an integer counts.
    #[must_use]
    pub const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = Some(unit);
        self
    }

    /// Its value is never shown.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// A running relay takes over a change.
    #[must_use]
    pub const fn reloadable(mut self) -> Self {
        self.reloadable = true;
        self
    }

    /// What is accepted, as it stands behind `give`.
    pub fn accepted(&self) -> String {
        const TIME: &str = "a time with its unit, such as \"250ms\", \"5s\" or \"1m 30s\"";
        match self.kind {
            Kind::Text => "a text".to_owned(),
            Kind::Path => "the path of a file".to_owned(),
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer { min, max } => {
                let of = self.unit.map(|unit| format!(" of {unit}")).unwrap_or_default();
                // A bound that only stands for the width of the number's type tells nothing.
                let to = if max < u64::from(u32::MAX) { format!(" to {max}") } else { String::new() };
                format!("a whole number{of} from {min}{to}")
            }
            Kind::IntegerOr(word) => format!("{word:?} or a whole number from 0"),
            Kind::Duration { min, max } => match (min.as_millis() > 0, max < YEAR) {
                (true, true) => format!("{TIME}, from {} to {}", text_of(min), text_of(max)),
                (true, false) => format!("{TIME}, at least {}", text_of(min)),
                (false, true) => format!("{TIME}, at most {}", text_of(max)),
                (false, false) if min.is_zero() => TIME.to_owned(),
                (false, false) => format!("{TIME}, above zero"),
            },
            Kind::DurationOr(word) => format!("{word:?} or {TIME}"),
            Kind::Choice(words) => {
                words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ")
            }
            Kind::Form { accepted, .. } => accepted.to_owned(),
            Kind::Rest { .. } => "a text, an integer or a boolean".to_owned(),
        }
    }

    /// Reads what was given. An empty text of a setting without a default counts as absent, as an empty
    /// variable of the environment does: an example can then show the setting.
    ///
    /// # Errors
    /// The problem, which shows the value unless it may be secret.
    pub fn read(&self, given: Given<'_>) -> Result<Option<Value>, Problem> {
        if self.default.is_none()
            && matches!(self.kind, Kind::Text | Kind::Path)
            && matches!(given, Given::Text(""))
        {
            return Ok(None);
        }
        self.value(given).map(Some).ok_or_else(|| self.refused(&shown(given)))
    }

    fn value(&self, given: Given<'_>) -> Option<Value> {
        let text = match given {
            Given::Text(text) | Given::Untyped(text) => Some(text),
            _ => None,
        };
        // A number in quotes is a mistake; a word in the place of a number is not.
        let number = match given {
            Given::Integer(text) | Given::Untyped(text) => integer(text),
            _ => None,
        };
        let is_time = |time: &Duration, min: Duration, max: Duration| (min..=max).contains(time);
        match self.kind {
            Kind::Text | Kind::Path => text.map(Value::from),
            Kind::Bool => match given {
                Given::Bool(value) => Some(Value::Bool(value)),
                Given::Untyped("true") => Some(Value::Bool(true)),
                Given::Untyped("false") => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::Integer { min, max } => {
                number.filter(|number| (min..=max).contains(number)).map(Value::Integer)
            }
            Kind::IntegerOr(word) if text == Some(word) => Some(Value::from(word)),
            Kind::IntegerOr(_) => number.map(Value::Integer),
            Kind::Duration { min, max } => {
                duration(text?).filter(|time| is_time(time, min, max)).map(Value::Duration)
            }
            Kind::DurationOr(word) if text == Some(word) => Some(Value::from(word)),
            Kind::DurationOr(_) => duration(text?)
                .filter(|time| is_time(time, Duration::from_nanos(1), Duration::MAX))
                .map(Value::Duration),
            Kind::Choice(words) => text.filter(|text| words.contains(text)).map(Value::from),
            Kind::Form { is_valid, .. } => text.filter(|text| is_valid(text)).map(Value::from),
            Kind::Rest { .. } => match given {
                Given::Text(text) | Given::Integer(text) | Given::Untyped(text) => Some(Value::from(text)),
                Given::Bool(value) => Some(Value::from(if value { "true" } else { "false" })),
                Given::Other(_) => None,
            },
        }
    }

    /// Names a number that is not accepted, for a builder.
    pub fn check_integer<T: TryInto<u64> + Copy + std::fmt::Display>(
        &self,
        number: T,
        problems: &mut Vec<Problem>,
    ) {
        let Kind::Integer { min, max } = self.kind else { return };
        if !number.try_into().is_ok_and(|number| (min..=max).contains(&number)) {
            problems.push(self.refused(&format!("is {number}")));
        }
    }

    /// Names a time that is not accepted, for a builder.
    pub fn check_duration(&self, time: Duration, problems: &mut Vec<Problem>) {
        let Kind::Duration { min, max } = self.kind else { return };
        if !(min..=max).contains(&time) {
            problems.push(self.refused(&format!("is {}", text_of(time))));
        }
    }

    fn refused(&self, what: &str) -> Problem {
        let what = if self.secret { "is not understood" } else { what };
        Problem::new(self.key, what, format!("give {}", self.accepted()))
    }
}

impl Kind {
    /// A time above zero and up to a year.
    pub const TIME: Self = Self::Duration { min: Duration::from_nanos(1), max: YEAR };

    /// A time up to a year; zero is accepted.
    pub const TIME_OR_ZERO: Self = Self::Duration { min: Duration::ZERO, max: YEAR };

    /// A whole number from 1 that fits in 32 bits.
    pub const COUNT: Self = Self::Integer { min: 1, max: u32::MAX as u64 };
}

/// Digits, grouped by underscores if need be, as TOML has them.
fn integer(text: &str) -> Option<u64> {
    text.replace('_', "").parse().ok()
}

/// A time such as `1m 30s`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// A time as [`duration`] reads it.
pub(crate) fn text_of(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn shown(given: Given<'_>) -> String {
    match given {
        Given::Text(text) | Given::Untyped(text) => format!("is {text:?}"),
        Given::Integer(text) => format!("is {text}"),
        Given::Bool(value) => format!("is {value}"),
        Given::Other(kind) => format!("is of the type {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, given: Given<'_>) -> Result<Option<Value>, String> {
        Setting::new("x", kind, "").read(given).map_err(|problem| problem.to_string())
    }

    #[test]
    fn each_kind_takes_what_it_accepts_and_nothing_else() {
        let text = |text: &str| Ok(Some(Value::from(text)));
        let number = |number| Ok(Some(Value::Integer(number)));
        let five = Kind::Integer { min: 1, max: 5 };
        assert_eq!(read(Kind::Text, Given::Text("a")), text("a"));
        assert_eq!(read(Kind::Text, Given::Text("")), Ok(None));
        assert_eq!(read(five, Given::Integer("0_5")), number(5));
        assert_eq!(read(five, Given::Untyped("5")), number(5));
        assert_eq!(read(Kind::IntegerOr("random"), Given::Text("random")), text("random"));
        assert_eq!(read(Kind::IntegerOr("random"), Given::Integer("7")), number(7));
        assert_eq!(read(Kind::DurationOr("none"), Given::Untyped("none")), text("none"));
        let time = Ok(Some(Value::Duration(Duration::from_millis(90_500))));
        assert_eq!(read(Kind::TIME, Given::Text("1m 30s 500ms")), time);
        assert_eq!(read(Kind::DurationOr("none"), Given::Text("1m 30s 500ms")), time);
        assert_eq!(read(Kind::TIME_OR_ZERO, Given::Text("0s")), Ok(Some(Value::Duration(Duration::ZERO))));
        assert_eq!(read(Kind::Choice(&["a", "b"]), Given::Untyped("b")), text("b"));
        assert_eq!(read(Kind::Bool, Given::Untyped("false")), Ok(Some(Value::Bool(false))));
        let rest = Kind::Rest { file_names: &[], examples: &[] };
        assert_eq!(read(rest, Given::Bool(true)), text("true"));
        for (kind, given, refusal) in [
            (Kind::Text, Given::Integer("7"), "x is 7; give a text"),
            (five, Given::Text("5"), "x is \"5\"; give a whole number from 1 to 5"),
            (five, Given::Integer("6"), "x is 6; give a whole number from 1 to 5"),
            (Kind::COUNT, Given::Other("float"), "x is of the type float; give a whole number from 1"),
            (
                Kind::IntegerOr("random"),
                Given::Text("7"),
                "x is \"7\"; give \"random\" or a whole number from 0",
            ),
            (Kind::Choice(&["a", "b"]), Given::Text("c"), "x is \"c\"; give \"a\" or \"b\""),
            (Kind::Bool, Given::Text("true"), "x is \"true\"; give true or false"),
        ] {
            assert_eq!(read(kind, given), Err(refusal.to_owned()));
        }
        for (kind, given) in [
            (Kind::TIME, Given::Text("0s")),
            (Kind::TIME, Given::Integer("5")),
            (Kind::TIME, Given::Text("2years")),
            (Kind::DurationOr("none"), Given::Text("0s")),
        ] {
            assert!(read(kind, given).unwrap_err().contains("a time with its unit"), "{given:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let setting = Setting::new("x", Kind::Bool, "").secret();
        let problem = setting.read(Given::Text("hush")).unwrap_err();
        assert_eq!(problem.to_string(), "x is not understood; give true or false");
    }

    #[test]
    fn a_builder_is_held_to_the_same_bounds() {
        let mut problems = Vec::new();
        let setting = Setting::new("size", Kind::Integer { min: 1, max: 9 }, "").unit("bytes");
        setting.check_integer(9_usize, &mut problems);
        setting.check_integer(0_u32, &mut problems);
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(600));
        Setting::new("wait", Kind::Duration { min, max }, "").check_duration(Duration::ZERO, &mut problems);
        let texts: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(texts[0], "size is 0; give a whole number of bytes from 1 to 9");
        assert!(
            texts[1].starts_with("wait is 0s; ") && texts[1].ends_with(", from 100ms to 10m"),
            "{texts:?}"
        );
    }
}
