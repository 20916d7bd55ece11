//! NATS JetStream by URL and settings: [`NatsAdapter`].

use std::sync::Arc;

use outbox_core::{
    ConfigError, Finding, Publisher, RelayConfig,
    settings::{Adapter, ConfiguredPublisher, PublisherAdapter, URL, Values, shown_url},
};

use crate::{NatsConfig, NatsPublisher, NatsStream, config::SETTINGS};

/// Configures a [`NatsPublisher`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct NatsAdapter;

const ADAPTER: Adapter = Adapter::new(
    "nats",
    "NATS",
    &["nats://", "tls://"],
    "nats://user:password@host:port,host:port",
    "NATS JetStream: acknowledged by the stream; tls:// demands TLS. The topic is the subject; publisher.nats.stream is \
     created if it is missing.",
)
.settings(SETTINGS)
.log("async_nats=error");

impl PublisherAdapter for NatsAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError> {
        let mut problems = Vec::new();
        let mut builder = NatsConfig::builder(url);
        if let Some(path) = values.text("credentials_file") {
            builder = builder.credentials_file(path);
        }
        if let Some(path) = values.text("ca_file") {
            builder = builder.ca_file(path);
        }
        if let Some((certificate, key)) = values.pair("client_certificate", "client_key", &mut problems) {
            builder = builder.client_certificate(certificate, key);
        }
        if let Some((name, subjects)) = values.pair("stream", "stream_subjects", &mut problems) {
            let mut stream = NatsStream::new(name, subjects.split(',').map(str::trim));
            if let Some(replicas) = values.integer("stream_replicas") {
                stream = stream.replicas(replicas);
            }
            builder = builder.stream(stream);
        }
        let built = builder.build().map_err(|error| error.renamed(&[("servers", URL), ("login", URL)]));
        let config = ConfigError::join(problems, built)?;
        let shown = url.split(',').map(|url| shown_url(url.trim())).collect::<Vec<_>>().join(",");
        Ok(Arc::new(Configured { config, shown }))
    }
}

#[derive(Debug)]
struct Configured {
    config: NatsConfig,
    shown: String,
}

impl ConfiguredPublisher for Configured {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        Ok(Arc::new(NatsPublisher::new(self.config.clone())))
    }
}
