//! `[publisher.nats]`: NATS JetStream.

use super::{publisher::PublisherConfig, reader::Reader};

/// What `[publisher.nats]` says, before it is known whether NATS is meant.
#[cfg_attr(
    not(feature = "nats"),
    allow(dead_code, reason = "it is read all the same, so that it is checked")
)]
pub(super) struct NatsSettings {
    credentials_file: Option<String>,
    ca_file: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
    stream: Option<String>,
    stream_subjects: Option<String>,
    stream_replicas: usize,
}

pub(super) fn read(reader: &mut Reader) -> NatsSettings {
    let mut settings = NatsSettings {
        credentials_file: reader.text("publisher.nats.credentials_file"),
        ca_file: reader.text("publisher.nats.ca_file"),
        client_certificate: reader.text("publisher.nats.client_certificate"),
        client_key: reader.text("publisher.nats.client_key"),
        stream: reader.text("publisher.nats.stream"),
        stream_subjects: reader.text("publisher.nats.stream_subjects"),
        stream_replicas: 1,
    };
    let accepted = "a whole number from 1 to 5";
    reader.number("publisher.nats.stream_replicas", accepted, &mut settings.stream_replicas);
    settings
}

#[cfg(feature = "nats")]
pub(super) fn to_nats(reader: &mut Reader, url: &str, settings: &NatsSettings) -> Option<PublisherConfig> {
    use outbox_nats::{NatsConfig, NatsStream};

    use super::{publisher::URL, store::redacted, store::refused};

    let mut builder = NatsConfig::builder(url);
    if let Some(path) = &settings.credentials_file {
        builder = builder.credentials_file(path);
    }
    if let Some(path) = &settings.ca_file {
        builder = builder.ca_file(path);
    }
    match (&settings.client_certificate, &settings.client_key) {
        (Some(certificate), Some(key)) => builder = builder.client_certificate(certificate, key),
        (None, None) => {}
        _ => reader.problem(
            "publisher.nats.client_certificate",
            "and publisher.nats.client_key belong together, and one is missing",
            "give both or none",
        ),
    }
    match (&settings.stream, &settings.stream_subjects) {
        (Some(name), Some(subjects)) => {
            let subjects = subjects.split(',').map(str::trim);
            builder = builder.stream(NatsStream::new(name, subjects).replicas(settings.stream_replicas));
        }
        (None, None) => {}
        _ => reader.problem(
            "publisher.nats.stream",
            "and publisher.nats.stream_subjects belong together, and one is missing",
            "give both to have the stream created, or none",
        ),
    }
    match builder.build() {
        Ok(config) => {
            let shown = url.split(',').map(|url| redacted(url.trim())).collect::<Vec<_>>().join(",");
            Some(PublisherConfig::Nats { config: Box::new(config), shown })
        }
        Err(error) => {
            let keys = [
                ("ca_file", "publisher.nats.ca_file"),
                ("client_certificate's", "publisher.nats.client_key"),
                ("client_certificate", "publisher.nats.client_certificate"),
                ("stream", "publisher.nats.stream"),
            ];
            for problem in error.problems() {
                let key = keys.iter().find(|(option, _)| problem.starts_with(option));
                refused(reader, key.map_or(URL, |(_, key)| key), problem);
            }
            None
        }
    }
}

#[cfg(not(feature = "nats"))]
pub(super) fn to_nats(reader: &mut Reader, _: &str, _: &NatsSettings) -> Option<PublisherConfig> {
    super::store::not_compiled_in(reader, super::publisher::URL, "NATS", "nats");
    None
}
