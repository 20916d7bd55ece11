//! What a publisher needs to know: [`WebhookConfig`].

use std::{fmt, time::Duration};

use outbox::{
    ConfigError,
    settings::{Kind, Problem, Setting},
    store::PAYLOAD_BYTES_MAX_DEFAULT,
};
use reqwest::Url;

use crate::SigningKey;

/// Well below a relay's default publish time-out of 5 s.
const DELIVERY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(4);
pub(crate) const DELIVERY_TIMEOUT: Setting = Setting::new(
    "delivery_timeout",
    Kind::Duration { min: Duration::from_millis(100), max: Duration::from_secs(300) },
    "How long an answer may take.",
)
.default("4s");

const REQUESTS_MAX_DEFAULT: usize = 64;
pub(crate) const REQUESTS_MAX: Setting = Setting::new(
    "requests_max",
    Kind::Integer { min: 1, max: 1024 },
    "How many requests of one call are under way at a time.",
)
.default("64");

/// Where events go, and with whose signature. Made by [`WebhookConfig::builder`].
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    pub(crate) base_url: Url,
    pub(crate) key: SigningKey,
    pub(crate) delivery_timeout: Duration,
    pub(crate) requests_max: usize,
    pub(crate) payload_bytes_max: usize,
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

    /// How long an answer may take, from 100 ms to 5 min; 4 s unless set. Keep it below the relay's publish
    /// time-out.
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
    pub fn build(self) -> Result<WebhookConfig, ConfigError> {
        let mut problems = Vec::new();
        let base_url = base_url(&self.base_url).map_err(|problem| problems.push(problem)).ok();
        let secret =
            |_| Problem::new("secret", "is not valid", "give whsec_ and base64, as the receiver has it");
        let key = SigningKey::new(&self.secret).map_err(|error| problems.push(secret(error))).ok();
        DELIVERY_TIMEOUT.check_duration(self.delivery_timeout, &mut problems);
        REQUESTS_MAX.check_integer(self.requests_max, &mut problems);
        match (base_url, key) {
            (Some(base_url), Some(key)) if problems.is_empty() => Ok(WebhookConfig {
                base_url,
                key,
                delivery_timeout: self.delivery_timeout,
                requests_max: self.requests_max,
                payload_bytes_max: self.payload_bytes_max,
            }),
            _ => Err(ConfigError::new(problems)),
        }
    }
}

/// The URL, which is not shown where it is refused: it may hold a password.
fn base_url(text: &str) -> Result<Url, Problem> {
    let problem = |what: String, remedy: &str| Problem::new("base_url", what, remedy);
    let url = Url::parse(text)
        .map_err(|error| problem(format!("is not valid: {error}"), "give https://host/path"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(problem(format!("has the scheme {}", url.scheme()), "give http or https"));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        let what = "has more than a host and a path".to_owned();
        return Err(problem(what, "leave out user, password, query and fragment"));
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
        assert_eq!(error.problems().len(), 4, "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
        for url in
            ["", "example.com", "ftp://example.com", "https://example.com/?a=b", "https://example.com/#a"]
        {
            assert!(base_url(url).is_err(), "{url}");
        }
    }
}
