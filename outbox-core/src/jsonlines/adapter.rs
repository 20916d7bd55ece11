//! The publisher of JSON lines by URL: [`StdoutAdapter`] and [`FileAdapter`].

use std::{path::PathBuf, sync::Arc};

use super::JsonLinesPublisher;
use crate::{
    ConfigError, Finding, Publisher, RelayConfig,
    settings::{
        Adapter, ConfiguredPublisher, Kind, Problem, PublisherAdapter, Setting, URL, Values, url_path,
    },
};

/// Configures a [`JsonLinesPublisher`] on the standard output, by `stdout:`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdoutAdapter;

/// Configures a [`JsonLinesPublisher`] on a file, by `file:path`.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileAdapter;

const STDOUT: Adapter = Adapter::new(
    "stdout",
    "the standard output",
    &["stdout:"],
    "stdout:",
    "CloudEvents as JSON lines to the standard output. When the reader is gone, the relay waits, as for a broker.",
);

const FILE: Adapter = Adapter::new(
    "file",
    "a file",
    &["file:"],
    "file:path",
    "CloudEvents as JSON lines appended to a file, which is created if need be.",
)
.settings(&[Setting::new(
    "sync",
    Kind::Bool,
    "A message counts as sent when it is on the disk; without, a power failure can lose the last ones.",
)
.default("true")]);

impl PublisherAdapter for StdoutAdapter {
    fn adapter(&self) -> &'static Adapter {
        &STDOUT
    }

    fn configure(
        &self,
        url: &str,
        _values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError> {
        match url {
            "stdout:" => Ok(Arc::new(Stdout)),
            _ => Err(Problem::new(URL, "has more than its scheme", "give \"stdout:\"").into()),
        }
    }
}

impl PublisherAdapter for FileAdapter {
    fn adapter(&self) -> &'static Adapter {
        &FILE
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError> {
        let path = url_path(url);
        if path.as_os_str().is_empty() {
            return Err(Problem::new(URL, "names no file", "give \"file:path\"").into());
        }
        Ok(Arc::new(File { path, sync: values.boolean("sync").unwrap_or(true) }))
    }
}

#[derive(Debug)]
struct Stdout;

#[derive(Debug)]
struct File {
    path: PathBuf,
    sync: bool,
}

impl ConfiguredPublisher for Stdout {
    fn shown(&self) -> String {
        "stdout:".to_owned()
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        Ok(Arc::new(JsonLinesPublisher::stdout()))
    }
}

impl ConfiguredPublisher for File {
    fn shown(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        match JsonLinesPublisher::append(&self.path, self.sync) {
            Ok(publisher) => Ok(Arc::new(publisher)),
            Err(error) => Err(vec![Finding::error(
                "publisher-file",
                format!("the file {} of publisher.url cannot be opened: {error}", self.path.display()),
                "let the relay write the file and its directory, or name another",
            )]),
        }
    }
}
