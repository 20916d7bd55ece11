//! RabbitMQ by URL and settings: [`RabbitMqAdapter`].

use std::sync::Arc;

use outbox_core::{
    ConfigError, Finding, Publisher, RelayConfig,
    settings::{Adapter, ConfiguredPublisher, Problem, PublisherAdapter, Values, shown_url},
};

use crate::{RabbitMqConfig, RabbitMqPublisher, config::SETTINGS};

/// Configures a [`RabbitMqPublisher`] by URL and settings, for a program that reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct RabbitMqAdapter;

const ADAPTER: Adapter = Adapter::new(
    "rabbitmq",
    "RabbitMQ",
    &["amqp://", "amqps://"],
    "amqp://user:password@host:port/vhost",
    "RabbitMQ: mandatory and confirmed; amqps:// is with TLS. The default virtual host is /%2f. The topic is the routing \
     key of publisher.rabbitmq.exchange, or the name of a queue; the exchange must be there.",
)
.settings(SETTINGS)
// lapin also warns of each message that came back, with its payload.
.log("lapin=off");

impl PublisherAdapter for RabbitMqAdapter {
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
        let mut builder = RabbitMqConfig::builder(url);
        if let Some(bytes) = values.integer("payload_bytes_max") {
            builder = builder.payload_bytes_max(bytes);
        }
        match (values.text("exchange"), values.boolean("exchange_from_topic").unwrap_or(false)) {
            (Some(_), true) => {
                let what = "is given, and exchange_from_topic is true";
                let problem = Problem::new("exchange", what, "give one of them");
                problems.push(problem.with_related(["exchange_from_topic"]));
            }
            (Some(exchange), false) => builder = builder.exchange(exchange),
            (None, true) => builder = builder.exchange_from_topic(),
            (None, false) => {}
        }
        if let Some(path) = values.text("ca_file") {
            builder = builder.ca_file(path);
        }
        if let Some((certificate, key)) = values.pair("client_certificate", "client_key", &mut problems) {
            builder = builder.client_certificate(certificate, key);
        }
        let config = ConfigError::join(problems, builder.build())?;
        Ok(Arc::new(Configured { config, shown: shown_url(url) }))
    }
}

#[derive(Debug)]
struct Configured {
    config: RabbitMqConfig,
    shown: String,
}

impl ConfiguredPublisher for Configured {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        Ok(Arc::new(RabbitMqPublisher::new(self.config.clone())))
    }
}
