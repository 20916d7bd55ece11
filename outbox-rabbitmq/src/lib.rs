//! Publishes the events of an outbox to RabbitMQ: mandatory, confirmed one by one.
