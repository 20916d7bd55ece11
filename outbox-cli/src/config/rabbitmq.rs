//! `[publisher.rabbitmq]`: RabbitMQ.

use super::{publisher::PublisherConfig, reader::Reader};

/// What `[publisher.rabbitmq]` says, before it is known whether RabbitMQ is meant.
#[cfg_attr(
    not(feature = "rabbitmq"),
    allow(dead_code, reason = "it is read all the same, so that it is checked")
)]
pub(super) struct RabbitMqSettings {
    exchange: Option<String>,
    exchange_from_topic: bool,
    payload_bytes_max: usize,
    ca_file: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
}

pub(super) fn read(reader: &mut Reader) -> RabbitMqSettings {
    let mut settings = RabbitMqSettings {
        exchange: reader.text("publisher.rabbitmq.exchange"),
        exchange_from_topic: false,
        payload_bytes_max: 16 * 1024 * 1024,
        ca_file: reader.text("publisher.rabbitmq.ca_file"),
        client_certificate: reader.text("publisher.rabbitmq.client_certificate"),
        client_key: reader.text("publisher.rabbitmq.client_key"),
    };
    reader.boolean("publisher.rabbitmq.exchange_from_topic", &mut settings.exchange_from_topic);
    let accepted = "a whole number of bytes";
    reader.number("publisher.rabbitmq.payload_bytes_max", accepted, &mut settings.payload_bytes_max);
    settings
}

#[cfg(feature = "rabbitmq")]
pub(super) fn to_rabbitmq(
    reader: &mut Reader,
    url: &str,
    settings: &RabbitMqSettings,
) -> Option<PublisherConfig> {
    use outbox_rabbitmq::RabbitMqConfig;

    use super::{publisher::URL, store::redacted, store::refused};

    let mut builder = RabbitMqConfig::builder(url).payload_bytes_max(settings.payload_bytes_max);
    match (&settings.exchange, settings.exchange_from_topic) {
        (Some(_), true) => reader.problem(
            "publisher.rabbitmq.exchange",
            "is given, and publisher.rabbitmq.exchange_from_topic is true",
            "give one of them",
        ),
        (Some(exchange), false) => builder = builder.exchange(exchange),
        (None, true) => builder = builder.exchange_from_topic(),
        (None, false) => {}
    }
    if let Some(path) = &settings.ca_file {
        builder = builder.ca_file(path);
    }
    match (&settings.client_certificate, &settings.client_key) {
        (Some(certificate), Some(key)) => builder = builder.client_certificate(certificate, key),
        (None, None) => {}
        _ => reader.problem(
            "publisher.rabbitmq.client_certificate",
            "and publisher.rabbitmq.client_key belong together, and one is missing",
            "give both or none",
        ),
    }
    match builder.build() {
        Ok(config) => Some(PublisherConfig::RabbitMq { config: Box::new(config), shown: redacted(url) }),
        Err(error) => {
            let keys = [
                ("exchange", "publisher.rabbitmq.exchange"),
                ("payload_bytes_max", "publisher.rabbitmq.payload_bytes_max"),
                ("ca_file", "publisher.rabbitmq.ca_file"),
                ("client_certificate's", "publisher.rabbitmq.client_key"),
                ("client_certificate", "publisher.rabbitmq.client_certificate"),
            ];
            for problem in error.problems() {
                let key = keys.iter().find(|(option, _)| problem.starts_with(option));
                refused(reader, key.map_or(URL, |(_, key)| key), problem);
            }
            None
        }
    }
}

#[cfg(not(feature = "rabbitmq"))]
pub(super) fn to_rabbitmq(reader: &mut Reader, _: &str, _: &RabbitMqSettings) -> Option<PublisherConfig> {
    super::store::not_compiled_in(reader, super::publisher::URL, "RabbitMQ", "rabbitmq");
    None
}
