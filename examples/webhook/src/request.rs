//! A message as an HTTP request: URL and headers.

use outbox::{
    cloudevents,
    publisher::{Message, PublishError},
};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::{
    SigningKey,
    error::{bad_topic, unsendable},
};

/// Headers that say how the request itself travels, or that the signature stands on: none of an event's.
const RESERVED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "authorization",
];

/// The endpoint of a topic: its segments below the base URL.
pub(crate) fn endpoint(base_url: &Url, topic: &str) -> Result<Url, PublishError> {
    // Dots would climb above the base, and an empty segment would vanish.
    if topic.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(bad_topic(topic));
    }
    let mut url = base_url.clone();
    url.path_segments_mut().map_err(|()| bad_topic(topic))?.pop_if_empty().extend(topic.split('/'));
    Ok(url)
}

/// The headers of the HTTP binding's binary mode, the signature, and the event's own.
///
/// See <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>,
/// section 3.1.
pub(crate) fn headers(
    message: &Message,
    key: &SigningKey,
    timestamp_s: u64,
) -> Result<HeaderMap, PublishError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.event.headers {
        let lower = name.to_ascii_lowercase();
        if RESERVED.contains(&lower.as_str()) || lower.starts_with("webhook-") || headers.contains_key(&lower)
        {
            let detail = format!(
                "header {name:?} of the event cannot be a header of the request: choose another name"
            );
            return Err(unsendable("bad-header", detail));
        }
        insert(&mut headers, &lower, &encoded(value))?;
    }
    // The one that is not encoded: it is a header of HTTP itself, which has a syntax for all of it.
    insert(&mut headers, "content-type", cloudevents::content_type(message))?;
    let mut attributes = Vec::new();
    cloudevents::attributes(message, &mut String::new(), |name, value| {
        attributes.push((format!("ce-{name}"), encoded(value)));
    });
    for (name, value) in attributes {
        insert(&mut headers, &name, &value)?;
    }
    let id = message.event.id.to_string();
    insert(&mut headers, "webhook-signature", &key.sign(&id, timestamp_s, message.event.body()))?;
    insert(&mut headers, "webhook-timestamp", &timestamp_s.to_string())?;
    insert(&mut headers, "webhook-id", &id)?;
    Ok(headers)
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), PublishError> {
    match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
        (Ok(name), Ok(value)) => {
            headers.insert(name, value);
            Ok(())
        }
        _ => Err(unsendable(
            "bad-header",
            format!("header {name:?} of the event is not an HTTP header name: choose another"),
        )),
    }
}

/// Percent-encoded: whatever is not printable ASCII, and space, quote and percent.
fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'!' | b'#'..=b'$' | b'&'..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_the_rest_of_the_path() {
        for (base, topic, url) in [
            ("https://example.com", "orders", "https://example.com/orders"),
            ("https://example.com/in", "orders", "https://example.com/in/orders"),
            ("https://example.com/in/", "shop/orders", "https://example.com/in/shop/orders"),
            ("https://example.com/in", "a b?c#d%e", "https://example.com/in/a%20b%3Fc%23d%25e"),
        ] {
            assert_eq!(endpoint(&Url::parse(base).unwrap(), topic).unwrap().as_str(), url);
        }
        for topic in ["", "/", "a//b", "..", "a/../b", "./a"] {
            assert!(endpoint(&Url::parse("https://example.com/in").unwrap(), topic).is_err(), "{topic}");
        }
    }

    #[test]
    fn values_are_encoded_as_the_binding_says() {
        assert_eq!(encoded("Euro € \"100 %\"~"), "Euro%20%E2%82%AC%20%22100%20%25%22~");
    }
}
