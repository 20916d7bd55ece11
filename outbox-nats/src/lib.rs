//! Publishes the events of an outbox to NATS JetStream: acknowledged by the stream.
