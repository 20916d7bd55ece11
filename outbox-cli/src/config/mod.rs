//! The settings of the process: a TOML file, the environment above it, and every problem of both at once.

mod publisher;
mod reader;
mod relay;
mod source;
mod store;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use outbox_core::{Finding, RelayConfig};

use self::reader::Reader;
pub(crate) use self::{publisher::PublisherConfig, store::StoreConfig};

/// The file that is read if it is there, when none is named.
const FILE_DEFAULT: &str = "outbox.toml";

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
    pub(crate) store: StoreConfig,
    pub(crate) publisher: Option<PublisherConfig>,
    pub(crate) relay: RelayConfig,
}

impl Config {
    /// Reads the file, if there is one, and the environment.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn load(file: Option<PathBuf>, needs: Needs) -> Result<Self, Vec<Finding>> {
        let unnamed = || Some(PathBuf::from(FILE_DEFAULT)).filter(|path| path.exists());
        Self::read(file.or_else(unnamed).as_deref(), std::env::vars_os(), needs)
    }

    fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        needs: Needs,
    ) -> Result<Self, Vec<Finding>> {
        let mut reader = Reader::new(file, variables);
        let relay = relay::read(&mut reader);
        let store = store::read(&mut reader, relay.retention.when_sent);
        let publisher = publisher::read(&mut reader, relay.publish_timeout, needs);
        let findings = reader.finish();
        match store {
            Some(store) if findings.is_empty() => Ok(Self { store, publisher, relay }),
            _ => Err(findings),
        }
    }
}

#[cfg(test)]
#[cfg(not(all(feature = "sqlite", feature = "postgres", feature = "kafka")))]
mod without_a_feature {
    use super::*;

    #[test]
    fn what_was_not_compiled_in_is_named_with_its_feature() {
        for (feature, is_in, store, publisher) in [
            ("sqlite", cfg!(feature = "sqlite"), "sqlite:x", "stdout:"),
            ("postgres", cfg!(feature = "postgres"), "postgres://h/d", "stdout:"),
            ("kafka", cfg!(feature = "kafka"), "sqlite:x", "kafka://h:1"),
        ] {
            let variables = [("OUTBOX_STORE_URL", store), ("OUTBOX_PUBLISHER_URL", publisher)];
            let variables = variables.map(|(name, value)| (name.into(), value.into()));
            let findings = Config::read(None, variables, Needs::StoreAndPublisher).err().unwrap_or_default();
            let named = findings.iter().any(|finding| {
                finding.problem.contains("built without") && finding.remedy.ends_with(&format!(" {feature}"))
            });
            assert_eq!(named, !is_in, "{feature}: {findings:?}");
        }
    }
}
