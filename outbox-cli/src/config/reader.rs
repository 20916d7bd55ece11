//! Reads settings by key and type, and gathers everything that is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
};

use outbox_core::{
    Finding,
    settings::{Kind, Problem, Setting, Value, Values},
};

use super::{
    adapters::PUBLISHERS_LEFT_OUT,
    source::{Environment, FILE_SUFFIX, FileSettings, FileValue, Given, Origin, PREFIX},
};

/// What came of reading one outbox.
pub(super) struct Read {
    /// Everything that was wrong.
    pub(super) findings: Vec<Finding>,
    /// What was given and means nothing to this outbox.
    pub(super) left_out: Vec<LeftOut>,
    /// The keys whose values, if there were some, are in use.
    pub(super) used: BTreeSet<String>,
}

/// A setting that was given and means nothing to the outbox.
#[derive(Clone)]
pub(super) struct LeftOut {
    pub(super) key: String,
    /// The outbox gives it itself, so that it is not meant for another one.
    pub(super) is_own: bool,
    pub(super) finding: Finding,
}

/// Gives each setting that is asked for, the environment before the file. What was never asked for is
/// unknown, so no second list of the keys can disagree with the first.
///
/// Of a file with several outboxes each has a reader of its own, which gives what the outbox says itself
/// before what is said for all.
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
    keys: Vec<String>,
    /// Where the values of the keys that were given came from.
    origins: BTreeMap<String, Origin>,
    /// The values of the keys that were given.
    values: BTreeMap<String, String>,
    /// Keys whose value was refused: what follows from their default is not a finding of its own.
    refused: BTreeSet<String>,
    /// The keys whose values, if there were some, are in use.
    used: BTreeSet<String>,
    /// The keys that the outbox gave itself, in the file or by its own variables.
    own_keys: BTreeSet<String>,
    left_out: Vec<LeftOut>,
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
            used: BTreeSet::new(),
            own_keys: BTreeSet::new(),
            left_out: Vec::new(),
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
            FileValue::Text(name) if !is_outbox_name(name) => {
                self.findings.push(refused(format!("is {name:?}"), format!("give {accepted}")));
            }
            FileValue::Text(name) if taken.iter().any(|other| other.eq_ignore_ascii_case(name)) => {
                let what = format!("is {name:?}, as that of another outbox is");
                self.findings.push(refused(what, "give each outbox a name of its own".to_owned()));
            }
            FileValue::Text(name) => self.outbox = Some(name.clone()),
            _ => self.findings.push(refused("is not a text".to_owned(), format!("give {accepted}"))),
        }
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

    /// Reads the settings of a table, whose name has a dot behind it. A key that was read before is not read
    /// again.
    pub(super) fn values(&mut self, table: &str, settings: &[Setting]) -> Values {
        let mut values = Values::default();
        for setting in settings {
            if let Kind::Rest { file_names, .. } = setting.kind {
                for (name, value) in self.rest_of(table, setting, file_names) {
                    self.used.insert(format!("{table}{name}"));
                    values.insert_rest(name, value);
                }
                continue;
            }
            let key = format!("{table}{}", setting.key);
            let Some(given) = self.take(&key) else { continue };
            match setting.read(given.value.as_given()) {
                Ok(Some(value)) => values.insert(setting.key, value),
                // Said to be absent by an empty text.
                Ok(None) => self.forget(&key),
                Err(problem) => {
                    self.problem(table, &without_secret(problem, &given.origin));
                    self.refused.insert(key.clone());
                }
            }
            self.used.insert(key);
        }
        values
    }

    /// Takes a setting that means nothing here, and keeps the problem that it is given.
    pub(super) fn leave_out(&mut self, table: &str, setting: &Setting, problem: impl Fn(&str) -> Problem) {
        let keys: Vec<String> = match setting.kind {
            Kind::Rest { file_names, .. } => self
                .rest_of(table, setting, file_names)
                .into_keys()
                .map(|name| format!("{table}{name}"))
                .collect(),
            _ => {
                let key = format!("{table}{}", setting.key);
                self.take(&key).map(|_| key).into_iter().collect()
            }
        };
        for key in keys {
            let is_own = self.own_keys.contains(&key);
            let Problem { what, remedy, .. } = problem(&key);
            let finding = Finding::error("wrong-value", format!("{key}{} {what}", self.origin(&key)), remedy);
            self.forget(&key);
            self.left_out.push(LeftOut { key, is_own, finding });
        }
    }

    /// What is left of a table whose names are not ours, with the names as the file has them, or as the
    /// environment has them in lower case with dots for underscores.
    fn rest_of(&mut self, table: &str, setting: &Setting, file_names: &[&str]) -> BTreeMap<String, String> {
        let mut rest = BTreeMap::new();
        let shared = take_table(&mut self.file, table);
        self.rest_of_file(table, setting, shared, &mut rest);
        let shared = format!("{PREFIX}{}", room(table));
        rest.extend(self.rest_of_environment(table, &shared, file_names));
        let own = take_table(&mut self.own, table);
        self.own_keys.extend(own.keys().cloned());
        self.rest_of_file(table, setting, own, &mut rest);
        if let Some(name) = &self.outbox {
            let own = format!("{PREFIX}{}_{}", name.to_ascii_uppercase(), room(table));
            let own = self.rest_of_environment(table, &own, file_names);
            self.own_keys.extend(own.keys().map(|name| format!("{table}{name}")));
            rest.extend(own);
        }
        let values = rest.iter().map(|(name, value)| (format!("{table}{name}"), value.clone()));
        self.values.extend(values);
        rest
    }

    fn rest_of_file(
        &mut self,
        table: &str,
        setting: &Setting,
        given: BTreeMap<String, Given>,
        rest: &mut BTreeMap<String, String>,
    ) {
        for (key, given) in given {
            let name = key[table.len()..].to_owned();
            self.origins.insert(key, given.origin.clone());
            match setting.read(given.value.as_given()) {
                Ok(Some(Value::Text(value))) => _ = rest.insert(name, value),
                Ok(_) => {}
                Err(problem) => self.problem(table, &Problem::new(name, problem.what, problem.remedy)),
            }
        }
    }

    fn rest_of_environment(
        &mut self,
        table: &str,
        prefix: &str,
        value_file_names: &[&str],
    ) -> BTreeMap<String, String> {
        let mut rest = BTreeMap::new();
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
            if let Some(Given { value: FileValue::Untyped(value), origin }) = taken {
                let property = property_name(&name);
                self.origins.insert(format!("{table}{property}"), origin);
                rest.insert(property, value);
            }
        }
        rest
    }

    /// Where a key's value came from, in brackets behind a space; nothing of a default.
    pub(super) fn origin(&self, key: &str) -> String {
        self.origins.get(key).map(|origin| format!(" ({origin})")).unwrap_or_default()
    }

    /// The key was given, whether it is right or not.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// Something is wrong with a setting of this table, and perhaps with others.
    pub(super) fn problem(&mut self, table: &str, problem: &Problem) {
        let key = format!("{table}{}", problem.setting);
        let related: Vec<String> = problem.related.iter().map(|name| format!("{table}{name}")).collect();
        // A default that stands in for a value that was refused is not the user's.
        if std::iter::once(&key).chain(&related).any(|key| self.refused.contains(key)) {
            return;
        }
        let what = format!("{key}{} {}", self.origin(&key), problem.what);
        if related.is_empty() {
            self.findings.push(Finding::error("wrong-value", what, &*problem.remedy));
        } else {
            let given: Vec<&String> =
                std::iter::once(&key).chain(&related).filter(|key| self.is_given(key)).collect();
            let shown: Vec<String> = given.iter().map(|key| format!("{key}{}", self.origin(key))).collect();
            let variables: Vec<String> = given.iter().map(|key| variable(key)).collect();
            let by =
                if variables.is_empty() { String::new() } else { format!(", or {}", variables.join(" or ")) };
            let remedy = format!("{}, by the file{by}", problem.remedy);
            self.findings.push(Finding::error("settings", format!("{what} [{}]", shown.join(", ")), remedy));
        }
    }

    /// This key must be there, and is not.
    pub(super) fn missing(&mut self, key: &str, remedy: &str) {
        // A value that could not be read has been reported, and is not missing.
        if self.file_is_complete && !self.is_given(key) && !self.refused.contains(key) {
            let of = self.outbox.as_ref().map(|name| format!(" of the outbox {name}")).unwrap_or_default();
            let problem = format!("{key}{of} is missing");
            let variable = self.own_variable(key).unwrap_or_else(|| variable(key));
            let remedy = format!("{remedy}; by the file, {variable} or {variable}{FILE_SUFFIX}");
            self.findings.push(Finding::error("missing-key", problem, remedy));
        }
    }

    /// Everything that was wrong, with what was not asked for.
    pub(super) fn finish(mut self) -> Read {
        for (key, given) in self.own.iter().chain(&self.file) {
            let is_empty_table = matches!(given.value, FileValue::Other("table"))
                && self.keys.iter().any(|known| known.starts_with(&format!("{key}.")));
            if !is_empty_table {
                let problem = format!("unknown setting {key} ({})", given.origin);
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
                None => {
                    "unset it; `outbox config reference` has every setting, and the rule for the variables"
                        .to_owned()
                }
            };
            self.findings.push(Finding::error(
                "unknown-variable",
                format!("unknown variable {name}"),
                remedy,
            ));
        }
        Read { findings: self.findings, left_out: self.left_out, used: self.used }
    }

    fn take(&mut self, key: &str) -> Option<Given> {
        if self.keys.iter().any(|known| known == key) {
            return None;
        }
        self.keys.push(key.to_owned());
        let (own_file, file) = (self.own.remove(key), self.file.remove(key));
        let findings = self.findings.len();
        let own_variable = self.own_variable(key);
        let own = own_variable.and_then(|name| self.environment.take(&name, &mut self.findings));
        let shared = self.environment.take(&variable(key), &mut self.findings);
        if self.findings.len() > findings {
            self.refused.insert(key.to_owned());
        }
        if own.is_some() || own_file.is_some() {
            self.own_keys.insert(key.to_owned());
        }
        let given = own.or(own_file).or(shared).or(file)?;
        self.origins.insert(key.to_owned(), given.origin.clone());
        self.values.insert(key.to_owned(), given.value.text());
        Some(given)
    }

    /// A key counts as not given.
    fn forget(&mut self, key: &str) {
        self.origins.remove(key);
        self.values.remove(key);
    }

    /// The variable that gives a key of this outbox alone.
    fn own_variable(&self, key: &str) -> Option<String> {
        let name = self.outbox.as_ref()?.to_ascii_uppercase();
        Some(format!("{PREFIX}{name}_{}", room(key)))
    }
}

/// The file that a secret comes from is named, and its content is not.
fn without_secret(mut problem: Problem, origin: &Origin) -> Problem {
    if origin.is_value_file() {
        "is not understood".clone_into(&mut problem.what);
    }
    problem
}

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

/// What a table has, out of all that was given.
fn take_table(given: &mut BTreeMap<String, Given>, table: &str) -> BTreeMap<String, Given> {
    given.extract_if(.., |key, _| key.starts_with(table)).collect()
}

fn property_name(variable: &str) -> String {
    variable.to_ascii_lowercase().replace('_', ".")
}

fn remedy_for_unknown(key: &str, known: &[String]) -> String {
    let left_out = |feature: &&&str| key.starts_with(&format!("publisher.{feature}."));
    if let Some(feature) = PUBLISHERS_LEFT_OUT.iter().find(left_out) {
        return format!("build the program with the cargo feature {feature}, or remove it");
    }
    if let Some(example) = known.iter().find(|known| known.starts_with(&format!("{key}."))) {
        return format!("it is a table: write [{key}], and in it for example {}", &example[key.len() + 1..]);
    }
    // What stands in another table is further away in letters than in thought.
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let elsewhere = || known.iter().map(String::as_str).find(|known| last(known) == last(key));
    match nearest(key, known.iter().map(String::as_str)).or_else(elsewhere) {
        Some(known) => format!("did you mean {known}? else remove it"),
        None => "remove it; `outbox config reference` has every setting".to_owned(),
    }
}

/// The known name with nearly the same letters.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let with_distance = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, known) = with_distance.min()?;
    (distance <= 3 && distance * 4 <= known.len()).then_some(known)
}
