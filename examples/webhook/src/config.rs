//! What a publisher needs to know: [`WebhookConfig`].

use std::{fmt, time::Duration};

use outbox::PAYLOAD_BYTES_MAX_DEFAULT;
use reqwest::Url;

use crate::SigningKey;

/// Well below a relay's default publish time-out of 5 s.
const DELIVERY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(4);
const DELIVERY_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(300);

const REQUESTS_MAX_DEFAULT: usize = 64;
const REQUESTS_MAX: std::ops::RangeInclusive<usize> = 1..=1024;

/// Where events go, and with whose signature. Made by [`WebhookConfig::builder`].
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    pub(crate) base_url: Url,
    pub(crate) key: SigningKey,
    pub(crate) delivery_timeout: Duration,
    pub(crate) requests_max: usize,
    pub(crate) payload_bytes_max: usize,
}

/// Everything that is wrong with a configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfigError {
    problems: Vec<String>,
}

impl WebhookConfig {
    /// Starts a configuration for the endpoints below `base_url`, `http` or `https`.
    pub fn builder(base_url: impl Into<String>) -> WebhookConfigBuilder {
        WebhookConfigBuilder {
            base_url: base_url.into(),
            secret: String::new(),
            delivery_timeout: DELIVERY_TIMEOUT_DEFAULT,
            requests_max: REQUESTS_MAX_DEFAULT,
            payload_bytes_max: PAYLOAD_BYTES_MAX_DEFAULT,
        }
    }
}

/// Builds a [`WebhookConfig`]; [`build`](Self::build) validates it.
#[derive(Clone)]
#[must_use = "a configuration is complete only once it is built"]
pub struct WebhookConfigBuilder {
    base_url: String,
    secret: String,
    delivery_timeout: Duration,
    requests_max: usize,
    payload_bytes_max: usize,
}

impl WebhookConfigBuilder {
    /// The secret that the receiver knows: `whsec_` and base64.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = secret.into();
        self
    }

    /// How long an answer may take, from 100 ms to 5 min; 4 s unless set. Keep it below the relay's publish time-out.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// How many requests of one call are under way at a time, from 1 to 1024; 64 unless set.
    pub fn requests_max(mut self, requests: usize) -> Self {
        self.requests_max = requests;
        self
    }

    /// The largest payload, in bytes; 1,000,000 unless set. Larger ones are refused before they are sent.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.payload_bytes_max = bytes;
        self
    }

    /// The configuration, if all of it is sound.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn build(self) -> Result<WebhookConfig, WebhookConfigError> {
        let mut problems = Vec::new();
        let base_url = base_url(&self.base_url).map_err(|problem| problems.push(problem)).ok();
        let key = SigningKey::new(&self.secret).map_err(|error| problems.push(error.to_string())).ok();
        if !DELIVERY_TIMEOUTS.contains(&self.delivery_timeout) {
            problems.push(format!(
                "delivery_timeout is {:?}: choose between {:?} and {:?}",
                self.delivery_timeout,
                DELIVERY_TIMEOUTS.start(),
                DELIVERY_TIMEOUTS.end()
            ));
        }
        if !REQUESTS_MAX.contains(&self.requests_max) {
            problems.push(format!("requests_max is {}: choose between 1 and 1024", self.requests_max));
        }
        match (base_url, key) {
            (Some(base_url), Some(key)) if problems.is_empty() => Ok(WebhookConfig {
                base_url,
                key,
                delivery_timeout: self.delivery_timeout,
                requests_max: self.requests_max,
                payload_bytes_max: self.payload_bytes_max,
            }),
            _ => Err(WebhookConfigError { problems }),
        }
    }
}

/// The URL, which is not shown where it is refused: it may hold a password.
fn base_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("the base URL is none: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the base URL has the scheme {}: give http or https", url.scheme()));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(
            "the base URL has more than a host and a path: leave out user, password, query and fragment"
                .to_owned(),
        );
    }
    Ok(url)
}

impl fmt::Debug for WebhookConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfigBuilder")
            .field("delivery_timeout", &self.delivery_timeout)
            .field("requests_max", &self.requests_max)
            .field("payload_bytes_max", &self.payload_bytes_max)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for WebhookConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "webhook configuration: {}", self.problems.join("; "))
    }
}

impl std::error::Error for WebhookConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_named_at_once_and_no_secret_is_shown() {
        let builder = WebhookConfig::builder("https://user:hunter2@example.com/")
            .secret("hunter3")
            .delivery_timeout(Duration::ZERO)
            .requests_max(0);
        assert!(!format!("{builder:?}").contains("hunter"));
        let error = builder.build().unwrap_err();
        assert_eq!(error.problems.len(), 4, "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
        for url in
            ["", "example.com", "ftp://example.com", "https://example.com/?a=b", "https://example.com/#a"]
        {
            assert!(base_url(url).is_err(), "{url}");
        }
    }
}
