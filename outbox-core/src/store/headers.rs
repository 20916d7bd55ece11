//! Headers as a database keeps them: a JSON object of texts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::event::check_headers;

/// The headers of a row that is read as an event. JSON's null stands for an empty map.
///
/// # Errors
/// What is wrong with them, for people: they are not an object of texts, or no broker could carry them
/// ([`check_headers`]). The row cannot be read as an event then.
pub fn decode_headers(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let headers: Option<BTreeMap<String, String>> = serde_json::from_slice(json).map_err(|error| {
        format!("headers are not an object of texts, such as {{\"name\": \"value\"}}: {error}")
    })?;
    let headers = headers.unwrap_or_default();
    check_headers(&headers).map_err(|error| error.to_string())?;
    Ok(headers)
}

/// The headers that can be read, for [`EventRecord::headers`](super::EventRecord::headers): those whose value
/// is a text.
pub fn readable_headers(json: &[u8]) -> BTreeMap<String, String> {
    let headers: BTreeMap<String, Value> = serde_json::from_slice(json).unwrap_or_default();
    let text = |(name, value)| match value {
        Value::String(text) => Some((name, text)),
        _ => None,
    };
    headers.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_are_not_an_object_of_texts_are_named() {
        assert_eq!(decode_headers(b"{\"a\":\"b\"}").unwrap().len(), 1);
        assert_eq!(decode_headers(b"null").unwrap().len(), 0);
        assert!(decode_headers(b"[1]").unwrap_err().contains("not an object of texts"));
        assert!(decode_headers(b"{\"a\":1}").unwrap_err().contains("not an object of texts"));
        assert!(decode_headers(b"{\"a b\":\"c\"}").unwrap_err().contains("header"));
    }

    #[test]
    fn what_can_be_read_of_headers_is_shown() {
        let headers = readable_headers(br#"{"a": "b", "a b": "c", "n": 1, "o": {"p": "q"}, "z": null}"#);
        assert_eq!(
            headers.into_iter().collect::<Vec<_>>(),
            [("a", "b"), ("a b", "c")].map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
        assert_eq!(
            readable_headers(b"[1]").len() + readable_headers(b"null").len() + readable_headers(b"{").len(),
            0
        );
    }
}
