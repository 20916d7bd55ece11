//! The suite on the publisher that writes JSON lines into a file.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::{fs, sync::Arc};

use async_trait::async_trait;
use outbox_conformance::{PublisherHarness, StoredMessage};
use outbox_core::{JsonLinesPublisher, Publisher};
use serde_json::Value;
use tempfile::TempDir;

struct JsonLinesHarness {
    folder: TempDir,
    publisher: Arc<JsonLinesPublisher>,
}

const FILE: &str = "events.jsonl";

#[async_trait]
impl PublisherHarness for JsonLinesHarness {
    async fn fresh() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let publisher = JsonLinesPublisher::append(folder.path().join(FILE), true).unwrap();
        Some(Self { folder, publisher: Arc::new(publisher) })
    }

    async fn cleanup(self) {
        self.folder.close().unwrap();
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher) as Arc<dyn Publisher>
    }

    async fn destination(&self) -> String {
        "everywhere".to_owned()
    }

    async fn stored(&self, _destination: &str) -> Vec<StoredMessage> {
        fs::read_to_string(self.folder.path().join(FILE)).unwrap().lines().map(read).collect()
    }

    fn routes(&self) -> bool {
        false
    }
}

fn read(line: &str) -> StoredMessage {
    let object: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
    let mut stored = StoredMessage::default();
    for (name, value) in object {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match name.as_str() {
            "specversion" | "id" | "source" | "type" | "time" | "subject" | "sequence" | "attempt"
            | "dataversion" | "tombstone" => {
                stored.attributes.insert(name, text);
            }
            "datacontenttype" => stored.content_type = Some(text),
            // The last member of the line, and a quote inside a text is never without its backslash.
            "data" => {
                let data = line.split_once(",\"data\":").unwrap().1;
                stored.payload = data.strip_suffix('}').unwrap().to_owned().into();
            }
            "data_base64" => stored.payload = from_base64(&text).into(),
            "headers" => {
                let others: std::collections::BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
                stored.headers.extend(others);
            }
            _ => {
                stored.headers.insert(name, text);
            }
        }
    }
    stored
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let word =
            chunk.iter().fold(0_u32, |word, c| word << 6 | u32::from(digit(*c))) << (6 * (4 - chunk.len()));
        bytes.extend(&word.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

outbox_conformance::publisher_suite!(JsonLinesHarness);
