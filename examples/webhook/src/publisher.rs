//! The publisher: [`WebhookPublisher`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use outbox::{
    Finding, Publisher,
    publisher::{Message, PublishError, PublisherCapabilities, Reporter},
};
use reqwest::{Client, StatusCode, Url, header::RETRY_AFTER, redirect};
use tokio::time::{Instant, timeout_at};

use crate::{
    WebhookConfig, error,
    request::{endpoint, headers},
};

/// Sends each message as one signed `POST` of a CloudEvent in binary mode.
///
/// All requests are made in the future of the call itself, so that one that is dropped sends nothing more.
pub struct WebhookPublisher {
    config: WebhookConfig,
    client: Client,
}

impl WebhookPublisher {
    /// A publisher with this configuration. Connects to nothing yet.
    ///
    /// # Errors
    /// What the HTTP client says if it cannot be set up.
    pub fn new(config: WebhookConfig) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls())
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { config, client })
    }

    async fn send(&self, message: &Message) -> Result<(), PublishError> {
        let (bytes, bytes_max) = (message.event.payload_len(), self.config.payload_bytes_max);
        if bytes > bytes_max {
            let detail = format!("the payload has {bytes} bytes, more than the limit of {bytes_max}");
            return Err(error::unsendable("payload-too-large", detail));
        }
        let url = endpoint(&self.config.base_url, &message.topic)?;
        let headers = headers(message, &self.config.key, now_s())?;
        let request =
            self.client.post(url).headers(headers).body(message.event.payload.clone().unwrap_or_default());
        let answer = request.send().await.map_err(error::no_answer)?;
        if answer.status().is_success() {
            return Ok(());
        }
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Err(error::refusal(answer.status(), retry_after))
    }

    async fn look(&self, topic: &str) -> Option<Finding> {
        match endpoint(&self.config.base_url, topic) {
            Ok(url) => self.ask(url).await.map_or_else(Some, |status| endpoint_finding(topic, status)),
            Err(error) => Some(Finding::error("bad-topic", error.detail, "choose another name")),
        }
    }

    /// The answer to a HEAD. Whatever an endpoint for POST says to that, it tells whether it is there.
    async fn ask(&self, url: Url) -> Result<StatusCode, Finding> {
        let path = url.path().to_owned();
        let asked = tokio::time::timeout(self.config.delivery_timeout, self.client.head(url).send()).await;
        let error = match asked {
            Ok(Ok(answer)) => return Ok(answer.status()),
            Ok(Err(error)) => error::no_answer(error),
            Err(_) => error::timed_out(),
        };
        Err(Finding::error(
            "receiver-unreachable",
            format!("the receiver cannot be reached at {path:?}: {error}"),
            "check the base URL, the network and the receiver's certificate",
        ))
    }
}

#[async_trait]
impl Publisher for WebhookPublisher {
    fn capabilities(&self) -> PublisherCapabilities {
        let mut capabilities = PublisherCapabilities::default();
        capabilities.payload_bytes_max = Some(self.config.payload_bytes_max);
        capabilities.delivery_timeout = Some(self.config.delivery_timeout);
        capabilities
    }

    async fn check(&self, topics: &[String]) -> Vec<Finding> {
        if topics.is_empty() {
            return self.ask(self.config.base_url.clone()).await.err().into_iter().collect();
        }
        stream::iter(topics.to_vec())
            .map(|topic| async move { self.look(&topic).await })
            .buffered(self.config.requests_max)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, timeout: Duration, reporter: Reporter) {
        // A tenth is left for the reports: what is not reported in time costs the message an attempt.
        let deadline = Instant::now() + self.config.delivery_timeout.min(timeout - timeout / 10);
        stream::iter(messages.iter().enumerate())
            .for_each_concurrent(self.config.requests_max, |(index, message)| {
                let reporter = &reporter;
                async move {
                    let sent = timeout_at(deadline, self.send(message)).await;
                    reporter.report(index, sent.unwrap_or_else(|_| Err(error::timed_out())));
                }
            })
            .await;
    }
}

impl fmt::Debug for WebhookPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookPublisher").field("config", &self.config).finish_non_exhaustive()
    }
}

fn endpoint_finding(topic: &str, status: StatusCode) -> Option<Finding> {
    match status.as_u16() {
        404 | 410 => Some(Finding::error(
            "endpoint-missing",
            format!("there is no endpoint for topic {topic:?}: it answered {status}"),
            "correct the base URL or the topic, or have the receiver make the endpoint",
        )),
        401 | 403 => Some(Finding::error(
            "endpoint-denied",
            format!("the endpoint of topic {topic:?} refuses access: it answered {status}"),
            "have the receiver let this sender in",
        )),
        300..=399 => Some(Finding::error(
            "endpoint-moved",
            format!("the endpoint of topic {topic:?} has moved: it answered {status}"),
            "give the URL to which it points: a redirection is not followed",
        )),
        _ => None,
    }
}

/// TLS by rustls with ring, and the roots that browsers trust.
fn tls() -> rustls::ClientConfig {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    #[allow(clippy::expect_used, reason = "the versions that rustls calls safe are those that ring has")]
    let versions = versions.expect("ring has TLS 1.2 and 1.3");
    versions.with_root_certificates(roots).with_no_client_auth()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
