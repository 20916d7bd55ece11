//! Publishes the events of an outbox to Apache Kafka.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use outbox_kafka::{KafkaConfig, KafkaPublisher};
//!
//! let config = KafkaConfig::builder("kafka-1:9092,kafka-2:9092")
//!     .delivery_timeout(Duration::from_millis(3_500))
//!     .property("compression.type", "lz4")
//!     .build()?;
//! let publisher = KafkaPublisher::new(config)?;
//! # Ok::<(), outbox_core::ConfigError>(())
//! ```
//!
//! # What is sent
//! A CloudEvent in the binary mode of the Kafka binding: the payload is the record's value byte for byte, the
//! attributes are `ce_` headers (see [`outbox_core::cloudevents`]), the media type is `content-type`, and the event's
//! own headers stand beside them under their own names. The record's key is the aggregate's id ([`KafkaKey`]), so
//! that all events of an aggregate are in one partition. The partition is computed as Kafka's Java producer does it
//! (murmur2), so that a topic which other producers write as well has an aggregate in one partition only.
//!
//! # What is guaranteed, and what is left open
//! A message is reported as sent when every in-sync replica has acknowledged it (`acks=all`), by an idempotent
//! producer, whose own repetitions make neither duplicates nor gaps. These properties cannot be changed.
//!
//! After [`publish`](outbox_core::Publisher::publish) has returned, was dropped or ran out of time, nothing of the
//! call is queued any more: what is left of it is purged, together with the producer, which is replaced. What cannot
//! be recalled is a request that is on its way to a broker already. Its messages are reported as *unknown*, or, when
//! nobody waits any more, not at all, and they may still be stored. Messages of other calls that were queued beside
//! them are sent again by the new producer; those that were on their way are unknown too.
//!
//! An error after which an idempotent producer refuses to go on (librdkafka calls it fatal) makes the broker
//! unavailable for the messages it hit; the next call has a new producer.
//!
//! A topic that is missing makes its messages wait, and nobody creates it by the way, even where brokers would do so: a
//! mistyped name is an error. The property `allow.auto.create.topics` changes that.
//!
//! # Features
//! None by default: a plain-text connection with gzip, snappy and lz4. `ssl` adds TLS and SASL (OpenSSL from source),
//! `zstd` that compression. For the system's OpenSSL or Kerberos, depend on `rdkafka` as well, with its features
//! `ssl` or `gssapi`: cargo joins the features of both.

mod adapter;
mod check;
mod config;
mod error;
mod producer;
mod publisher;
mod record;

pub use adapter::KafkaAdapter;
pub use config::{KafkaConfig, KafkaConfigBuilder, KafkaKey};
pub use publisher::KafkaPublisher;
