//! Where settings come from: the file, the environment, and files that the environment names.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use outbox_core::{Finding, settings};
use toml::de::{DeTable, DeValue};

/// What the variables of settings start with.
pub(super) const PREFIX: &str = "OUTBOX_";

/// The name of the tables of a file with several outboxes.
const OUTBOX: &str = "outbox";

/// What is appended to a variable that names a file with the value.
pub(super) const FILE_SUFFIX: &str = "_FILE";

/// The largest file that a variable may name. Certificates in PEM are the largest values there are.
const VALUE_BYTES_MAX: u64 = 1024 * 1024;

/// A value as it was given.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) value: FileValue,
    pub(super) origin: Origin,
}

#[derive(Clone)]
pub(super) enum FileValue {
    /// A string of the file.
    Text(String),
    /// An integer of the file, in decimal.
    Integer(String),
    /// A boolean of the file.
    Boolean(bool),
    /// Anything else of the file, by the name of its type.
    Other(&'static str),
    /// A value of the environment, which has no type.
    Untyped(String),
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Line(Arc<PathBuf>, usize),
    Variable(String),
    /// The variable, and the file it names.
    ValueFile(String, PathBuf),
}

impl FileValue {
    /// As a setting reads it.
    pub(super) fn as_given(&self) -> settings::Given<'_> {
        match self {
            Self::Text(text) => settings::Given::Text(text),
            Self::Integer(text) => settings::Given::Integer(text),
            Self::Boolean(value) => settings::Given::Bool(*value),
            Self::Other(kind) => settings::Given::Other(kind),
            Self::Untyped(text) => settings::Given::Untyped(text),
        }
    }

    /// To compare it with another one.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Integer(text) | Self::Untyped(text) => text.clone(),
            Self::Boolean(value) => value.to_string(),
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

impl Origin {
    /// The value came from a file of its own, so it is a secret more likely than not.
    pub(super) fn is_value_file(&self) -> bool {
        matches!(self, Self::ValueFile(..))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(path, line) => write!(f, "{} line {line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::ValueFile(name, path) => write!(f, "{name}={}", path.display()),
        }
    }
}

/// What a file gave.
#[derive(Default)]
pub(super) struct FileSettings {
    /// By key: the names of the tables and of the setting, joined by dots.
    pub(super) given: BTreeMap<String, Given>,
    /// What each `[[outbox]]` gave, by the same keys without `outbox.`.
    pub(super) outboxes: Vec<BTreeMap<String, Given>>,
    pub(super) findings: Vec<Finding>,
}

impl FileSettings {
    /// Reads the file at `path`.
    pub(super) fn read(path: &Path) -> Self {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => Self {
                findings: vec![Finding::error(
                    "config-file",
                    format!("the configuration file {} cannot be read: {error}", path.display()),
                    "correct the path given by --config or OUTBOX_CONFIG, or give every setting by environment",
                )],
                ..Self::default()
            },
        }
    }

    /// Of a text that is not TOML, every mistake is reported by its line, and nothing is used: what a parser
    /// makes of the rest would only give rise to false mistakes.
    pub(super) fn parse(path: &Path, text: &str) -> Self {
        let (table, mut errors) = DeTable::parse_recoverable(text);
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        if !errors.is_empty() {
            let finding = |error: &toml::de::Error| {
                let line = line_of(text, error.span().map_or(0, |span| span.start));
                // The error's own Display quotes the line, which may hold a password.
                let problem =
                    format!("{} line {line} is not valid TOML: {}", path.display(), error.message());
                Finding::error("config-file", problem, "correct the line; strings need double quotes")
            };
            return Self { findings: errors.iter().map(finding).collect(), ..Self::default() };
        }
        let mut settings = Self::default();
        let path = Arc::new(path.to_owned());
        settings.flatten(&path, text, "", table.get_ref());
        settings.read_outboxes(&path, text, table.get_ref());
        settings
    }

    /// Each `[[outbox]]` is a file of its own, as far as its keys go.
    fn read_outboxes(&mut self, path: &Arc<PathBuf>, text: &str, table: &DeTable<'_>) {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == OUTBOX) else { return };
        self.given.retain(|key, _| key != OUTBOX && !key.starts_with("outbox."));
        let tables = match value.get_ref() {
            DeValue::Array(tables) if !tables.is_empty() => {
                tables.iter().map(|table| table.get_ref()).collect()
            }
            _ => Vec::new(),
        };
        if tables.is_empty() || !tables.iter().all(|table| matches!(table, DeValue::Table(_))) {
            self.findings.push(Finding::error(
                "config-file",
                format!("{} line {}: outbox must be an array of tables", path.display(), line_of(text, name.span().start)),
                "write [[outbox]], once for each outbox, with name = \"…\" and what differs from the other tables",
            ));
            return;
        }
        for table in tables {
            let DeValue::Table(table) = table else { continue };
            let mut outbox = Self::default();
            outbox.flatten(path, text, "", table);
            self.outboxes.push(outbox.given);
            self.findings.extend(outbox.findings);
        }
    }

    fn flatten(&mut self, path: &Arc<PathBuf>, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let value = match value.get_ref() {
                DeValue::Table(inner) if !inner.is_empty() => {
                    self.flatten(path, text, &format!("{key}."), inner);
                    continue;
                }
                DeValue::String(text) => FileValue::Text(text.to_string()),
                DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix())
                    .map_or(FileValue::Other("integer"), |integer| FileValue::Integer(integer.to_string())),
                DeValue::Boolean(boolean) => FileValue::Boolean(*boolean),
                other => FileValue::Other(other.type_str()),
            };
            let origin = Origin::Line(Arc::clone(path), line_of(text, name.span().start));
            if let Some(twice) = self.given.insert(key.clone(), Given { value, origin }) {
                // Only quoted names with dots can come to the same key by two ways.
                self.findings.push(Finding::error(
                    "config-file",
                    format!("{key} is given twice, first by {}", twice.origin),
                    "give it once",
                ));
            }
        }
    }
}

/// Counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// The variables that could be settings. An empty one counts as absent, since that is what an unset variable
/// of a compose file becomes.
#[derive(Clone, Default)]
pub(super) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    pub(super) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            (name.starts_with(PREFIX) && !value.is_empty() && !is_service_link(&name))
                .then_some((name, value))
        };
        Self(variables.into_iter().filter_map(ours).collect())
    }

    /// Takes what the variable, or the file that its sibling names, gives.
    pub(super) fn take(&mut self, variable: &str, findings: &mut Vec<Finding>) -> Option<Given> {
        let sibling = format!("{variable}{FILE_SUFFIX}");
        let (direct, file) = (self.0.remove(variable), self.0.remove(&sibling));
        if direct.is_some() && file.is_some() {
            findings.push(Finding::error(
                "conflicting-variables",
                format!("{variable} and {sibling} are both set"),
                "unset one of them",
            ));
        }
        let given = match (direct, file) {
            (Some(value), _) => value
                .into_string()
                .map(|value| (value, Origin::Variable(variable.to_owned())))
                .map_err(|_| Finding::error("wrong-value", format!("{variable} is not UTF-8"), "correct it")),
            (None, Some(path)) => {
                let path = PathBuf::from(path);
                read_value(&sibling, &path).map(|value| (value, Origin::ValueFile(sibling, path)))
            }
            (None, None) => return None,
        };
        match given {
            Ok((value, origin)) => Some(Given { value: FileValue::Untyped(value), origin }),
            Err(finding) => {
                findings.push(finding);
                None
            }
        }
    }

    /// Forgets the variables that start so.
    pub(super) fn forget(&mut self, prefix: &str) {
        self.0.retain(|name, _| !name.starts_with(prefix));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn read_value(variable: &str, path: &Path) -> Result<String, Finding> {
    let refused = |what: String| {
        Finding::error(
            "value-file",
            format!("{variable} names {}, which {what}", path.display()),
            "give the path of a file that this user may read, with the value as its only content",
        )
    };
    let length = fs::metadata(path).map_err(|error| refused(format!("cannot be read: {error}")))?.len();
    if length > VALUE_BYTES_MAX {
        return Err(refused(format!("has more than {VALUE_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    // The line feed that every editor leaves is not part of a password.
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() { Err(refused("is empty".to_owned())) } else { Ok(value.to_owned()) }
}

/// Kubernetes gives every container variables of every service beside it. A service with the name
/// `outbox-relay` has `OUTBOX_RELAY_SERVICE_HOST`, `OUTBOX_RELAY_PORT` and `OUTBOX_RELAY_PORT_80_TCP_ADDR`,
/// which were not meant as settings.
fn is_service_link(name: &str) -> bool {
    let port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        number && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}
