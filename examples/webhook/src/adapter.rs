//! Webhooks by URL and settings: [`WebhookAdapter`], for programs that read them.

use std::sync::Arc;

use outbox::{
    ConfigError, Finding, Publisher, RelayConfig,
    settings::{Adapter, ConfiguredPublisher, Kind, PublisherAdapter, Setting, URL, Values, shown_url},
};

use crate::{
    WebhookConfig, WebhookPublisher,
    config::{DELIVERY_TIMEOUT, REQUESTS_MAX},
};

/// Configures a [`WebhookPublisher`] by URL and settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct WebhookAdapter;

const ADAPTER: Adapter = Adapter::new(
    "webhook",
    "webhooks",
    &["https://", "http://"],
    "https://host/path",
    "CloudEvents over HTTP, signed as Standard Webhooks says. The topic is the rest of the path.",
)
.settings(&[
    Setting::new("secret", Kind::Text, "The secret that the receiver knows: whsec_ and base64.").secret(),
    DELIVERY_TIMEOUT,
    REQUESTS_MAX,
]);

impl PublisherAdapter for WebhookAdapter {
    fn adapter(&self) -> &'static Adapter {
        &ADAPTER
    }

    fn configure(
        &self,
        url: &str,
        values: &Values,
        _relay: &RelayConfig,
    ) -> Result<Arc<dyn ConfiguredPublisher>, ConfigError> {
        let mut builder = WebhookConfig::builder(url).secret(values.text("secret").unwrap_or_default());
        if let Some(timeout) = values.duration("delivery_timeout") {
            builder = builder.delivery_timeout(timeout);
        }
        if let Some(requests) = values.integer("requests_max") {
            builder = builder.requests_max(requests);
        }
        let config = builder.build().map_err(|error| error.renamed(&[("base_url", URL)]))?;
        Ok(Arc::new(Configured { config, shown: shown_url(url) }))
    }
}

#[derive(Debug)]
struct Configured {
    config: WebhookConfig,
    shown: String,
}

impl ConfiguredPublisher for Configured {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn open(&self) -> Result<Arc<dyn Publisher>, Vec<Finding>> {
        let publisher = WebhookPublisher::new(self.config.clone());
        let refused = |error: &dyn std::error::Error| {
            vec![Finding::error(
                "webhook",
                error.to_string(),
                "see that the machine's certificates can be read",
            )]
        };
        publisher.map(|publisher| Arc::new(publisher) as _).map_err(|error| refused(&error))
    }
}

#[cfg(test)]
mod tests {
    use outbox::settings::Given;

    use super::*;

    #[test]
    fn settings_are_read_by_the_table_and_validated_as_the_builder_s() {
        let mut values = Values::default();
        let given = [("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), ("delivery_timeout", "2s")];
        for (key, text) in given {
            let setting = ADAPTER.settings.iter().find(|setting| setting.key == key).unwrap();
            values.insert(setting.key, setting.read(Given::Untyped(text)).unwrap().unwrap());
        }
        let configured = WebhookAdapter.configure("https://h/in", &values, &RelayConfig::default()).unwrap();
        assert_eq!(configured.shown(), "https://h/in");
        let shown = format!("{configured:?}");
        assert!(shown.contains("delivery_timeout: 2s") && !shown.contains("whsec"), "{shown}");
        assert!(configured.open().is_ok());

        let refused = |url| WebhookAdapter.configure(url, &Values::default(), &RelayConfig::default());
        let error = refused("https://me:hush@h").unwrap_err();
        let named: Vec<&str> = error.problems().iter().map(|problem| &*problem.setting).collect();
        assert_eq!(named, [URL, "secret"]);
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
