//! Reads settings by key and type, and gathers everything that is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
    time::Duration,
};

use outbox_core::Finding;

use super::source::{Environment, FILE_SUFFIX, FileSettings, Given, Origin, PREFIX, Value};

/// Gives each setting that is asked for, the environment before the file. What was never asked for is unknown, so no
/// second list of the keys can disagree with the first.
///
/// Of a file with several outboxes each has a reader of its own, which gives what the outbox says itself before what
/// is said for all.
#[derive(Clone)]
pub(super) struct Reader {
    /// The outbox, where there are several.
    outbox: Option<String>,
    /// What the outbox says itself.
    own: BTreeMap<String, Given>,
    file: BTreeMap<String, Given>,
    environment: Environment,
    findings: Vec<Finding>,
    /// The keys that were asked for.
    keys: Vec<&'static str>,
    /// Where the values of the keys that were given came from.
    origins: BTreeMap<String, Origin>,
    /// The values of the keys that were given.
    values: BTreeMap<String, String>,
    /// Keys whose value was refused: what follows from their default is no finding of its own.
    refused: BTreeSet<&'static str>,
    /// The file could be read, so that what is missing is missing.
    file_is_complete: bool,
}

impl Reader {
    /// A reader for each outbox: one without a name, or as many as the file names.
    pub(super) fn all(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Vec<Self> {
        let mut file = path.map(FileSettings::read).unwrap_or_default();
        let outboxes = std::mem::take(&mut file.outboxes);
        let shared = Self {
            outbox: None,
            own: BTreeMap::new(),
            file_is_complete: file.findings.is_empty(),
            file: file.given,
            findings: file.findings,
            environment: Environment::new(variables),
            keys: Vec::new(),
            origins: BTreeMap::new(),
            values: BTreeMap::new(),
            refused: BTreeSet::new(),
        };
        if outboxes.is_empty() {
            return vec![shared];
        }
        let mut readers: Vec<Self> = Vec::new();
        for own in outboxes {
            let mut reader = Self { own, ..shared.clone() };
            let taken: Vec<String> = readers.iter().filter_map(|reader| reader.outbox.clone()).collect();
            reader.read_name(&taken);
            readers.push(reader);
        }
        // The variables of one outbox are nothing to the others.
        let names: Vec<String> = readers.iter().filter_map(|reader| reader.outbox.clone()).collect();
        for reader in &mut readers {
            for name in names.iter().filter(|name| reader.outbox.as_ref() != Some(name)) {
                rooms(name).iter().for_each(|room| reader.environment.forget(room));
            }
        }
        readers
    }

    /// Takes the outbox's name. Without one that can be used, it has none.
    fn read_name(&mut self, taken: &[String]) {
        let accepted = "letters, digits and _, not a digit first, at most 40 characters, and none of \
                        store, publisher, relay, config, log";
        let Some(given) = self.own.remove("name") else {
            // Any line of the table will do to find it by.
            let place =
                self.own.values().next().map(|given| format!(" ({})", given.origin)).unwrap_or_default();
            let problem = format!("an [[outbox]]{place} has no name");
            self.findings.push(Finding::error(
                "missing-key",
                problem,
                format!("give name = \"…\": {accepted}"),
            ));
            return;
        };
        let refused = |what: String, remedy: String| {
            Finding::error("wrong-value", format!("name ({}) {what}", given.origin), remedy)
        };
        match &given.value {
            Value::Text(name) if !is_outbox_name(name) => {
                self.findings.push(refused(format!("is {name:?}"), format!("give {accepted}")));
            }
            Value::Text(name) if taken.iter().any(|other| other.eq_ignore_ascii_case(name)) => {
                let what = format!("is {name:?}, as that of another outbox is");
                self.findings.push(refused(what, "give each outbox a name of its own".to_owned()));
            }
            Value::Text(name) => self.outbox = Some(name.clone()),
            _ => self.findings.push(refused("is no text".to_owned(), format!("give {accepted}"))),
        }
    }

    /// One reader, of settings that name no outboxes.
    #[cfg(all(test, feature = "sqlite"))]
    pub(super) fn new(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        Self::all(path, variables).remove(0)
    }

    /// The name of the outbox, where there are several.
    pub(super) fn outbox(&self) -> Option<&str> {
        self.outbox.as_deref()
    }

    /// The values that were given in a table and the tables below it, by key.
    pub(super) fn values_of(&self, table: &str) -> BTreeMap<String, String> {
        let values = self.values.iter().filter(|(key, _)| key.starts_with(table));
        values.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Reads a time, such as `5s`.
    pub(super) fn duration(&mut self, key: &'static str, into: &mut Duration) {
        self.read(key, DURATION, into, |text| humantime::parse_duration(text).ok());
    }

    /// Reads a whole number.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, key: &'static str, accepted: &str, into: &mut T) {
        self.read_integer(key, accepted, into, |text| parse_integer(text)?.try_into().ok());
    }

    /// Reads a boolean.
    pub(super) fn boolean(&mut self, key: &'static str, into: &mut bool) {
        let Some(given) = self.take(key) else { return };
        match &given.value {
            Value::Boolean(boolean) => *into = *boolean,
            Value::Untyped(text) if text == "true" => *into = true,
            Value::Untyped(text) if text == "false" => *into = false,
            _ => self.refuse(key, &given, "true or false"),
        }
    }

    /// Reads one of several words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], into: &mut T) {
        let names: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.read(key, &names.join(" or "), into, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        });
    }

    /// Reads a text of a form of its own; `accepted` says which.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        accepted: &str,
        into: &mut T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) {
        let Some(given) = self.take(key) else { return };
        let text = match &given.value {
            Value::Text(text) | Value::Untyped(text) => Some(text),
            _ => None,
        };
        match text.and_then(|text| parse(text)) {
            Some(value) => *into = value,
            None => self.refuse(key, &given, accepted),
        }
    }

    /// As [`read`](Self::read), for a setting that is an integer, or a word instead of one.
    pub(super) fn read_integer<T>(
        &mut self,
        key: &'static str,
        accepted: &str,
        into: &mut T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) {
        let Some(given) = self.take(key) else { return };
        let text = match &given.value {
            Value::Integer(text) | Value::Untyped(text) => Some(text),
            // "4096" in quotes is a mistake, a word is not.
            Value::Text(text) if parse_integer(text).is_none() => Some(text),
            _ => None,
        };
        match text.and_then(|text| parse(text)) {
            Some(value) => *into = value,
            None => self.refuse(key, &given, accepted),
        }
    }

    /// A text whose content the caller judges, with [`problem`](Self::problem).
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let mut text = None;
        self.read(key, "a text", &mut text, |text| Some(Some(text.to_owned())));
        text
    }

    /// Takes what is left of a table whose names are not ours, with the names as the file has them, or as the
    /// environment has them in lower case with dots for underscores.
    pub(super) fn rest_of(
        &mut self,
        table: &'static str,
        value_file_names: &[&str],
    ) -> BTreeMap<String, String> {
        let prefix = format!("{table}.");
        let mut rest = BTreeMap::new();
        self.rest_of_file(&prefix, &mut rest);
        self.rest_of_environment(table, &format!("{PREFIX}{}", room(&prefix)), value_file_names, &mut rest);
        std::mem::swap(&mut self.file, &mut self.own);
        self.rest_of_file(&prefix, &mut rest);
        std::mem::swap(&mut self.file, &mut self.own);
        if let Some(name) = &self.outbox {
            let prefix = format!("{PREFIX}{}_{}", name.to_ascii_uppercase(), room(&prefix));
            self.rest_of_environment(table, &prefix, value_file_names, &mut rest);
        }
        let values = rest.iter().map(|(name, value)| (format!("{prefix}{name}"), value.clone()));
        self.values.extend(values);
        rest
    }

    fn rest_of_file(&mut self, prefix: &str, rest: &mut BTreeMap<String, String>) {
        let names: Vec<String> = self.file.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        for key in names {
            let Some(given) = self.file.remove(&key) else { continue };
            let name = key[prefix.len()..].to_owned();
            match &given.value {
                Value::Text(text) | Value::Integer(text) => _ = rest.insert(name, text.clone()),
                Value::Boolean(boolean) => _ = rest.insert(name, boolean.to_string()),
                _ => self.findings.push(Finding::error(
                    "wrong-value",
                    format!("{key} ({}) is no value of a property", given.origin),
                    "give a text, an integer or a boolean",
                )),
            }
            self.origins.insert(key, given.origin);
        }
    }

    fn rest_of_environment(
        &mut self,
        table: &str,
        prefix: &str,
        value_file_names: &[&str],
        rest: &mut BTreeMap<String, String>,
    ) {
        let names: BTreeSet<String> = self
            .environment
            .names()
            .filter_map(|name| name.strip_prefix(prefix))
            .map(|name| {
                let property = property_name(name);
                let bare = name.strip_suffix(FILE_SUFFIX);
                bare.filter(|_| !value_file_names.contains(&property.as_str())).unwrap_or(name).to_owned()
            })
            .collect();
        for name in names {
            let taken = self.environment.take(&format!("{prefix}{name}"), &mut self.findings);
            if let Some(Given { value: Value::Untyped(value), origin }) = taken {
                let property = property_name(&name);
                self.origins.insert(format!("{table}.{property}"), origin);
                rest.insert(property, value);
            }
        }
    }

    /// Where a key's value came from, in brackets behind a space; nothing of a default.
    pub(super) fn origin(&self, key: &str) -> String {
        self.origins.get(key).map(|origin| format!(" ({origin})")).unwrap_or_default()
    }

    /// The key was given, whether it is right or not.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// The key's value was refused, so its default stands in for it.
    pub(super) fn is_refused(&self, key: &str) -> bool {
        self.refused.contains(key)
    }

    /// Something is wrong with the value of this key.
    pub(super) fn problem(&mut self, key: &'static str, what: &str, remedy: &str) {
        let problem = format!("{key}{} {what}", self.origin(key));
        self.refused.insert(key);
        self.findings.push(Finding::error("wrong-value", problem, remedy));
    }

    /// This key must be there, and is not.
    pub(super) fn missing(&mut self, key: &'static str, remedy: &str) {
        // A value that could not be read has been reported, and is not missing.
        if self.file_is_complete && !self.is_given(key) && !self.refused.contains(key) {
            let of = self.outbox.as_ref().map(|name| format!(" of the outbox {name}")).unwrap_or_default();
            let problem = format!("{key}{of} is missing");
            let variable = self.own_variable(key).unwrap_or_else(|| variable(key));
            let remedy = format!("{remedy}; by the file, {variable} or {variable}{FILE_SUFFIX}");
            self.findings.push(Finding::error("missing-key", problem, remedy));
        }
    }

    /// Any other finding.
    pub(super) fn finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The keys that there are.
    #[cfg(all(test, feature = "sqlite"))]
    pub(super) fn keys(&self) -> &[&'static str] {
        &self.keys
    }

    /// Everything that was wrong, with what nobody asked for.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (key, given) in self.own.iter().chain(&self.file) {
            let is_empty_table = matches!(given.value, Value::Other("table"))
                && self.keys.iter().any(|known| known.starts_with(&format!("{key}.")));
            if !is_empty_table {
                let problem = format!("{key} ({}) is no setting", given.origin);
                let remedy = remedy_for_unknown(key, &self.keys);
                self.findings.push(Finding::error("unknown-key", problem, remedy));
            }
        }
        let mut known: Vec<String> = self.keys.iter().map(|key| variable(key)).collect();
        let mut rooms: Vec<String> = TABLES.map(|table| format!("{PREFIX}{}", room(table))).to_vec();
        if let Some(name) = &self.outbox {
            known.extend(self.keys.iter().filter_map(|key| self.own_variable(key)));
            rooms.extend(self::rooms(name));
        }
        for name in self.environment.names() {
            let nearest =
                nearest(name.strip_suffix(FILE_SUFFIX).unwrap_or(name), known.iter().map(String::as_str));
            // Others may have variables of this prefix; one that is nearly a setting is not theirs.
            if nearest.is_none() && !rooms.iter().any(|room| name.starts_with(room)) {
                continue;
            }
            let remedy = match nearest {
                Some(known) => format!("did you mean {known}? else unset it"),
                None => "unset it; outbox.example.toml has every setting, and README.md the rule for the variables".to_owned(),
            };
            self.findings.push(Finding::error("unknown-variable", format!("{name} is no setting"), remedy));
        }
        self.findings
    }

    fn take(&mut self, key: &'static str) -> Option<Given> {
        self.keys.push(key);
        let (own_file, file) = (self.own.remove(key), self.file.remove(key));
        let findings = self.findings.len();
        let own_variable = self.own_variable(key);
        let own = own_variable.and_then(|name| self.environment.take(&name, &mut self.findings));
        let shared = self.environment.take(&variable(key), &mut self.findings);
        if self.findings.len() > findings {
            self.refused.insert(key);
        }
        let given = own.or(own_file).or(shared).or(file)?;
        self.origins.insert(key.to_owned(), given.origin.clone());
        if let Value::Text(value) | Value::Integer(value) | Value::Untyped(value) = &given.value {
            self.values.insert(key.to_owned(), value.clone());
        }
        Some(given)
    }

    /// The variable that gives a key of this outbox alone.
    fn own_variable(&self, key: &str) -> Option<String> {
        let name = self.outbox.as_ref()?.to_ascii_uppercase();
        Some(format!("{PREFIX}{name}_{}", room(key)))
    }

    fn refuse(&mut self, key: &'static str, given: &Given, accepted: &str) {
        let is = match &given.value {
            _ if key.ends_with("url") || given.origin.is_value_file() => "is not understood".to_owned(),
            Value::Text(text) | Value::Untyped(text) => format!("is {text:?}"),
            Value::Integer(text) => format!("is {text}"),
            Value::Boolean(boolean) => format!("is {boolean}"),
            Value::Other(kind) => format!("is of the type {kind}"),
        };
        self.problem(key, &is, &format!("give {accepted}"));
    }
}

/// What is accepted as a time.
pub(super) const DURATION: &str = "a time with its unit, such as \"250ms\", \"5s\" or \"1m 30s\"";

/// The tables of settings, with the dot behind them.
const TABLES: [&str; 3] = ["store.", "publisher.", "relay."];

/// The variable of a key: `relay.lease_ttl` is `OUTBOX_RELAY_LEASE_TTL`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", room(key))
}

/// A key, or the beginning of one, as a variable has it behind its prefix.
fn room(key: &str) -> String {
    key.to_ascii_uppercase().replace('.', "_")
}

/// What the variables of one outbox start with.
fn rooms(outbox: &str) -> Vec<String> {
    let name = outbox.to_ascii_uppercase();
    TABLES.map(|table| format!("{PREFIX}{name}_{}", room(table))).to_vec()
}

/// An outbox's name becomes part of the names of variables, where it must not read as something else.
fn is_outbox_name(name: &str) -> bool {
    let reserved = ["store", "publisher", "relay", "config", "log"];
    let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let tail = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    head && tail && name.len() <= 40 && !reserved.iter().any(|word| word.eq_ignore_ascii_case(name))
}

/// Digits, grouped by underscores if need be, as TOML has them.
pub(super) fn parse_integer(text: &str) -> Option<u64> {
    text.replace('_', "").parse().ok()
}

fn property_name(variable: &str) -> String {
    variable.to_ascii_lowercase().replace('_', ".")
}

fn remedy_for_unknown(key: &str, known: &[&'static str]) -> String {
    if let Some(example) = known.iter().find(|known| known.starts_with(&format!("{key}."))) {
        return format!("it is a table: write [{key}], and in it for example {}", &example[key.len() + 1..]);
    }
    // What stands in another table is further away in letters than in thought.
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let elsewhere = || known.iter().copied().find(|known| last(known) == last(key));
    match nearest(key, known.iter().copied()).or_else(elsewhere) {
        Some(known) => format!("did you mean {known}? else remove it"),
        None => "remove it; outbox.example.toml has every setting".to_owned(),
    }
}

/// The known name with nearly the same letters.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let with_distance = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, known) = with_distance.min()?;
    (distance <= 3 && distance * 4 <= known.len()).then_some(known)
}
