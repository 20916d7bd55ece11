//! The settings of the process: a TOML file, the environment above it, and every problem of both at once.

mod adapters;
mod example;
mod reader;
mod reference;
mod side;
mod source;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use outbox_core::{
    Finding, RelayConfig,
    settings::{ConfiguredPublisher, ConfiguredStore, Kind, URL},
};

pub(crate) use self::{adapters::log_default, example::example, reference::reference};
use self::{
    adapters::{PUBLISHERS, STORES},
    reader::{Read, Reader},
    side::Side,
};

/// The file that is read if it is there, when none is named.
const FILE_DEFAULT: &str = "outbox.toml";

/// The table of the relay's settings.
const RELAY: &str = "relay.";

/// What a command needs to have been configured. What is there is checked in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The store.
    Store,
    /// The store and the publisher.
    StoreAndPublisher,
}

/// Everything that is configured, valid as far as can be told without looking at a server.
#[derive(Debug)]
pub(crate) struct Config {
    /// One without a name, or those that the file names.
    pub(crate) outboxes: Vec<OutboxConfig>,
    /// The publishers that differ, each of one or more outboxes.
    pub(crate) publishers: Vec<Arc<dyn ConfiguredPublisher>>,
}

/// One outbox and its relay.
#[derive(Debug, Clone)]
pub(crate) struct OutboxConfig {
    /// Its name, where the file names outboxes.
    pub(crate) name: Option<String>,
    pub(crate) store: Arc<dyn ConfiguredStore>,
    /// Which of the publishers.
    pub(crate) publisher: Option<usize>,
    pub(crate) relay: RelayConfig,
}

impl OutboxConfig {
    /// `the outbox of sqlite:shop.db`, or `the outbox shop of sqlite:shop.db`.
    pub(crate) fn shown(&self) -> String {
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        format!("the outbox{name} of {}", self.store.shown())
    }

    /// Findings with the outbox that they are of.
    pub(crate) fn name_in(&self, mut findings: Vec<Finding>) -> Vec<Finding> {
        if let Some(name) = &self.name {
            findings
                .iter_mut()
                .for_each(|finding| finding.problem = format!("outbox {name}: {}", finding.problem));
        }
        findings
    }
}

impl Config {
    /// Reads the file, if there is one, and the environment; with `only`, all but that outbox are left out
    /// then.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn load(
        file: Option<PathBuf>,
        only: Option<&str>,
        needs: Needs,
    ) -> Result<Self, Vec<Finding>> {
        let unnamed = || Some(PathBuf::from(FILE_DEFAULT)).filter(|path| path.exists());
        let mut config = Self::read(file.or_else(unnamed).as_deref(), std::env::vars_os(), needs)?;
        if let Some(only) = only {
            let names = config.names();
            config.outboxes.retain(|outbox| outbox.name.as_deref() == Some(only));
            if config.outboxes.is_empty() {
                let problem = format!("--outbox is {only:?}, and there is no such outbox");
                return Err(vec![Finding::error("unknown-outbox", problem, format!("there is {names}"))]);
            }
        }
        Ok(config)
    }

    /// The one outbox, for a command that works on one.
    ///
    /// # Errors
    /// A finding that names them, if there are several.
    pub(crate) fn one(
        mut self,
    ) -> Result<(OutboxConfig, Option<Arc<dyn ConfiguredPublisher>>), Vec<Finding>> {
        let names = self.names();
        let outbox = self.outboxes.pop().filter(|_| self.outboxes.is_empty());
        let Some(outbox) = outbox else {
            let problem = "this command works on one outbox, and several are configured";
            return Err(vec![Finding::error(
                "which-outbox",
                problem,
                format!("name one by --outbox: {names}"),
            )]);
        };
        let publisher = outbox.publisher.map(|index| self.publishers.swap_remove(index));
        Ok((outbox, publisher))
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.outboxes.iter().filter_map(|outbox| outbox.name.as_deref()).collect();
        if names.is_empty() { "one outbox, without a name".to_owned() } else { names.join(", ") }
    }

    fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        needs: Needs,
    ) -> Result<Self, Vec<Finding>> {
        let mut config = Self { outboxes: Vec::new(), publishers: Vec::new() };
        let (mut read, mut stores, mut publishers) = (Vec::new(), Vec::new(), Vec::new());
        for mut reader in Reader::all(file, variables) {
            let relay = relay(&mut reader);
            let store = store(&mut reader, &relay);
            let publisher = publisher(&mut reader, &relay, needs);
            let name = reader.outbox().map(str::to_owned);
            stores.push((name.clone(), place(&reader)));
            // The same settings are the same publisher.
            let settings = (reader.values_of("publisher."), relay.publish_timeout);
            let publisher = publisher.map(|publisher| {
                publishers.iter().position(|other| *other == settings).unwrap_or_else(|| {
                    publishers.push(settings);
                    config.publishers.push(publisher);
                    publishers.len() - 1
                })
            });
            read.push(reader.finish());
            config.outboxes.extend(store.map(|store| OutboxConfig { name, store, publisher, relay }));
        }
        let mut findings = findings_of(read);
        findings.extend(same_tables(&stores));
        if findings.is_empty() { Ok(config) } else { Err(findings) }
    }
}

fn relay(reader: &mut Reader) -> RelayConfig {
    let mut relay = RelayConfig::default();
    let values = reader.values(RELAY, RelayConfig::SETTINGS);
    if let Err(error) = relay.apply(&values) {
        error.problems().iter().for_each(|problem| reader.problem(RELAY, problem));
    }
    relay
}

fn store(reader: &mut Reader, relay: &RelayConfig) -> Option<Arc<dyn ConfiguredStore>> {
    let side = Side::store();
    let chosen = side.read(reader, true)?;
    let configured = STORES[chosen.index].configure(&chosen.url, &chosen.values, relay);
    side.take(reader, &chosen, configured)
}

fn publisher(reader: &mut Reader, relay: &RelayConfig, needs: Needs) -> Option<Arc<dyn ConfiguredPublisher>> {
    let side = Side::publisher();
    let chosen = side.read(reader, needs == Needs::StoreAndPublisher)?;
    let configured = PUBLISHERS[chosen.index].configure(&chosen.url, &chosen.values, relay);
    side.take(reader, &chosen, configured)
}

/// What is wrong with settings for all is found once for each outbox, and said once. What is given for all,
/// and means nothing to one of them, is wrong only if it means nothing to the others as well.
fn findings_of(read: Vec<Read>) -> Vec<Finding> {
    let used: BTreeSet<String> = read.iter().flat_map(|read| read.used.iter().cloned()).collect();
    let mut findings: Vec<Finding> = Vec::new();
    for Read { findings: found, left_out, .. } in read {
        let left_out = left_out.into_iter().filter(|it| it.is_own || !used.contains(&it.key));
        for finding in found.into_iter().chain(left_out.map(|it| it.finding)) {
            let is_same = |other: &Finding| (other.code, &other.problem) == (finding.code, &finding.problem);
            if !findings.iter().any(is_same) {
                findings.push(finding);
            }
        }
    }
    findings
}

/// What tells the tables of one outbox from those of another: the URL and the names. Sizes and times name no
/// tables.
fn place(reader: &Reader) -> BTreeMap<String, String> {
    let side = Side::store();
    let settings = side.adapters.iter().flat_map(|adapter| adapter.settings).chain([&side.url]);
    let names = settings.filter(|setting| matches!(setting.kind, Kind::Text));
    let given = reader.values_of("store.");
    let value = |key: String, default: Option<&str>| {
        let value = given.get(&key).cloned().or_else(|| default.map(str::to_owned))?;
        Some((key, value))
    };
    names.filter_map(|setting| value(format!("store.{}", setting.key), setting.default)).collect()
}

fn same_tables(stores: &[(Option<String>, BTreeMap<String, String>)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, (name, place)) in stores.iter().enumerate() {
        // Two without a place have a problem already.
        let other = stores[..index]
            .iter()
            .find(|(_, other)| other == place && place.contains_key(&format!("store.{URL}")));
        if let (Some(name), Some((Some(other), _))) = (name, other) {
            findings.push(Finding::error(
                "same-tables",
                format!("the outboxes {other} and {name} have the same tables"),
                "give each a store.url, store.schema or store.prefix of its own",
            ));
        }
    }
    findings
}

#[cfg(test)]
#[cfg(not(all(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "mongo",
    feature = "kafka",
    feature = "rabbitmq",
    feature = "nats"
)))]
mod without_a_feature {
    use super::*;

    #[test]
    fn what_was_not_compiled_in_is_named_with_its_feature() {
        for (feature, is_in, store, publisher) in [
            ("sqlite", cfg!(feature = "sqlite"), "sqlite:x", "stdout:"),
            ("postgres", cfg!(feature = "postgres"), "postgres://h/d", "stdout:"),
            ("mysql", cfg!(feature = "mysql"), "mysql://h/d", "stdout:"),
            ("mongo", cfg!(feature = "mongo"), "mongodb://h/d", "stdout:"),
            ("kafka", cfg!(feature = "kafka"), "sqlite:x", "kafka://h:1"),
            ("rabbitmq", cfg!(feature = "rabbitmq"), "sqlite:x", "amqp://h:1"),
            ("nats", cfg!(feature = "nats"), "sqlite:x", "nats://h:1"),
        ] {
            let variables = [("OUTBOX_STORE_URL", store), ("OUTBOX_PUBLISHER_URL", publisher)];
            let variables = variables.map(|(name, value)| (name.into(), value.into()));
            let findings = Config::read(None, variables, Needs::StoreAndPublisher).err().unwrap_or_default();
            let named = findings.iter().any(|finding| {
                let left_out = finding.remedy.split_once("built without the cargo features ");
                left_out.is_some_and(|(_, features)| features.split(", ").any(|name| name == feature))
            });
            assert_eq!(named, !is_in, "{feature}: {findings:?}");
        }
    }
}
